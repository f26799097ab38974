"""The schedule ``adaptive``: cools as fast as the model follows, and ends the run in time."""

import math
from collections.abc import Mapping
from typing import Annotated, Any, Literal

from pydantic import Field

from gftkit.kernel import ConfigError, StoppingRule
from gftkit.theory import retention
from gftkit_plugins.stops import CopyingStop

LAG = 0.1
"""Share of the way to an optimum that may be missing where a run has arrived there."""


class Adaptive:
    """Cooling by the run's own evidence: as soon as it has arrived at a temperature, and no faster than it follows.

    At every evaluation the monitor ``theory`` measures, on training targets with fresh source samples, times and
    noise, the share s = 1 + T/((1 - rho) P) of the way from the pretrained drift to the optimum b_beta that the drift
    has come (``reached``). The temperature stays until that is at least 0.9 and P, the way made, is above twice its
    standard error: a run that doesn't arrive isn't cooled. Then it falls to the lowest one at which the run will have
    arrived again by the next evaluation. With c = 1 - s (1 - rho) the share of the gap that is left, T13 says that
    c - rho falls by one factor q between evaluations; it is measured as the least of 1 and what c - rho fell by since
    the temperature was set, for each evaluation. So q (c - rho') <= 0.1 (1 - rho') gives
    rho' = (q c - 0.1)/(q - 0.1), or 0 where that is negative or q <= 0.1.

    A run that doesn't arrive in time is cooled all the same: the retention is at most that of ``start`` times
    2 (1 - s/``deadline``), s the progress, so that the temperature is 0 from ``deadline`` on. After that the run is
    plain fine-tuning: what it still lacks, it makes up as a plain run with the steps that are left (T13).

    The run ends where ``stop`` says so. The rule hears only evaluations after which the temperature can't fall any
    further: of a warm run, whose optimum isn't the target, neither near samples nor a standstill mean anything.

    With ``evidence: held-out`` the monitor's numbers on held-out pairs count, too. By T15 the best retention of
    the fit is ``E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2``, which is 1 - 1/s with s measured there
    (``held_out_reached``). While that is above 0 by more than two standard errors the temperature isn't cooled below
    it; where it is so far above the retention that the run has, the drift has gone beyond what held-out data bear, and
    the temperature steps back to it, whatever the deadline. So a run may end above temperature 0. The schedule
    ``recorded`` applies what was chosen to all of the data.

    Args:
        start: temperature at the start, which is never exceeded.
        stop: the rule that ends the run; null for ``{name: copying}``.
        evidence: "samples" holds out nothing; "held-out" needs ``evaluate.data``, held out for this choice and not
            for the final judgement.
        deadline: progress from which the temperature is 0 unless held-out evidence keeps it up.

    Raises:
        ConfigError: for ``evidence: held-out`` in a run that holds out nothing.

    Reference: theory, T7, T13, T15 and section 5; arXiv:2601.22495.

    Example:
        >>> import gftkit
        >>> schedule = gftkit.load().create("schedule", "adaptive")
        >>> made = {"towards_target": 2.0, "towards_target_stderr": 0.1}
        >>> for reached in (0.0, 0.6, 0.91):
        ...     schedule.observe(0.1, {"theory": {**made, "reached": reached}})
        ...     print(round(schedule.temperature(0.1), 3))
        4.0
        4.0
        3.268
    """

    floor = 0.0

    def __init__(
        self,
        start: Annotated[float, Field(gt=0)] = 4.0,
        stop: StoppingRule | None = None,
        evidence: Literal["samples", "held-out"] = "samples",
        deadline: Annotated[float, Field(gt=0, le=1)] = 0.5,
    ) -> None:
        self.start, self.evidence, self.deadline = start, evidence, deadline
        self.stop = CopyingStop() if stop is None else stop
        self.retention = retention(start)
        self.least = 0.0
        self.left = 1.0
        self.waited = 0

    @property
    def needs(self) -> tuple[str, ...]:
        """Monitors: theory, and those of the stopping rule."""
        return tuple(dict.fromkeys(("theory", *self.stop.needs)))

    @property
    def done(self) -> bool:
        """True where the stopping rule ends the run."""
        return self.stop.done

    @property
    def reason(self) -> str:
        """The stopping rule's reason, and the temperature at the end."""
        return f"{self.stop.reason} The temperature was {self.temperature(1.0):.4g}." if self.done else ""

    def temperature(self, progress: float) -> float:
        """The temperature at this progress: that of the last evaluation, or what the deadline leaves of it."""
        rho = self._in_time(progress)
        return min(self.start, rho / (1 - rho))

    def _in_time(self, progress: float) -> float:
        """The retention at this progress, which only held-out evidence keeps above the deadline's bound."""
        bound = 2 * retention(self.start) * max(0.0, 1 - progress / self.deadline)
        return min(self.retention, max(bound, self.least))

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Cool where the run has arrived; step back where it has gone beyond what held-out data bear."""
        best, surely = self._best(measurements["theory"]) if self.evidence == "held-out" else (0.0, 0.0)
        now = self._in_time(progress)
        settled = now <= best
        if progress > 0:
            self._follow(measurements["theory"], now, best)
        self.least = min(best, now)
        if surely > now:  # by two standard errors: noise alone doesn't raise the temperature
            self.retention, self.least, self.left, self.waited = best, best, best, 0
        if settled:
            self.stop.observe(progress, measurements)

    def _follow(self, measured: Mapping[str, Any], rho: float, least: float) -> None:
        """Take up how far the run has come since the retention was set, and cool it from rho, not below ``least``.

        ``left`` is the share of the gap that was left then, and ``waited`` counts the evaluations since.
        """
        self.waited += 1
        way, error, reached = (measured[key] for key in ("towards_target", "towards_target_stderr", "reached"))
        if rho == 0 or not way > 2 * error or not reached >= 1 - LAG:
            return
        now = 1 - reached * (1 - rho)
        rate = remaining_lag(self.left - self.retention, now - rho) ** (1 / self.waited)
        self.retention, self.left, self.waited = min(rho, max(least, lowest_retention(rate, now))), now, 0

    def _best(self, measured: Mapping[str, Any]) -> tuple[float, float]:
        """The best retention by held-out pairs, and what it surely is at least; 0 where that isn't above 0."""
        if "held_out_reached" not in measured:
            raise ConfigError(
                "schedule: adaptive with `evidence: held-out` requires held-out pairs, and this run has none. Set "
                "evaluate.data, for example to a part of the training data that `skip` leaves out, and a coupling "
                "other than a transport map, such as semidiscrete; or leave `evidence` out."
            )
        reached, error = measured["held_out_reached"], measured["held_out_reached_stderr"]
        if not reached > 0 or not math.isfinite(error):
            return 0.0, 0.0
        best = 1 - 1 / reached
        surely = best - 2 * error / reached**2
        return (min(best, retention(self.start)), surely) if surely > 0 else (0.0, 0.0)

    def state_dict(self) -> dict[str, Any]:
        """The schedule's state and the stopping rule's."""
        numbers = {"rho": self.retention, "least": self.least, "left": self.left, "waited": self.waited}
        return {**numbers, "stop": dict(self.stop.state_dict())}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take it up."""
        self.retention, self.least, self.left = (float(state[name]) for name in ("rho", "least", "left"))
        self.waited = int(state["waited"])
        self.stop.load_state_dict(state["stop"])


def remaining_lag(before: float, now: float) -> float:
    """The share of a lag that is left, in [0, 1]; 1 where there was none to begin with.

    Example:
        >>> remaining_lag(0.4, 0.1), remaining_lag(0.4, -0.1), remaining_lag(0.0, 0.1)
        (0.25, 0.0, 1.0)
    """
    return min(max(now, 0.0) / before, 1.0) if before > 0 else 1.0


def lowest_retention(rate: float, left: float) -> float:
    """The lowest retention whose lag, q (c - rho), will be at most 0.1 (1 - rho) after one more evaluation.

    Args:
        rate: q, the share of a lag that is left after an evaluation, in [0, 1].
        left: c, the share of the gap that is left now.

    Example:
        >>> round(lowest_retention(0.5, 0.6), 12), lowest_retention(0.1, 0.9), round(lowest_retention(1.0, 0.6), 3)
        (0.5, 0.0, 0.556)
    """
    if rate <= LAG or rate * left <= LAG:
        return 0.0
    rho = (rate * left - LAG) / (rate - LAG)
    return rho if math.isfinite(rho) else 0.0
