"""A study's results: rows {method, coupling, size, seed, metric, value}, several for every run."""

from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from statistics import fmean
from typing import Any

import torch

from gftkit.api import Run
from gftkit.estimation.stability import WINDOW, stability_of
from gftkit.experiment.restore import weights_of
from gftkit.generation.requested_retention import RetentionRequest
from gftkit.kernel.errors import RunError
from gftkit.kernel.options import plain
from gftkit.runs.folder import SUMMARY
from gftkit.storage.documents import nan_to_none, read_json, write_json
from gftkit.storage.log import curve, measured_names
from gftkit.study.plan import Cell

Row = dict[str, Any]

BEST, BEST_STEP = "_best", "_best_step"
"""Endings of the names of the least value of the judged metric along a run, and of its step."""

BLEND = "blend.json"
"""The measurements of a run at a retention, in the folder of their cell."""

NEARLY = 0.9
"""Share of the baseline's fall that ``steps_to_threshold`` requires."""


def threshold(baseline: Run, metric: str) -> float | None:
    """Nine tenths of the way that a metric falls in a run of the baseline, on raw weights.

    From its value at the start to the mean of its last 5 evaluations; None for a run without so many, or a fall.
    """
    _, values = curve(baseline.history(), metric, "evaluation", "raw")
    if len(values) <= WINDOW:
        return None
    fall = values[0] - fmean(values[-WINDOW:])
    return values[0] - NEARLY * fall if fall > 0 else None


def rows_of(cell: Cell, run: Run, metric: str, level: float | None = None) -> list[Row]:
    """The rows of one finished run.

    - Every metric of the averaged weights at the end, without standard errors.
    - Of the judged metric on raw weights, from the first evaluation after the start: ``spearman``,
      ``instant_variance``, ``instant_variance_whole`` and ``largest_setback`` (see ``gftkit.estimation.stability``).
    - Where the averaged weights were measured along the run (``evaluate.averaged``): ``METRIC_best``, the least of the
      judged metric on them, start and end included, and ``METRIC_best_step``, its step. It is the least of the values
      that it is selected by: a bound that no stopping rule can beat.
    - With a ``level``, the baseline's ``threshold``: ``steps_to_threshold``, the step of the first evaluation on raw
      weights with the judged metric at or below it, and ``seconds_to_threshold`` of training until then, without
      evaluations; None where the run doesn't reach it.
    - ``seconds`` of training and evaluation, and ``steps``.
    """
    final, lines = read_json(run.folder / SUMMARY), run.history()
    values = {name: final["ema"][name] for name in measured_names(final["ema"])}
    # The evaluation at the start is of the pretrained weights: equal in all methods, and no part of their curves.
    steps, raw = curve([line for line in lines if line["step"] > 0], metric, "evaluation", "raw")
    values |= stability_of(steps, raw, level, run.seconds())
    values |= _best(lines, metric, final["steps"])
    values |= {"seconds": final["seconds"], "steps": final["steps"]}
    return [{**asdict(cell), "metric": name, "value": value} for name, value in nan_to_none(values).items()]


def measure_blend(run: Run, retention: RetentionRequest, folder: Path, device: torch.device | str) -> None:
    """Measure the averaged weights of a finished run, blended with its anchor, by every metric of its configuration.

    The source samples and the noise are those of the run's own evaluation. Written whole, or not at all.

    Raises:
        GftkitError: for a run that isn't finished or has no anchor, and as a metric raises.
    """
    _, digest = weights_of(run)
    values = run.evaluate(device=device, retention=retention)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"retention": plain(retention), "weights": digest, "values": nan_to_none(values)}
    write_json(folder / BLEND, content)


def blend_rows(cell: Cell, run: Run, retention: RetentionRequest, folder: Path) -> list[Row]:
    """The rows of a run that is sampled at a retention: every metric at its end, and nothing of its training.

    Args:
        cell: of the rows.
        run: that ``measure_blend`` measured.
        retention: at which.
        folder: of the measurements; where there are none yet, there are no rows.

    Raises:
        RunError: for measurements at another retention, or of other weights than the run has now.
    """
    file = folder / BLEND
    if not file.exists():
        return []
    kept = read_json(file)
    if kept["retention"] != plain(retention):
        raise RunError(
            f"{file} was measured at the retention {kept['retention']}, and the study's file has {plain(retention)} "
            f"now. Choose another name for the method, or delete {folder}."
        )
    if kept["weights"] != weights_of(run)[1]:
        raise RunError(f"{file} was measured on other weights than {run.folder} has now. Delete {folder}.")
    values = kept["values"]
    return [{**asdict(cell), "metric": name, "value": values[name]} for name in measured_names(values)]


def _best(lines: Sequence[Mapping[str, Any]], metric: str, last: int) -> dict[str, float]:
    """The least value on averaged weights and its step; nothing where they were measured at the end only."""
    steps, values = curve(lines, metric, "evaluation", "ema")
    if not any(step < last for step in steps):
        return {}
    at_start = curve([line for line in lines if line["step"] == 0], metric, "evaluation", "raw")
    best = min(zip([*at_start[1], *values], [*at_start[0], *steps], strict=True), default=None)
    return {} if best is None else {f"{metric}{BEST}": best[0], f"{metric}{BEST_STEP}": best[1]}


def metrics_of(rows: Sequence[Row], first: str) -> list[str]:
    """The names of all measured values, the judged metric first."""
    measured = dict.fromkeys(row["metric"] for row in rows)
    return [first, *(name for name in measured if name != first)]
