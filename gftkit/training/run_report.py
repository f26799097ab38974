"""The records of a run for people: its environment, its report, and pictures."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import nn

from gftkit.data.samples import Scaling
from gftkit.evaluation.evaluation import Evaluation
from gftkit.experiment.build import Experiment
from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import short
from gftkit.recording import pictures
from gftkit.recording.html import Section, estimates, write_report
from gftkit.runs.schema import Config
from gftkit.runtime.environment import describe_machine
from gftkit.storage.log import curve, names
from gftkit.training.verdict import monitor_sections


def picture_of(experiment: Experiment, evaluation: Evaluation) -> bytes:
    """Samples of a drift beside real data, as PNG."""
    scaling = Scaling(experiment.facts.range)
    panels = {
        "samples": scaling.unscale(evaluation.samples()),
        "real": scaling.unscale(experiment.measurement.reference.x1),
    }
    return pictures.samples(panels, experiment.facts.range)


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
            table=[("metric", "value"), *estimates(final["ema"])],
        ),
        Section("Samples", picture=picture, caption="Samples of the EMA weights beside real data."),
    ]
    for name in names(final["ema"]):
        steps, values = curve(lines, name, "evaluation", "raw")
        if len(steps) < 2:  # measured at the ends of the run only
            continue
        drawn = pictures.curves({name: (steps, values)}, name, temperatures)
        sections.append(Section(name, picture=drawn, caption="Raw weights, along the run."))
    drawn = pictures.curves({"loss": curve(lines, "loss", "train")}, "loss", temperatures)
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
        lead += f" {what} {experiment.networks.anchor.kind}, hash {short(experiment.networks.anchor.hash)}"
        count = len(experiment.networks.anchors)
        lead += f", the last of {count} fine-tunes' anchors." if count > 1 else "."
    write_report(folder / "report.html", title, lead, sections)


def describe_environment(registry: Registry, config: Config, accelerator: Any) -> dict[str, Any]:
    """The content of environment.json: versions, device, processes, and the plugin of each component."""
    used = {"drift": config.drift, "path": config.path, "coupling": config.coupling, "schedule": config.schedule}
    datasets = {"data": config.data, "source": config.source, "evaluate.data": config.evaluate.data}
    origins = {
        where: registry.component("dataset" if where in datasets else where, spec["name"]).origin
        for where, spec in {**used, **datasets}.items()
        if spec is not None
    }
    return {
        **describe_machine(accelerator.device),
        "processes": accelerator.num_processes,
        "distributed": accelerator.distributed_type.value,
        "components": {
            where: {"plugin": origin.plugin, "distribution": origin.distribution, "version": origin.version}
            for where, origin in origins.items()
        },
    }
