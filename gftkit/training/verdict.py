"""What the monitors of a run show and say of it once it is finished."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from gftkit.kernel.contracts import Monitor
from gftkit.kernel.errors import RunError
from gftkit.recording.html import Section
from gftkit.runs.folder import RunFolder


@dataclass(frozen=True)
class Verdict:
    """What a monitor says of a finished run.

    Attributes:
        followed: whether the run is consistent with what the monitor checks.
        lines: the reasons, in words, one sentence or two each.
        findings: the same as plain values, for JSON.
    """

    followed: bool
    lines: Sequence[str]
    findings: Mapping[str, Any] = field(default_factory=dict)


def sections(monitors: Sequence[tuple[str, Monitor]], lines: Sequence[Mapping[str, Any]]) -> list[Section]:
    """What the monitors of a run show in its report.

    Args:
        monitors: by the name that the config gives them.
        lines: of metrics.jsonl.
    """
    shown = []
    for name, monitor in monitors:
        show = getattr(monitor, "sections", None)
        if show is not None:
            mine = [line for line in lines if line["kind"] == "monitor" and line.get("monitor") == name]
            shown += show(mine)
    return shown


def sections_of(run: RunFolder, name: str) -> list[Section]:
    """The same for a finished run, every title beginning with a name that it goes by."""
    return [replace(part, title=f"{name}: {part.title}") for part in sections(_monitors(run), run.history())]


def verify_run(run: RunFolder) -> list[tuple[str, Verdict]]:
    """What each monitor of a finished run says of it, from the run's files alone.

    Raises:
        RunError: for a run that isn't finished, a pretraining, one whose monitors give no verdict, and files that are
            missing or damaged.
    """
    if run.config.kind != "finetune":
        what = "a pretraining" if run.config.kind == "pretrain" else "a distillation"
        raise RunError(f"{run.folder} is {what}: only a fine-tune has a theory to follow. Verify one of those.")
    if not run.finished:
        raise RunError(f"{run.folder}: the run isn't finished. Go on with it by --resume, then verify it.")
    judges = [(name, monitor) for name, monitor in _monitors(run) if hasattr(monitor, "verdict")]
    if not judges:
        raise RunError(
            f"{run.folder}: nothing that tells was measured beside the run. Add `monitors: [{{name: theory}}]` to its "
            f"config and run it again."
        )
    return [(name, monitor.verdict(run)) for name, monitor in judges]


def _monitors(run: RunFolder) -> list[tuple[str, Any]]:
    """The monitors of a run's config, made anew."""
    return [(spec["name"], run.registry.build("monitor", spec, "monitors")) for spec in run.config.monitors]
