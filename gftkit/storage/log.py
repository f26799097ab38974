"""metrics.jsonl: one JSON object a line, appended as the run goes."""

import json
from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, TextIO

from gftkit.kernel.errors import PluginError
from gftkit.storage.documents import nan_to_none, write_text
from gftkit.storage.files import explain_file_errors


def read_log(path: Path) -> list[dict[str, Any]]:
    """The lines of a log; a last line that was cut off is left out."""
    if not path.is_file():
        return []
    lines = []
    for line in path.read_text(encoding="utf-8").splitlines():
        try:
            lines.append(json.loads(line))
        except json.JSONDecodeError:  # a process that was killed may have written a part of its last line
            break
    return lines


def curve(
    lines: Sequence[Mapping[str, Any]], key: str, kind: str, weights: str | None = None
) -> tuple[list[int], list[float]]:
    """Steps and values of one number in a log's lines of a kind ("train", "evaluation", "monitor")."""
    points = [
        (line["step"], line[key])
        for line in lines
        if line["kind"] == kind and line.get(key) is not None and (weights is None or line.get("weights") == weights)
    ]
    return [step for step, _ in points], [value for _, value in points]


def is_last_line(line: Mapping[str, Any], steps: int) -> bool:
    """True for the last line of a run of so many steps: that of its averaged weights."""
    return line.get("weights") == "ema" and line["step"] == steps


class Log:
    """The log of a run that is going on.

    Args:
        path: the file.
        until: lines of later steps, and of a run's end, are dropped: they will be made again.
        steps: of the run: where averaged weights were measured at that step, that was its end.
        listen: called with each line that is added.
    """

    def __init__(self, path: Path, until: int, steps: int, listen: Callable[[Mapping[str, Any]], None]) -> None:
        self.path, self._listen = path, listen
        self.lines = [line for line in read_log(path) if line["step"] <= until and not is_last_line(line, steps)]
        # Rewritten whole before anything is appended: what comes after the checkpoint will be measured again.
        write_text(path, "".join(json.dumps(line) + "\n" for line in self.lines))
        self._file: TextIO = path.open("a", encoding="utf-8")

    def add(self, kind: str, step: int, values: Mapping[str, Any]) -> None:
        """Append one line.

        Raises:
            RunError: where it can't be written.
            PluginError: where a value is named like the line's own keys.
        """
        if {"step", "kind"} & values.keys():
            raise PluginError(f"a measurement can't be named step or kind, got {', '.join(values)}. Rename it.")
        line = nan_to_none({"step": step, "kind": kind, **values})
        with explain_file_errors(self.path):
            self._file.write(json.dumps(line) + "\n")
            self._file.flush()  # so that a run can be watched, and a killed one has its lines
        self.lines.append(line)
        self._listen(line)

    def close(self) -> None:
        """Close the file."""
        self._file.close()


def measured_names(values: Iterable[str]) -> list[str]:
    """The names that were measured, of the keys that ``measure`` gives: without errors and ends of intervals.

    Example:
        >>> measured_names(["energy", "energy_stderr", "energy_low", "energy_high", "very_low"])
        ['energy', 'very_low']
    """
    keys = list(values)
    beside = {f"{key}{end}" for key in keys for end in ("_stderr", "_low", "_high")}
    return [key for key in keys if key not in beside]
