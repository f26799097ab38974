"""A study's results: a list of rows {method, coupling, size, seed, metric, value}, of every run its own."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from typing import Any

from gftkit.evaluation import names
from gftkit.files import finite, read_json
from gftkit.log import curve
from gftkit.run import SUMMARY, Run
from gftkit.stability import instant_variance, largest_setback, spearman
from gftkit.study.plan import Cell

Row = dict[str, Any]

BEST, BEST_STEP = "_best", "_best_step"
"""Endings of the names of the least value of the judged metric along a run, and of its step."""


def rows_of(cell: Cell, run: Run, metric: str) -> list[Row]:
    """The rows of one finished run.

    - Every metric of the averaged weights at the end, without standard errors.
    - Of the judged metric on raw weights, from the first evaluation after the start: ``spearman``,
      ``instant_variance``, ``instant_variance_whole`` and ``largest_setback`` (see ``gftkit.stability``).
    - Where the averaged weights were measured along the run (``evaluate.averaged``): ``METRIC_best``, the least of the
      judged metric on them, start and end included, and ``METRIC_best_step``, where it was. It is chosen by what it is
      measured on: no rule could do better, and none does as well.
    - ``seconds`` of training and evaluation, and ``steps``.
    """
    final, lines = read_json(run.folder / SUMMARY), run.history()
    values = {name: final["ema"][name] for name in names(final["ema"])}
    steps, raw = curve([line for line in lines if line["step"] > 0], metric, "evaluation", "raw")
    values |= {"spearman": spearman(steps, raw), "instant_variance": instant_variance(steps, raw)}
    values |= {
        "instant_variance_whole": instant_variance(steps, raw, left_out=0),
        "largest_setback": largest_setback(raw),
    }
    values |= _best(lines, metric, final["steps"])
    values |= {"seconds": final["seconds"], "steps": final["steps"]}
    return [{**asdict(cell), "metric": name, "value": value} for name, value in finite(values).items()]


def _best(lines: Sequence[Mapping[str, Any]], metric: str, last: int) -> dict[str, float]:
    """The least value on averaged weights and its step; nothing where they were measured at the end only."""
    steps, values = curve(lines, metric, "evaluation", "ema")
    if not any(step < last for step in steps):
        return {}
    at_start = curve([line for line in lines if line["step"] == 0], metric, "evaluation", "raw")
    best = min(zip([*at_start[1], *values], [*at_start[0], *steps], strict=True), default=None)
    return {} if best is None else {f"{metric}{BEST}": best[0], f"{metric}{BEST_STEP}": best[1]}


def metrics_of(rows: Sequence[Row], first: str) -> list[str]:
    """The names of all that was measured, the judged one first."""
    measured = dict.fromkeys(row["metric"] for row in rows)
    return [first, *(name for name in measured if name != first)]
