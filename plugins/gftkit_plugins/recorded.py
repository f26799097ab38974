"""The schedule ``recorded``: the temperatures and the end that another run had."""

import bisect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gftkit.kernel import RunError
from gftkit.runs import SUMMARY, RunFolder
from gftkit.storage import curve, read_json

ROUND_OFF = 1e-9
"""Of a progress, relative to a step."""


class Recorded:
    """The temperatures of a finished fine-tune, at the same progress, and its end, where it ended early.

    So what ``adaptive`` chose on a part of the data, with the rest held out, is applied to all of them. The run's
    temperatures are known at every ``train.log_every`` steps: those between are taken to be the next one that is known.
    A run ends at the first evaluation that isn't before the recorded end.

    Args:
        run: the folder of a finished fine-tune.

    Raises:
        RunError: for a folder that doesn't hold one.
    """

    floor = 0.0
    needs: tuple[str, ...] = ()

    def __init__(self, run: Path) -> None:
        recorded = RunFolder.open(run)
        if recorded.config.kind != "finetune" or not recorded.finished:
            raise RunError(f"run: wanted a finished fine-tune, and {run} isn't one. Choose another run.")
        if any("retention_low" in line for line in recorded.history()):
            raise RunError(
                f"run: the retention of {run} depends on flow time, which its record doesn't contain. Use its schedule "
                f"itself: {recorded.config.schedule}."
            )
        self.run = run
        self._steps, self._temperatures = curve(recorded.history(), "temperature", "train")
        self._of = recorded.config.train.steps
        self._end = int(read_json(recorded.folder / SUMMARY)["steps"])
        self._progress = 0.0

    @property
    def done(self) -> bool:
        """True where the recorded run ended early and this one has come as far."""
        return self._end < self._of and self._progress * self._of >= self._end - ROUND_OFF

    @property
    def reason(self) -> str:
        """The reason, in words."""
        return f"{self.run} ended there, after {self._end} of {self._of} steps." if self.done else ""

    def temperature(self, progress: float) -> float:
        """The temperature of the recorded run's step at this progress."""
        place = bisect.bisect_right(self._steps, progress * self._of + ROUND_OFF)
        return self._temperatures[min(place, len(self._temperatures) - 1)]

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:  # noqa: ARG002
        """Take up how far this run has come; what was measured doesn't count."""
        self._progress = progress

    def state_dict(self) -> dict[str, Any]:
        """The progress of this run."""
        return {"progress": self._progress}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self._progress = float(state["progress"])
