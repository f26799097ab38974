"""The motion of a run's flow: its geometry along fine trajectories, and the steps that solvers need for it."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from typing import Any

from torch import Tensor

from gftkit.estimation.jackknife import GROUPS
from gftkit.geometry import shape as geometry
from gftkit.geometry.tracing import FINE_STEPS, Flow, Trajectory, squared_distances
from gftkit.kernel.contracts import Estimate
from gftkit.kernel.errors import ConfigError
from gftkit.recording.html import format_number
from gftkit.runtime.randomness import stream
from gftkit.theory.gap import mean_estimate, ratio_estimate, root_estimate

SOLVERS = ("euler", "heun")
MOST_STEPS = 64
"""Most steps that are tried to reach a tolerance."""


@dataclass(frozen=True)
class Cost:
    """The drift evaluations that a solver needs to come near the flow's ends.

    Attributes:
        steps: the smallest number of equal steps that was found to reach the tolerance; None where 64 don't.
        evaluations: of the drift in these steps, for a sample.
        stderr: of the evaluations: the error's relative standard error over the solver's order, to first order.
        each: evaluations in a step.
        errors: steps -> root mean square distance from the flow's ends, over their root mean square spread.
    """

    steps: int | None
    evaluations: int | None
    stderr: float
    each: int
    errors: dict[int, Estimate]


@dataclass(frozen=True)
class Motion:
    """The geometry of a flow, in the scale of training; every error is over trajectories.

    Attributes:
        measures: by name. ``path_length``; ``displacement``, E|x_1 - x_0|^2; ``straightness``; ``kinetic_energy``;
            ``transport_cost``, W2^2 between starts and ends; ``energy_over_transport``; ``acceleration``, the root of
            E int |a|^2 dt; ``turning``, E int |a_perp|/|v| dt in radians.
        times: of the profiles.
        acceleration: the root of E|a_t|^2 at each time.
        turning: E|a_perp|/|v| at each time, in radians for a unit of time.
        costs: by solver.
    """

    measures: dict[str, Estimate]
    times: tuple[float, ...]
    acceleration: list[Estimate]
    turning: list[Estimate]
    costs: dict[str, Cost]

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


def motion(
    flow: Flow,
    tolerance: float = 0.05,
    fine_steps: int = FINE_STEPS,
    seed: int = 0,
    stage: Callable[[str], None] = lambda _: None,
) -> Motion:
    """Measure the geometry of a flow.

    Args:
        flow: with its starts, at least 20.
        tolerance: relative error that solvers have to reach, see ``Cost``.
        fine_steps: of the trajectories.
        seed: of the groups for standard errors of transport costs.
        stage: called with the name of each stage.

    Raises:
        ConfigError: for fewer starts or fine steps, or a tolerance that isn't positive.
        DivergenceError: where a state is not finite.
    """
    if len(flow.x0) < GROUPS:
        raise ConfigError(f"count: wanted at least {GROUPS} trajectories, for standard errors, got {len(flow.x0)}.")
    if fine_steps < 2:
        raise ConfigError(f"fine_steps: wanted at least 2, for accelerations, got {fine_steps}.")
    if not tolerance > 0:
        raise ConfigError(f"tolerance: wanted a positive share of the spread of the ends, got {tolerance}.")
    stage("fine trajectories")
    traced = flow.trajectory(fine_steps)
    a = geometry.accelerations(traced.velocities, traced.times)
    turning = geometry.turning_rates(traced.velocities, a)
    squares = a.flatten(2).square().sum(2)  # (times, n)
    stage("transport")
    measures = {
        **_state_measures(traced, seed),
        "acceleration": root_estimate(mean_estimate(geometry.over_time(squares, traced.times))),
        "turning": mean_estimate(geometry.over_time(turning, traced.times)),
    }
    return Motion(
        measures=measures,
        times=traced.times,
        acceleration=[root_estimate(mean_estimate(each)) for each in squares],
        turning=[mean_estimate(each) for each in turning],
        costs={name: cost(flow, name, traced.states[-1], tolerance, stage) for name in SOLVERS},
    )


def _state_measures(traced: Trajectory, seed: int) -> dict[str, Estimate]:
    states, times = traced.states, traced.times
    energy, ends = geometry.energies(states, times), (states[0], states[-1])
    return {
        "path_length": mean_estimate(geometry.lengths(states)),
        "displacement": mean_estimate(geometry.displacements(states)),
        "straightness": mean_estimate(geometry.straightness(states, times)),
        "kinetic_energy": mean_estimate(energy),
        "transport_cost": geometry.transport_cost(*ends, stream(seed, "transport")),
        "energy_over_transport": geometry.energy_over_transport(energy, *ends, stream(seed, "transport")),
    }


def cost(
    flow: Flow, solver: str, ends: Tensor, tolerance: float, stage: Callable[[str], None] = lambda _: None
) -> Cost:
    """The evaluations that a solver needs to come within a tolerance of the flow's ends, from the same starts.

    Steps are doubled from 1 to 64, and the smallest number is found by halving between the first that is near enough
    and the one before: it is the smallest where errors fall with more steps.

    Args:
        flow: with its starts.
        solver: by name, of ODEs.
        ends: the flow's, (n, *event).
        tolerance: of the relative error.
        stage: called with the name of each stage.
    """
    built = flow.registry.create("solver", solver)
    spread = squared_distances(ends, ends.mean(0))
    errors: dict[int, Estimate] = {}

    def near(steps: int) -> bool:
        stage(f"{solver}, {steps} steps")
        errors[steps] = root_estimate(ratio_estimate(squared_distances(flow.ends(built, steps), ends), spread))
        return errors[steps].value <= tolerance

    doubled = [2**k for k in range(MOST_STEPS.bit_length())]
    reached = [steps for steps in doubled if near(steps)]  # all of them: pictures show the whole curve
    each = getattr(built, "evaluations", 1)
    if not reached:
        return Cost(None, None, math.nan, each, errors)
    enough = reached[0]
    short = enough // 2
    while enough - short > 1:
        middle = (short + enough) // 2
        short, enough = (short, middle) if near(middle) else (middle, enough)
    evaluations = enough * each
    error = errors[enough]
    relative = error.stderr / error.value if error.value > 0 else 0.0
    stderr = evaluations * relative / built.ode_order
    return Cost(enough, evaluations, stderr, each, dict(sorted(errors.items())))


def motion_table(motions: Sequence[Motion]) -> list[list[str]]:
    """A table of several flows side by side: a measure in each row, a flow in each column after its name."""
    rows = [
        [name, *(format_number(each.measures[name].value, each.measures[name].stderr) for each in motions)]
        for name in motions[0].measures
    ]
    for solver in motions[0].costs:
        costs = [each.costs[solver] for each in motions]
        cells = [_evaluations(each) for each in costs]
        rows.append([f"evaluations_{solver}", *cells])
    return rows


def _evaluations(cost: Cost) -> str:
    return f"> {MOST_STEPS} steps" if cost.evaluations is None else format_number(cost.evaluations, cost.stderr)
