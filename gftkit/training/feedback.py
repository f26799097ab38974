"""The listeners of a run, a schedule with feedback and a stopping rule, fed by its monitors."""

from collections.abc import Mapping, Sequence
from typing import Any

from gftkit.kernel.contracts import Schedule, StoppingRule
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.theory.temperature import ROUND_OFF, has_feedback, temperature_at

Measurements = Mapping[str, Mapping[str, Any]]
"""The measurements of an evaluation by the name of their monitor."""


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
        """Pass the measurements after a step to every listener.

        Raises:
            ConfigError: for a temperature above the first one, or one that is negative, not finite, or no number.
        """
        for listener in self.listeners.values():
            listener.observe(step / self._steps, measurements)
        if "schedule" not in self.listeners:
            return
        assert self._schedule is not None  # it is among the listeners
        now = temperature_at(self._schedule, self._name, min(step, self._steps - 1), self._steps)
        if now > self._start * (1 + ROUND_OFF):
            raise ConfigError(
                f"schedule '{self._name}' rises above its start after step {step}, from {self._start:.4g} to "
                f"{now:.4g}. A temperature with feedback may rise again, but not above its start."
            )

    @property
    def done(self) -> bool:
        """True where one of them ends the run."""
        return any(listener.done for listener in self.listeners.values())

    @property
    def reason(self) -> str:
        """The reason for the end, in words; empty before."""
        return " ".join(listener.reason for listener in self.listeners.values() if listener.done)

    def state(self) -> dict[str, Any]:
        """The states of the listeners, for a checkpoint."""
        return {name: dict(listener.state_dict()) for name, listener in self.listeners.items()}

    def restore(self, states: Mapping[str, Any], where: object) -> None:
        """Restore what ``state`` returned.

        Raises:
            RunError: where a state is missing, or its listener refuses it.
        """
        for name, listener in self.listeners.items():
            try:
                listener.load_state_dict(states[name])
            except (KeyError, TypeError, ValueError) as error:
                raise RunError(
                    f"{where}: the state of the {name} is missing or damaged ({error!r}). Resume from another "
                    f"checkpoint."
                ) from error


def by_monitor(lines: Sequence[tuple[str, Mapping[str, Any]]]) -> dict[str, dict[str, Any]]:
    """The measurements among the lines for a log."""
    monitored = [values for kind, values in lines if kind == "monitor"]
    return {
        values["monitor"]: {key: value for key, value in values.items() if key != "monitor"} for values in monitored
    }
