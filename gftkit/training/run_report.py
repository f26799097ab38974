"""The report and the pictures of a run."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from gftkit.data.samples import Scaling
from gftkit.evaluation.evaluation import Evaluation
from gftkit.experiment.build import Experiment
from gftkit.networks.anchor import short_hash
from gftkit.recording import pictures
from gftkit.recording.html import Section, estimate_rows, write_report
from gftkit.runtime.extras import missing
from gftkit.storage.log import curve, measured_names
from gftkit.training.verdict import monitor_sections


def picture_of(experiment: Experiment, evaluation: Evaluation) -> bytes:
    """Samples of a drift beside real data, as PNG."""
    scaling = Scaling(experiment.facts.range)
    panels = {
        "samples": scaling.unscale(evaluation.samples()),
        "real": scaling.unscale(experiment.measurement.reference.x1),
    }
    return pictures.sample_picture(panels, experiment.facts.range)


def left_out() -> list[str]:
    """A warning for a run that will get no report, because of packages that aren't installed."""
    sentence = missing("report")
    return [f"report.html and samples.png are left out of this run: {sentence}"] if sentence else []


def write_run_report(
    folder: Path,
    experiment: Experiment,
    drift: nn.Module,
    device: torch.device,
    lines: Sequence[Mapping[str, Any]],
    final: Mapping[str, Any],
) -> None:
    """Write samples.png and report.html of a run."""
    config = experiment.config
    picture = picture_of(experiment, experiment.evaluation(drift, device))
    pictures.write_png(folder / "samples.png", picture)
    temperatures = {"temperature": curve(lines, "temperature", "train")}
    stopped = final.get("stopped")
    sections = [
        Section(
            "Result",
            f"EMA weights after {final['steps']} steps in {final['seconds']:.0f} s, ± one standard error, in brackets "
            f"a 95 % interval where that would mislead; measured "
            + (
                "against held-out data."
                if config.evaluate.data is not None
                else "against the training data: nothing was held out."
            )
            + (f" Stopped before step {stopped['of']}: {stopped['reason']}" if stopped else ""),
            table=[("metric", "value"), *estimate_rows(final["ema"])],
        ),
        Section("Samples", picture=picture, caption="Samples of the EMA weights beside real data."),
    ]
    for name in measured_names(final["ema"]):
        steps, values = curve(lines, name, "evaluation", "raw")
        if len(steps) < 2:  # measured at the ends of the run only
            continue
        drawn = pictures.curve_picture({name: (steps, values)}, name, temperatures)
        sections.append(Section(name, picture=drawn, caption="Raw weights, along the run."))
    drawn = pictures.curve_picture({"loss": curve(lines, "loss", "train")}, "loss", temperatures)
    sections.append(
        Section("Loss", picture=drawn, caption="Per element of the event; its scale changes with the temperature.")
    )
    sections += monitor_sections(experiment.measurement.monitors, lines)
    sections.append(Section("Configuration", code=yaml.safe_dump(config.to_dict(), sort_keys=False)))
    titles = {"pretrain": "Pretraining", "distill": "Distillation"}
    title = titles.get(config.kind) or f"Fine-tuning, schedule {(config.schedule or {})['name']}"
    named = {key: getattr(config, key)["name"] for key in ("drift", "data", "path", "coupling")}
    lead = f"{named['drift']} on {named['data']}, path {named['path']}, coupling {named['coupling']}."
    if experiment.networks.anchor is not None:
        what = "Teacher" if config.kind == "distill" else "Anchor"
        lead += f" {what} {experiment.networks.anchor.kind}, hash {short_hash(experiment.networks.anchor.hash)}"
        count = len(experiment.networks.anchors)
        lead += f", the last of {count} fine-tunes' anchors." if count > 1 else "."
    write_report(folder / "report.html", title, lead, sections)
