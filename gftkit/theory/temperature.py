"""The temperature of each step of a run."""

import itertools

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.errors import ConfigError
from gftkit.theory.objective import retention

ROUND_OFF = 1e-9
"""Rises up to this, relative to the temperature before, are no rises."""


def temperature_at(schedule: Schedule, name: str, step: int, steps: int) -> float:
    """The temperature at a step of a run.

    Args:
        schedule: gives it, from the progress step/steps.
        name: of the schedule, for errors.
        step: from 0 on.
        steps: of the run.

    Raises:
        ConfigError: for a temperature that is negative, not finite, or no number.

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


def has_feedback(schedule: Schedule | None) -> bool:
    """True for a schedule with feedback."""
    return schedule is not None and hasattr(schedule, "needs")


def check_schedule(schedule: Schedule, name: str, steps: int) -> list[str]:
    """Evaluate a schedule at every step of a run before the run starts; give warnings.

    One with feedback has its temperature at the start only, before it has observed anything.

    Returns:
        A warning where it rises.

    Raises:
        ConfigError: for the first step whose temperature is negative, not finite, or no number.
    """
    known = 1 if has_feedback(schedule) else steps
    temperatures = [temperature_at(schedule, name, step, steps) for step in range(known)]
    for step, (before, after) in enumerate(itertools.pairwise(temperatures), 1):
        if after > before * (1 + ROUND_OFF):
            return [
                f"schedule '{name}' rises at step {step} of {steps}, from {before:.4g} to {after:.4g}. A rising "
                f"temperature moves the drift back towards the pretrained one (T8, T13). Gradual Fine-Tuning only "
                f"cools."
            ]
    return []
