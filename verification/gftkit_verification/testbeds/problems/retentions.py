"""Retentions that depend on flow time, from the registered profiles: as a schedule cools to one, and resting."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.contracts import Profile
from gftkit.kernel.registry import Registry
from gftkit.theory.objective import temperature_of
from gftkit.theory.temperature import TIMES, mean_retention, temperatures_of
from gftkit_verification.testbeds.components import components

PROGRESSES = (0.02, 0.3, 1.0)
"""Hot, on the way, and at the end."""

FAR = 0.02
"""Retentions count as different from this difference on, at some flow time."""


@dataclass(frozen=True)
class Retentions:
    """A profile by its function of flow time, (batch,) -> (batch,)."""

    retention: Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Cooling:
    """A schedule's retentions on the way to a registered profile, from hot to the profile itself."""

    profiles: tuple[Retentions, ...]

    @property
    def varies(self) -> bool:
        """True where some retention depends on flow time."""
        return any(_apart(values, values.mean()) for values in self._values)

    @property
    def symmetric(self) -> bool:
        """True where every retention at t is that at 1 - t."""
        return not any(_apart(values, values.flip(0)) for values in self._values)

    @property
    def _values(self) -> list[Tensor]:
        return [profile.retention(TIMES) for profile in self.profiles]


def _apart(values: Tensor, others: Tensor) -> bool:
    return bool(((values - others).abs() > FAR).any())


def cooled_profiles(registry: Registry) -> Iterator[tuple[str, Cooling]]:
    """(name, retentions) of every registered profile, by the shipped schedule ``exponential`` that ends at it."""
    for name, profile in components(registry, "profile"):
        schedule = registry.create("schedule", "exponential", end=profile)
        yield name, Cooling(tuple(Retentions(retentions_of(schedule, s)) for s in PROGRESSES))


def retentions_of(schedule: Any, progress: float) -> Callable[[Tensor], Tensor]:
    """The retentions of a schedule at a progress: its profile's, or that of its one temperature."""
    profile, beta = schedule.profile(progress), schedule.temperature(progress)
    return profile.retention if profile is not None else lambda t: torch.full_like(t, beta / (1 + beta))


@dataclass(frozen=True)
class Resting:
    """A schedule that rests at a profile."""

    end: Profile

    def temperature(self, progress: float) -> float:  # noqa: ARG002
        """That of the mean retention."""
        return temperature_of(mean_retention(self.end))

    def profile(self, progress: float) -> Profile:  # noqa: ARG002
        """The profile."""
        return self.end


Temperatures = Callable[[Profile, Tensor], Tensor]
"""A profile and flow times, (batch,) -> beta, (batch,)."""

SIGN = "the retention's sign"

TEMPERATURE_SLIPS: Mapping[str, Temperatures] = {
    "rho for beta": lambda profile, t: profile.retention(t),
    SIGN: lambda profile, t: temperature_of(-profile.retention(t)),
    "beta for rho": lambda profile, t: temperatures_of(profile, t).clamp(max=20) * (1 + temperatures_of(profile, t)),
}


def temperature_slips(cooling: Cooling) -> dict[str, Temperatures]:
    """Wrong temperatures by flow time, those that are wrong for these retentions."""
    slips = dict(TEMPERATURE_SLIPS)
    if cooling.varies:
        slips["the mean for each flow time"] = lambda profile, t: torch.full_like(
            t, temperature_of(mean_retention(profile))
        )
    if not cooling.symmetric:
        slips["flow time reversed"] = lambda profile, t: temperatures_of(profile, 1 - t)
    return slips
