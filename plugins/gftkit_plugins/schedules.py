"""Temperature schedules: functions of progress s, the share of training done."""

import bisect
import itertools
import math
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field
from torch import Tensor

import gftkit
from gftkit.kernel import Profile
from gftkit.theory import mean_retention, retention, temperature_of
from gftkit_plugins.adaptive import Adaptive
from gftkit_plugins.gradual import Gradual
from gftkit_plugins.profiles import Constant, Retention
from gftkit_plugins.recorded import Recorded

Temperature = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


@dataclass(frozen=True)
class _Approach:
    """The profile of a schedule on its way to its end: max(rho, r) where r > 0, and rho + ramped r elsewhere.

    Where the end r is 0 it is the retention rho of the cooling, and at every flow time it falls monotonically as rho
    falls and the ramp rises (T8, T19).
    """

    end: Profile
    cooled: float
    ramp: float

    @property
    def fitted_on(self) -> Mapping[str, Any]:
        """What the end was fitted to."""
        return getattr(self.end, "fitted_on", {})

    def retention(self, t: Tensor) -> Tensor:
        """The retention at t, of t's shape."""
        end = self.end.retention(t)
        return end.clamp(min=0).clamp(min=self.cooled) + self.ramp * end.clamp(max=0)


class _Cooling(ABC):
    """Shared by the schedules that cool, to zero or to another end.

    Where the end is positive, the retention stays there as soon as the cooling has come down to it. The end's negative
    part is added in a straight line in the progress, from none at the start to all of it at ``ramp``.
    """

    def __init__(self, end: Profile | float | None, ramp: float) -> None:
        self.ramp = ramp
        self.end: Profile | None = Constant(end) if isinstance(end, (int, float)) else end

    @property
    def floor(self) -> float:
        """The temperature at the end, the lowest one."""
        return self.temperature(1.0)

    def temperature(self, progress: float) -> float:
        """The temperature at this progress, in [0, 1]; where it depends on flow time, that of the mean retention."""
        approach = self._approach(progress)
        return self._cooled(progress) if approach is None else temperature_of(mean_retention(approach))

    def profile(self, progress: float) -> Profile | None:
        """The retention as a function of flow time; None where it doesn't depend on it."""
        return None if isinstance(self.end, Constant) else self._approach(progress)

    def _approach(self, progress: float) -> _Approach | None:
        if self.end is None:
            return None
        return _Approach(self.end, retention(self._cooled(progress)), min(progress / self.ramp, 1.0))

    @abstractmethod
    def _cooled(self, progress: float) -> float:
        """The temperature of the cooling itself."""


class _CoolingToZero(_Cooling):
    """Shared by those whose cooling is exactly 0 from ``zero_from`` on."""

    def __init__(self, zero_from: float, end: Profile | float | None, ramp: float) -> None:
        super().__init__(end, ramp)
        self.zero_from = zero_from

    def _cooled(self, progress: float) -> float:
        return 0.0 if progress >= self.zero_from else self._warm(progress)

    @abstractmethod
    def _warm(self, progress: float) -> float:
        """The temperature before ``zero_from``."""


class Exponential(_CoolingToZero):
    """Exponential cooling: start exp(-rate s), and exactly 0 from ``zero_from`` on, where the anchor costs nothing.

    Args:
        start: temperature at s = 0.
        rate: e-folds over a whole run.
        zero_from: progress from which the temperature of the cooling is 0.
        end: the retention to end at, a number or a profile in flow time; null for zero. Below 0 the run goes past the
            target drift, above 0 it keeps a share of the pretrained one.
        ramp: progress from which all of the end's negative part counts.

    Reference: Gradual Fine-Tuning for Flow Matching Models, arXiv:2601.22495 (annealed temperature); the default
    constants are gftkit's.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "exponential", start=2.0)
        >>> schedule.temperature(0.0), schedule.temperature(0.95)
        (2.0, 0.0)
    """

    def __init__(
        self,
        start: Temperature = 4.0,
        rate: Temperature = 6.0,
        zero_from: Share = 0.9,
        end: Profile | Retention | None = None,
        ramp: Share = 0.6,
    ) -> None:
        super().__init__(zero_from, end, ramp)
        self.start, self.rate = start, rate

    def _warm(self, progress: float) -> float:
        return self.start * math.exp(-self.rate * progress)


class LinearCooling(_CoolingToZero):
    """Linear cooling: start (1 - s/zero_from), then exactly 0.

    Args:
        start: temperature at s = 0.
        zero_from: progress from which the temperature of the cooling is 0.
        end: the retention to end at, a number or a profile in flow time; null for zero. Below 0 the run goes past the
            target drift, above 0 it keeps a share of the pretrained one.
        ramp: progress from which all of the end's negative part counts.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("schedule", "linear").temperature(0.45)
        2.0
    """

    def __init__(
        self,
        start: Temperature = 4.0,
        zero_from: Share = 0.9,
        end: Profile | Retention | None = None,
        ramp: Share = 0.6,
    ) -> None:
        super().__init__(zero_from, end, ramp)
        self.start = start

    def _warm(self, progress: float) -> float:
        return self.start * (1 - progress / self.zero_from)


