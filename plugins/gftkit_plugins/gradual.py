"""The schedule ``gradual``, without a constant to tune: to zero, and then to the retention that samples want."""

import math
from collections.abc import Mapping
from typing import Any

from gftkit.evaluation import RETENTIONS
from gftkit.kernel import Profile
from gftkit.theory import temperature_of
from gftkit_plugins.profiles import Step

START, RATE, ZERO_FROM = 4.0, 12.0, 0.4
"""The cooling: temperature at the start, e-folds over a whole run, and the progress from which it is 0."""
RAMP = 0.1
"""The share of a run in which the measured retention is approached."""


class Gradual:
    """The recommended schedule: cools to zero, measures which retention its own samples want, and ends there.

    It cools exponentially, to exactly zero at 40 % of the run. At half of the run the monitor ``sample-retention``
    blends the averaged weights with the anchor at a few retentions and measures the energy distance of samples to the
    training data, on common random numbers. Where one is significantly better than zero the run goes there within a
    tenth of its length: below zero past the target drift, which undoes the lag that is left (T20); above zero back
    towards the pretrained drift, where the run overfits (T15). Late in flow time it keeps more of the pretrained drift,
    so that samples copy less. Otherwise it stays at zero. Training ends at that retention, so that sampling costs one
    network. No data are held out.

    Reference: theory, T19 to T21; arXiv:2601.22495 for the cooling.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "gradual")
        >>> schedule.temperature(0.0), schedule.temperature(0.5)
        (4.0, 0.0)
        >>> schedule.observe(0.5, {"sample-retention": {"early": -0.25, "late": -0.25, "cut": 0.7}})
        >>> round(schedule.temperature(0.55), 12), round(schedule.temperature(1.0), 12)
        (-0.111111111111, -0.2)
    """

    floor = temperature_of(RETENTIONS[0])
    needs = ("sample-retention",)
    done = False
    reason = ""

    def __init__(self) -> None:
        self._since, self._end = 1.0, Step(0.0, 0.0)

    def temperature(self, progress: float) -> float:
        """The temperature at this progress; where it depends on flow time, that of the mean retention."""
        if progress < ZERO_FROM:
            return START * math.exp(-RATE * progress)
        at = self._approached(progress)
        return temperature_of(at.cut * at.early + (1 - at.cut) * at.late)

    def profile(self, progress: float) -> Profile | None:
        """The retention as a function of flow time; None where it doesn't depend on it."""
        at = self._approached(progress)
        return None if at.early == at.late else at

    def _approached(self, progress: float) -> Step:
        """The retention on the way from zero to the one that was measured."""
        share = min(max((progress - self._since) / RAMP, 0.0), 1.0)
        return Step(share * self._end.early, share * self._end.late, self._end.cut)

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Where the monitor measured, go on to the retention that it found."""
        measured = measurements["sample-retention"]
        if "early" in measured:
            self._since, self._end = progress, Step(measured["early"], measured["late"], measured["cut"])

    def state_dict(self) -> dict[str, Any]:
        """The retention that was measured, and when."""
        return {"since": self._since, "end": vars(self._end)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self._since = float(state["since"])
        self._end = Step(*(float(state["end"][key]) for key in ("early", "late", "cut")))
