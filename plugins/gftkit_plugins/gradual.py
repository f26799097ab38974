"""The schedule ``gradual``, without a constant to tune: it cools to zero, and then to the retention that samples want."""

import math
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from gftkit.kernel import Profile
from gftkit.theory import temperature_of
from gftkit_plugins.profiles import Step

START, RATE, ZERO_FROM = 4.0, 12.0, 0.4
"""The cooling: temperature at the start, e-folds over a whole run, and the progress from which it is 0."""
RAMP = 0.1
"""The share of a run in which a new end is approached."""
LOWEST = 1 - 1.4**2
"""The lowest retention, after two measurements that both give -0.4."""


@dataclass(frozen=True)
class _End:
    """A retention before and after a flow time, and the progress from which the run approaches it."""

    since: float
    early: float
    late: float
    cut: float


class Gradual:
    """The recommended schedule: cools to zero, measures which retention its own samples want, and ends there.

    It cools exponentially, to exactly zero at 40 % of the run. At half and at three quarters of the run the monitor
    ``sample-retention`` blends the averaged weights with the anchor at a few retentions and measures the energy
    distance of samples to the training data, on common random numbers. Where one is significantly better than zero the
    run goes there within a tenth of its length: below zero past the target drift, which undoes the lag that is left
    (T20); above zero back towards the pretrained drift, where the run overfits (T15). Late in flow time it keeps as
    much of the pretrained drift as leaves samples as far from the nearest training data as they were. Otherwise it
    stays at zero. Training ends at that retention, so that sampling costs one network. No data are held out.

    The second measurement is of the run as it is then, and multiplies 1 - retention.

    Reference: theory, T19 to T21; arXiv:2601.22495 for the cooling.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "gradual")
        >>> schedule.temperature(0.0), schedule.temperature(0.5)
        (4.0, 0.0)
        >>> schedule.observe(0.5, {"sample-retention": {"early": -0.25, "late": -0.25, "cut": 0.8}})
        >>> round(schedule.temperature(0.55), 12), round(schedule.temperature(1.0), 12)
        (-0.111111111111, -0.2)
    """

    floor = temperature_of(LOWEST)
    needs = ("sample-retention",)
    done = False
    reason = ""

    def __init__(self) -> None:
        self._before = self._end = _End(0.0, 0.0, 0.0, 1.0)

    def temperature(self, progress: float) -> float:
        """The temperature at this progress; where it depends on flow time, that of the mean retention."""
        if progress < ZERO_FROM:
            return START * math.exp(-RATE * progress)
        early, late = self._retentions(progress)
        cut = self._end.cut
        return temperature_of(cut * early + (1 - cut) * late)

    def profile(self, progress: float) -> Profile | None:
        """The retention as a function of flow time; None where it doesn't depend on it."""
        early, late = self._retentions(progress)
        return None if early == late or progress < ZERO_FROM else Step(early, late, self._end.cut)

    def _retentions(self, progress: float) -> tuple[float, float]:
        """Early and late in flow time, on the way from one end to the next."""
        share = min(max((progress - self._end.since) / RAMP, 0.0), 1.0)
        pairs = ((self._before.early, self._end.early), (self._before.late, self._end.late))
        early, late = (before + share * (after - before) for before, after in pairs)
        return early, late

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Where the monitor measured, go on to the retention that it found."""
        measured = measurements["sample-retention"]
        if "early" not in measured:
            return
        now = self._end
        early, late = (1 - (1 - old) * (1 - measured[key]) for old, key in ((now.early, "early"), (now.late, "late")))
        self._before, self._end = now, _End(progress, early, late, measured["cut"])

    def state_dict(self) -> dict[str, Any]:
        """The last two ends."""
        return {"before": list(vars(self._before).values()), "end": list(vars(self._end).values())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take them up."""
        self._before, self._end = (_End(*map(float, state[key])) for key in ("before", "end"))
