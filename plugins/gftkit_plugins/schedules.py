"""Temperature schedules: functions of progress s, the share of training done."""

import bisect
import itertools
import math
from abc import ABC, abstractmethod
from typing import Annotated

from pydantic import Field

import gftkit
from gftkit_plugins.adaptive import Adaptive
from gftkit_plugins.recorded import Recorded

Temperature = Annotated[float, Field(ge=0)]
Share = Annotated[float, Field(gt=0, le=1)]


class _Schedule(ABC):
    """Shared by the schedules that cool to zero: exactly 0 from ``zero_from`` on."""

    floor = 0.0
    zero_from: float

    def temperature(self, progress: float) -> float:
        """The temperature at this progress, in [0, 1]."""
        return 0.0 if progress >= self.zero_from else self._warm(progress)

    @abstractmethod
    def _warm(self, progress: float) -> float:
        """The temperature before ``zero_from``."""


class Exponential(_Schedule):
    """Exponential cooling: start exp(-rate s), and exactly 0 from ``zero_from`` on, where the anchor costs nothing.

    Args:
        start: temperature at s = 0.
        rate: e-folds over a whole run.
        zero_from: progress from which the temperature is 0.

    Reference: Gradual Fine-Tuning for Flow Matching Models, arXiv:2601.22495 (annealed temperature); the default
    constants are gftkit's.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "exponential", start=2.0)
        >>> schedule.temperature(0.0), schedule.temperature(0.95)
        (2.0, 0.0)
    """

    def __init__(self, start: Temperature = 4.0, rate: Temperature = 6.0, zero_from: Share = 0.9) -> None:
        self.start, self.rate, self.zero_from = start, rate, zero_from

    def _warm(self, progress: float) -> float:
        return self.start * math.exp(-self.rate * progress)


class LinearCooling(_Schedule):
    """Linear cooling: start (1 - s/zero_from), then exactly 0.

    Args:
        start: temperature at s = 0.
        zero_from: progress from which the temperature is 0.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("schedule", "linear").temperature(0.45)
        2.0
    """

    def __init__(self, start: Temperature = 4.0, zero_from: Share = 0.9) -> None:
        self.start, self.zero_from = start, zero_from

    def _warm(self, progress: float) -> float:
        return self.start * (1 - progress / self.zero_from)


class CosineCooling(_Schedule):
    """Cosine cooling: (start/2)(1 + cos(pi s/zero_from)), then exactly 0.

    Args:
        start: temperature at s = 0.
        zero_from: progress from which the temperature is 0.

    Example:
        >>> import gftkit
        >>> round(gftkit.load().create("schedule", "cosine").temperature(0.45), 12)
        2.0
    """

    def __init__(self, start: Temperature = 4.0, zero_from: Share = 0.9) -> None:
        self.start, self.zero_from = start, zero_from

    def _warm(self, progress: float) -> float:
        return self.start / 2 * (1 + math.cos(math.pi * progress / self.zero_from))


class Inverse(_Schedule):
    """Hyperbolic cooling: start/(1 + rate s), and exactly 0 from ``zero_from`` on.

    Args:
        start: temperature at s = 0.
        rate: how fast it cools; the temperature has halved at s = 1/rate.
        zero_from: progress from which the temperature is 0.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("schedule", "inverse").temperature(0.025)
        2.0
    """

    def __init__(self, start: Temperature = 4.0, rate: Temperature = 40.0, zero_from: Share = 0.9) -> None:
        self.start, self.rate, self.zero_from = start, rate, zero_from

    def _warm(self, progress: float) -> float:
        return self.start / (1 + self.rate * progress)


class Stepwise:
    """A fixed temperature in each of equal parts of the run.

    Args:
        temperatures: one for each part, never rising.

    Raises:
        ValueError: for temperatures that rise.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "stepwise")
        >>> [schedule.temperature(s) for s in (0.0, 0.25, 0.5, 0.75, 1.0)]
        [4.0, 1.0, 0.25, 0.0, 0.0]
    """

    def __init__(
        self, temperatures: Annotated[tuple[Temperature, ...], Field(min_length=1)] = (4.0, 1.0, 0.25, 0.0)
    ) -> None:
        if any(later > earlier for earlier, later in itertools.pairwise(temperatures)):
            raise ValueError(f"temperatures: wanted numbers that never rise, got {list(temperatures)}. Sort them.")
        self.temperatures = temperatures
        self.floor = temperatures[-1]
        self._starts = [part / len(temperatures) for part in range(len(temperatures))]

    def temperature(self, progress: float) -> float:
        """The temperature at this progress, in [0, 1]."""
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

    def __init__(self, value: Temperature = 0.3) -> None:
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
        "inverse": Inverse,
        "linear": LinearCooling,
        "recorded": Recorded,
        "stepwise": Stepwise,
        "zero": Zero,
    }
