"""The schedule ``adaptive``: cools when the run has arrived at its temperature's optimum, and ends it in time."""

from collections.abc import Mapping
from typing import Annotated, Any

from pydantic import Field

from gftkit.contracts import StoppingRule
from gftkit.objective import retention
from gftkit_plugins.stops import CopyingStop

ARRIVED = 0.9
"""Share of the way to the optimum from which on a run has arrived there."""


class Adaptive:
    """Cooling by the run's own evidence: the next temperature when the model has arrived at this one's optimum.

    The share rho = beta/(1 + beta) that is kept of the pretrained drift falls from its start to 0 in ``stages`` equal
    steps, so that the optima are equally far apart (T8). At every evaluation the monitor ``theory`` measures, on
    training targets with fresh source samples, times and noise, how far the drift has come from the pretrained one to
    b_beta: ``reached`` = 1 + T/((1 - rho) P). The next stage begins when that is at least 0.9 and the way made so far,
    P, is above twice its standard error. So a step begins when the lag that the last one made has fallen to a tenth:
    the model is followed at the speed at which it learns (T13), and one that doesn't arrive isn't cooled.

    The run ends where ``stop`` says so, at whatever temperature it then has; by default ``{name: copying}``.

    Args:
        start: temperature at the start, which is never exceeded.
        stages: steps from there to temperature 0.
        stop: the rule that ends the run; null for ``copying``.

    Reference: theory, T8, T13 and section 5; arXiv:2601.22495.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "adaptive", stages=2)
        >>> there = {"reached": 1.0, "towards_target": 2.0, "towards_target_stderr": 0.1}
        >>> short = {**there, "reached": 0.6}
        >>> for found in (short, there):
        ...     schedule.observe(0.1, {"theory": found, "memorisation": {"distance_ratio": 2.0}})
        ...     print(round(schedule.temperature(0.1), 3))
        4.0
        0.667
    """

    floor = 0.0

    def __init__(
        self,
        start: Annotated[float, Field(gt=0)] = 4.0,
        stages: Annotated[int, Field(gt=0)] = 4,
        stop: StoppingRule | None = None,
    ) -> None:
        self.start, self.stages = start, stages
        self.stop = CopyingStop() if stop is None else stop
        self.stage = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Monitors: theory, and those of the stopping rule."""
        return ("theory", *self.stop.needs)

    @property
    def done(self) -> bool:
        """Whether the stopping rule ends the run."""
        return self.stop.done

    @property
    def reason(self) -> str:
        """Why, and at which temperature."""
        return f"{self.stop.reason} The temperature was {self.temperature(1.0):.4g}." if self.done else ""

    def temperature(self, progress: float) -> float:  # noqa: ARG002
        """beta since the last evaluation, whatever the progress."""
        rho = retention(self.start) * (1 - self.stage / self.stages)
        return self.start if self.stage == 0 else rho / (1 - rho)

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Cool where the run has arrived."""
        if self.stage < self.stages and arrived(measurements["theory"]):
            self.stage += 1
        self.stop.observe(progress, measurements)

    def state_dict(self) -> dict[str, Any]:
        """The stage, and what the stopping rule remembers."""
        return {"stage": self.stage, "stop": dict(self.stop.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.stage = int(state["stage"])
        self.stop.load_state_dict(state["stop"])


def arrived(measured: Mapping[str, Any]) -> bool:
    """Whether a drift has arrived at its temperature's optimum, by what the monitor ``theory`` measured."""
    made, error = measured["towards_target"], measured["towards_target_stderr"]
    return bool(made > 2 * error and measured["reached"] >= ARRIVED)
