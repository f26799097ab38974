"""The sections and verdicts that the monitors of a run give once it is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gftkit.kernel.contracts import Monitor
from gftkit.kernel.errors import RunError
from gftkit.recording.html import Section
from gftkit.runs.folder import RunFolder


@dataclass(frozen=True)
class Verdict:
    """The verdict of a monitor on a finished run.

    Attributes:
        followed: whether the run is consistent with the theory that the monitor checks.
        lines: the reasons, in words, one sentence or two each.
        findings: the same as plain values, for JSON.
    """

    followed: bool
    lines: Sequence[str]
    findings: Mapping[str, Any] = field(default_factory=dict)


def monitor_sections(monitors: Sequence[tuple[str, Monitor]], lines: Sequence[Mapping[str, Any]]) -> list[Section]:
    """The sections that the monitors of a run add to its report.

    Args:
        monitors: by the name that the config gives them.
        lines: of metrics.jsonl.
    """
    sections = []
    for name, monitor in monitors:
        show = getattr(monitor, "sections", None)
        if show is not None:
            mine = [line for line in lines if line["kind"] == "monitor" and line.get("monitor") == name]
            sections += show(mine)
    return sections


def run_sections(run: RunFolder, name: str) -> list[Section]:
    """The sections of the monitors of a finished run, with a name of the run in front of every title."""
    return [replace(part, title=f"{name}: {part.title}") for part in monitor_sections(_monitors(run), run.history())]


def verify_run(run: RunFolder) -> list[tuple[str, Verdict]]:
    """The verdict of each monitor on a finished run, from the run's files alone.

    Raises:
        RunError: for a run that isn't finished, a pretraining, one whose monitors give no verdict, and files that are
            missing or damaged.
    """
    if run.config.kind != "finetune":
        what = "a pretraining" if run.config.kind == "pretrain" else "a distillation"
        raise RunError(f"{run.folder} is {what}, and the theory is about fine-tunes. Verify a fine-tune.")
    if not run.finished:
        raise RunError(f"{run.folder}: the run isn't finished. Continue it with --resume, then verify it.")
    judges = [(name, monitor) for name, monitor in _monitors(run) if hasattr(monitor, "verdict")]
    if not judges:
        raise RunError(
            f"{run.folder}: no monitor that can give a verdict was recorded. Add `monitors: [{{name: theory}}]` to its "
            f"configuration and run it again."
        )
    return [(name, monitor.verdict(run)) for name, monitor in judges]


def _monitors(run: RunFolder) -> list[tuple[str, Any]]:
    """Build the monitors of a run again."""
    return [(spec["name"], run.registry.build("monitor", spec, "monitors")) for spec in run.config.monitors]
