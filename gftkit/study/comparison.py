"""Fine-tunes of one pretrained flow, side by side: numbers, pictures and a report."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch

from gftkit.api import Run
from gftkit.data import conditions
from gftkit.data.samples import Samples, Scaling
from gftkit.estimation.stability import stability_of
from gftkit.experiment.building import build_drift
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.recording import pictures
from gftkit.recording.html import Section, format_number, measured_text, write_report
from gftkit.runs.folder import SUMMARY
from gftkit.runs.schema import Config
from gftkit.runtime.extras import require
from gftkit.runtime.randomness import stream
from gftkit.storage.documents import read_json, write_json
from gftkit.storage.log import curve, measured_names
from gftkit.training.verdict import run_sections


def compare_runs(
    runs: Mapping[str, Run], out: Path, metric: str, title: str, threshold: float | None = None
) -> dict[str, dict[str, Any]]:
    """Compare finished fine-tunes of one pretrained run; write summary.json, samples.png, curve.png and report.html.

    Quality (every metric of the runs) is of EMA weights; stability (``stability_of`` the curve of ``metric``) is of raw
    weights, from the first evaluation after the start.

    Args:
        runs: the fine-tunes, by the names for tables and pictures.
        out: the folder to write into.
        metric: the one whose curve is drawn and judged.
        title: of the report.
        threshold: value of ``metric`` that runs are to reach; by default the highest of their last values on raw
            weights, so that all do.

    Returns:
        The content of summary.json: the numbers of each model, ``pretrained`` first.

    Raises:
        ConfigError: where the runs start from different pretrained runs, or don't measure ``metric``.
        MissingPackageError: where matplotlib or Jinja2 isn't installed.
    """
    require("report", "a comparison")
    parents = {run.config.pretrained for run in runs.values()}
    if len(parents) != 1 or None in parents:
        raise ConfigError(f"a comparison is of fine-tunes of one pretrained run, got {len(parents)} different ones.")
    first = next(iter(runs.values()))
    summary: dict[str, dict[str, Any]] = {"pretrained": _at_start(first)}
    finals = {name: read_json(run.folder / SUMMARY) for name, run in runs.items()}
    for name, final in finals.items():
        if metric not in final["ema"]:
            raise ConfigError(f"run '{name}' doesn't measure {metric}: it has {', '.join(final['ema'])}.")
    curves = {name: _after_start(run, metric) for name, run in runs.items()}
    if threshold is None:
        threshold = max(values[-1] for _, values in curves.values())
    for name, run in runs.items():
        stability = stability_of(*curves[name], threshold, run.seconds())
        summary[name] = {**finals[name]["ema"], **stability, "seconds": finals[name]["seconds"]}
    write_json(out / "summary.json", summary)
    sheet = _sample_picture(first, runs)
    pictures.write_png(out / "samples.png", sheet)
    histories = {name: run.history() for name, run in runs.items()}
    drawn = pictures.curve_picture(
        {name: curve(lines, metric, "evaluation", "raw") for name, lines in histories.items()},
        metric,
        {name: curve(lines, "temperature", "train") for name, lines in histories.items()},
        logarithmic=True,
    )
    pictures.write_png(out / "curve.png", drawn)
    sections = _sections(summary, metric, threshold, sheet, drawn)
    for name, run in runs.items():
        sections += run_sections(run, name)
    write_report(out / "report.html", title, _lead(first.config), sections)
    return summary


def _after_start(run: Run, metric: str) -> tuple[list[int], list[float]]:
    """The curve of a metric on raw weights, without the evaluation at the start."""
    return curve([line for line in run.history() if line["step"] > 0], metric, "evaluation", "raw")


def summary_table(summary: Mapping[str, Mapping[str, Any]]) -> list[list[str]]:
    """The summary as rows of text, one column for each model; the head first."""
    rows = [
        [key, *(measured_text(of, key) for of in summary.values())]
        for key in measured_names(list(summary.values())[-1])
    ]
    return [["", *summary], *rows]


def _at_start(run: Run) -> dict[str, Any]:
    """The metrics of the pretrained weights: those of a fine-tune before its first step."""
    (line,) = (line for line in run.history() if line["kind"] == "evaluation" and line["step"] == 0)
    return {key: value for key, value in line.items() if key not in ("step", "kind", "weights")}


def _sample_picture(first: Run, runs: Mapping[str, Run]) -> bytes:
    """Samples of the pretrained model and of each run, from the same noise, and real data."""
    facts = first.facts
    scaling, count, seed = Scaling(facts.range), 36, first.config.seed
    spec = first.config.evaluate.data or first.config.data
    real = Samples(first.registry.build("dataset", spec, "evaluate.data"), "evaluate.data")
    assert first.config.pretrained is not None  # checked by compare_runs
    reference = real.some(count, stream(seed, "reference"))
    before = Run.open(first.config.pretrained, first.registry)
    in_training_values = Scaling(before.facts.range).scale(_samples_like(before, count, seed, reference))
    panels: dict[str, torch.Tensor] = {"pretrained": scaling.unscale(in_training_values)}
    panels |= {name: _samples_like(run, count, seed, reference) for name, run in runs.items()}
    panels["real"] = scaling.unscale(reference.x1)
    return pictures.sample_picture(panels, facts.range)


def _samples_like(run: Run, count: int, seed: int, like: Batch) -> torch.Tensor:
    """Samples of a run; with the named conditions of real samples, where it takes any."""
    if not run.facts.condition_shapes:
        return run.samples(count, seed)[0]
    untrained = build_drift(run.spec("drift"), run.facts, run.registry, run.path)
    return run.samples(count, seed, conditions=conditions.conditions_of(untrained, like))[0]


def _lead(config: Config) -> str:
    target, path, coupling = config.data, config.path["name"], config.coupling["name"]
    count = f"{target['count']} samples of " if target.get("count") else ""
    return f"One pretrained flow, adapted to {count}{target['name']}; path {path}, coupling {coupling}, same seed."


def _sections(
    summary: Mapping[str, Mapping[str, Any]], metric: str, threshold: float, sheet: bytes, drawn: bytes
) -> list[Section]:
    return [
        Section(
            "Samples", picture=sheet, caption="EMA weights, from the same source samples; on the right, real data."
        ),
        Section(
            "Numbers",
            f"Metrics: EMA weights, held-out data, ± one standard error of this one run; lower is closer to the data. "
            f"spearman: rank correlation of step and {metric} on raw weights, -1 for a steady fall. instant_variance: "
            f"of {metric} on raw weights, mean over windows of 5 evaluations after the first fifth of the steps, "
            f"linear trend removed; instant_variance_whole: the same from the start on. largest_setback: the largest "
            f"rise above the lowest {metric} before. steps_to_threshold: the first evaluation with {metric} at or "
            f"below {format_number(threshold)}, and the seconds of training until then. One run of one seed each: "
            f"differences within a few standard errors mean nothing.",
            table=summary_table(summary),
        ),
        Section(metric, picture=drawn, caption=f"Above, {metric} on raw weights; below, the temperature."),
    ]