class CosineCooling(_CoolingToZero):
    """Cosine cooling: (start/2)(1 + cos(pi s/zero_from)), then exactly 0.

    Args:
        start: temperature at s = 0.
        zero_from: progress from which the temperature of the cooling is 0.
        end: the retention to end at, a number or a profile in flow time; null for zero. Below 0 the run goes past the
            target drift, above 0 it keeps a share of the pretrained one.
        ramp: progress from which all of the end's negative part counts.

    Example:
        >>> import gftkit
        >>> round(gftkit.load().create("schedule", "cosine").temperature(0.45), 12)
        2.0
    """

    def __init__(
        self,
        start: Temperature = 4.0,
        zero_from: Share = 0.9,
        end: Profile | Retention | None = None,
        ramp: Share = 0.6,
    ) -> None:
        super().__init__(zero_from, end, ramp)
        self.start = start

    def _warm(self, progress: float) -> float:
        return self.start / 2 * (1 + math.cos(math.pi * progress / self.zero_from))


class Inverse(_CoolingToZero):
    """Hyperbolic cooling: start/(1 + rate s), and exactly 0 from ``zero_from`` on.

    Args:
        start: temperature at s = 0.
        rate: how fast it cools; the temperature has halved at s = 1/rate.
        zero_from: progress from which the temperature of the cooling is 0.
        end: the retention to end at, a number or a profile in flow time; null for zero. Below 0 the run goes past the
            target drift, above 0 it keeps a share of the pretrained one.
        ramp: progress from which all of the end's negative part counts.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("schedule", "inverse").temperature(0.025)
        2.0
    """

    def __init__(
        self,
        start: Temperature = 4.0,
        rate: Temperature = 40.0,
        zero_from: Share = 0.9,
        end: Profile | Retention | None = None,
        ramp: Share = 0.6,
    ) -> None:
        super().__init__(zero_from, end, ramp)
        self.start, self.rate = start, rate

    def _warm(self, progress: float) -> float:
        return self.start / (1 + self.rate * progress)


class Stepwise(_Cooling):
    """A fixed temperature in each of equal parts of the run.

    Args:
        temperatures: one for each part, never rising.
        end: the retention to end at, a number or a profile in flow time; null for that of the last part.
        ramp: progress from which all of the end's negative part counts.

    Raises:
        ValueError: for temperatures that rise.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "stepwise")
        >>> [schedule.temperature(s) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [4.0, 1.0, 0.25, 0.0, 0.0]
    """

    def __init__(
        self,
        temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1)] = (4.0, 1.0, 0.25, 0.0),
        end: Profile | Retention | None = None,
        ramp: Share = 0.6,
    ) -> None:
        super().__init__(end, ramp)
        if any(later > earlier for earlier, later in itertools.pairwise(temperatures)):
            raise ValueError(f"temperatures: wanted numbers that never rise, got {list(temperatures)}. Sort them.")
        self.temperatures = temperatures
        self._starts = [part / len(temperatures) for part in range(len(temperatures))]

    def _cooled(self, progress: float) -> float:
        return self.temperatures[bisect.bisect_right(self._starts, progress) - 1]


class ConstantTemperature:
    """One temperature for the whole run: the optimum keeps a share beta/(1 + beta) of the pretrained drift.

    Args:
        value: the temperature, which is also the schedule's floor.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("schedule", "constant", value=0.5).temperature(0.9)
        0.5
    """

    def __init__(self, value: Annotated[float, Field(gt=-1)] = 0.3) -> None:
        self.value = self.floor = value

    def temperature(self, progress: float) -> float:  # noqa: ARG002
        """The temperature at this progress, in [0, 1]."""
        return self.value


class Zero(ConstantTemperature):
    """Temperature 0 throughout: plain flow matching fine-tuning, without an anchor.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("schedule", "zero").temperature(0.0)
        0.0
    """

    def __init__(self) -> None:
        super().__init__(0.0)


@gftkit.hookimpl
def gftkit_schedules() -> dict[str, type]:
    """The built-in schedules."""
    return {
        "adaptive": Adaptive,
        "constant": ConstantTemperature,
        "cosine": CosineCooling,
        "exponential": Exponential,
        "gradual": Gradual,
        "inverse": Inverse,
        "linear": LinearCooling,
        "recorded": Recorded,
        "stepwise": Stepwise,
        "zero": Zero,
    }
