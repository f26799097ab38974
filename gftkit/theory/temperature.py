"""The temperature of each step of a run: one number, or a profile in flow time."""

import itertools
import math

import torch
from torch import Tensor

from gftkit.kernel.contracts import Profile, Schedule
from gftkit.kernel.errors import ConfigError
from gftkit.theory.objective import retention, temperature_of

ROUND_OFF = 1e-9
"""Rises up to this, relative to the temperature before, are no rises."""

TIMES = (torch.arange(512, dtype=torch.float64) + 0.5) / 512
"""Flow times at which a profile is checked and averaged: the middles of equal parts of [0, 1]."""

TRIED = 2000
"""Most steps at which a schedule's profile is checked before a run; its temperature is checked at every step."""


def temperature_at(schedule: Schedule, name: str, step: int, steps: int) -> float:
    """The temperature at a step of a run; where it depends on flow time, that of the mean retention.

    Args:
        schedule: gives it, from the progress step/steps.
        name: of the schedule, for errors.
        step: from 0 on.
        steps: of the run.

    Raises:
        ConfigError: for a temperature that is -1 or below, not finite, or no number.

    Example:
        >>> import gftkit
        >>> temperature_at(gftkit.load().create("schedule", "linear"), "linear", 45, 100)
        2.0
    """
    try:
        value = float(schedule.temperature(step / steps))
        retention(value)  # refuses what isn't a temperature
    except (TypeError, ValueError, ArithmeticError) as error:
        raise ConfigError(f"schedule '{name}' at step {step}: {error}") from None
    return value


def profile_at(schedule: Schedule | None, step: int, steps: int) -> Profile | None:
    """The retention as a function of flow time at a step of a run; None where one temperature says it all."""
    profile = getattr(schedule, "profile", None)
    return None if profile is None else profile(step / steps)


def temperatures_of(profile: Profile, t: Tensor) -> Tensor:
    """beta at flow times, (batch,): of ``profile.retention(t)``."""
    return temperature_of(profile.retention(t))


def check_profile(profile: Profile, where: str, times: Tensor = TIMES) -> Tensor:
    """Its retention at flow times, (n,), checked.

    Raises:
        ConfigError: for a retention that isn't finite, isn't below 1, or isn't of t's shape.
    """
    values = profile.retention(times)
    if not isinstance(values, Tensor) or values.shape != times.shape:
        received = tuple(values.shape) if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(f"{where}: wanted one retention for each of {len(times)} flow times, got {received}.")
    bad = ~(torch.isfinite(values) & (values < 1))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ConfigError(
            f"{where}: wanted finite retentions below 1, got {float(values[first]):.4g} at flow time "
            f"{float(times[first]):.3f}. A retention of 1 would keep the pretrained drift whatever the data."
        )
    return values


def mean_retention(profile: Profile) -> float:
    """The mean of a profile over flow times in [0, 1].

    Example:
        >>> import gftkit
        >>> round(mean_retention(gftkit.load().create("profile", "linear", early=-0.2, late=0.4)), 9)
        0.1
    """
    return float(profile.retention(TIMES).mean())


def has_feedback(schedule: Schedule | None) -> bool:
    """True for a schedule with feedback."""
    return schedule is not None and hasattr(schedule, "needs")


def check_schedule(schedule: Schedule, name: str, steps: int) -> list[str]:
    """Evaluate a schedule at every step of a run before the run starts; give warnings.

    One with feedback has its temperature at the start only, before it has observed anything.

    Returns:
        A warning where it rises, or where its retention rises at some flow time.

    Raises:
        ConfigError: for the first step whose temperature is -1 or below, not finite, or no number, and the first whose
            profile ``check_profile`` refuses.
    """
    known = 1 if has_feedback(schedule) else steps
    temperatures = [temperature_at(schedule, name, step, steps) for step in range(known)]
    for step, (before, after) in enumerate(itertools.pairwise(temperatures), 1):
        if after > before + ROUND_OFF * abs(before):
            return [_rise(name, step, steps, f"from {before:.4g} to {after:.4g}", "temperature")]
    return _rising_profile(schedule, name, steps, known)


def _rising_profile(schedule: Schedule, name: str, steps: int, known: int) -> list[str]:
    """A warning where the retention rises at some flow time."""
    tried = range(0, known, math.ceil(known / TRIED))
    profiles = [profile_at(schedule, step, steps) for step in tried]
    if not any(profiles):
        return []
    before: Tensor | None = None
    for step, profile in zip(tried, profiles, strict=True):
        if profile is None:
            now = torch.full_like(TIMES, retention(temperature_at(schedule, name, step, steps)))
        else:
            now = check_profile(profile, f"schedule '{name}' at step {step}")
        if before is not None and bool((now > before + ROUND_OFF).any()):
            place = int((now - before).argmax())
            change = (
                f"from {float(before[place]):.4g} to {float(now[place]):.4g} at flow time {float(TIMES[place]):.2f}"
            )
            return [_rise(name, step, steps, change, "retention")]
        before = now
    return []


def _rise(name: str, step: int, steps: int, change: str, what: str) -> str:
    return (
        f"schedule '{name}' rises at step {step} of {steps}, {change}. A rising {what} moves the drift back towards "
        f"the pretrained one (T8, T13). Gradual Fine-Tuning only cools."
    )
