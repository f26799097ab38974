"""What listens to a run: a schedule with feedback and a rule that may end it, fed by the monitors."""

from collections.abc import Mapping, Sequence
from typing import Any

from gftkit.kernel.contracts import Schedule, StoppingRule
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.theory.temperature import ROUND_OFF, has_feedback, temperature_at

Measurements = Mapping[str, Mapping[str, Any]]
"""What each monitor measured at an evaluation, by the monitor's name."""


class Feedback:
    """The listeners of a run.

    Args:
        schedule: of the run, with feedback or without, or None.
        stop: the rule that may end the run, or None.
        name: of the schedule, for errors.
        steps: of the run.
    """

    def __init__(self, schedule: Schedule | None, stop: StoppingRule | None, name: str, steps: int) -> None:
        self._schedule, self._name, self._steps = schedule, name, steps
        self.listeners: dict[str, Any] = {"schedule": schedule} if has_feedback(schedule) else {}
        if stop is not None:
            self.listeners["stop"] = stop
        self._start = temperature_at(schedule, name, 0, steps) if schedule is not None else 0.0

    def hear(self, step: int, measurements: Measurements) -> None:
        """Tell every listener what was measured after a step.

        Raises:
            ConfigError: for a temperature above the start's, or one that is negative, not finite, or no number.
        """
        for listener in self.listeners.values():
            listener.observe(step / self._steps, measurements)
        if "schedule" not in self.listeners:
            return
        assert self._schedule is not None  # it is among the listeners
        beta = temperature_at(self._schedule, self._name, min(step, self._steps - 1), self._steps)
        if beta > self._start * (1 + ROUND_OFF):
            raise ConfigError(
                f"schedule '{self._name}' rises above its start after step {step}, from {self._start:.4g} to "
                f"{beta:.4g}. With feedback a temperature may step back up to its start, not beyond."
            )

    @property
    def done(self) -> bool:
        """Whether one of them ends the run."""
        return any(listener.done for listener in self.listeners.values())

    @property
    def reason(self) -> str:
        """Why it ends, in words; empty before."""
        return " ".join(listener.reason for listener in self.listeners.values() if listener.done)

    def state(self) -> dict[str, Any]:
        """What a checkpoint keeps of them."""
        return {name: dict(listener.state_dict()) for name, listener in self.listeners.items()}

    def restore(self, states: Mapping[str, Any], where: object) -> None:
        """Put back what ``state`` gave.

        Raises:
            RunError: where it is missing, or can't be taken up.
        """
        for name, listener in self.listeners.items():
            try:
                listener.load_state_dict(states[name])
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(f"{where}: it doesn't hold what the {name} has observed ({error!r}).") from error


def by_monitor(lines: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The measurements among the lines of a log to be."""
    found = [values for kind, values in lines if kind == "monitor"]
    return {values["monitor"]: {key: held for key, held in values.items() if key != "monitor"} for values in found}
