"""Reports: one self-contained HTML file, pictures inside."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jinja2
import torch
import yaml
from torch import nn

from gftkit import pictures
from gftkit.anchor import short
from gftkit.data import Scaling
from gftkit.evaluation import names
from gftkit.files import write_text
from gftkit.log import curve
from gftkit.monitoring import sections as monitored

if TYPE_CHECKING:
    from gftkit.evaluation import Evaluation
    from gftkit.experiment import Experiment


@dataclass(frozen=True)
class Section:
    """A part of a report: text, a table (its first row the head), a picture (PNG), code; each may be empty."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = field(default_factory=list)
    picture: bytes = b""
    caption: str = ""
    code: str = ""


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write a self-contained HTML report, whole or not at all."""
    template = files("gftkit").joinpath("report.html").read_text(encoding="utf-8")
    parts = [{**vars(part), "picture": base64.b64encode(part.picture).decode()} for part in sections]
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    write_text(path, environment.from_string(template).render(title=title, lead=lead, sections=parts))


def number(value: Any, stderr: Any = None, interval: tuple[Any, Any] | None = None) -> str:
    """A number with four significant digits and, where known, its standard error and its 95 % interval.

    Example:
        >>> number(0.98765, 0.00123, (0.9813, 0.9912))
        '0.9877 ± 0.0012 [0.981, 0.991]'
    """
    if value is None:
        return "-"
    ends = "" if interval is None or None in interval else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
    return f"{value:.4g}" + (f" ± {stderr:.2g}" if stderr else "") + ends


def shown(values: Mapping[str, Any], name: str) -> str:
    """One of a run's measured numbers as text, with what is known of its error."""
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return number(values.get(name), values.get(f"{name}_stderr"), (low, high))


def estimates(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of name and value ± standard error."""
    return [(name, shown(values, name)) for name in names(values)]


def picture_of(experiment: "Experiment", evaluation: "Evaluation") -> bytes:
    """Samples of a drift beside real data, as PNG."""
    scaling = Scaling(experiment.facts.range)
    made = {"samples": scaling.unscale(evaluation.samples()), "real": scaling.unscale(experiment.reference.x1)}
    return pictures.samples(made, experiment.facts.range)


def write_run_report(
    folder: Path,
    experiment: "Experiment",
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
    sections += monitored(experiment.monitors, lines)
    sections.append(Section("Configuration", code=yaml.safe_dump(config.to_dict(), sort_keys=False)))
    titles = {"pretrain": "Pretraining", "distill": "Distillation"}
    title = titles.get(config.kind) or f"Fine-tuning, schedule {(config.schedule or {})['name']}"
    named = {key: getattr(config, key)["name"] for key in ("drift", "data", "path", "coupling")}
    lead = f"{named['drift']} on {named['data']}, path {named['path']}, coupling {named['coupling']}."
    if experiment.anchor is not None:
        what = "Teacher" if config.kind == "distill" else "Anchor"
        lead += f" {what} {experiment.anchor.kind}, hash {short(experiment.anchor.hash)}"
        count = len(experiment.anchors)
        lead += f", the last of {count} fine-tunes' anchors." if count > 1 else "."
    write_report(folder / "report.html", title, lead, sections)
