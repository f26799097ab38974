"""The way of the optima along a schedule: T8 on closed forms."""

from collections.abc import Sequence
from itertools import pairwise

from torch import Generator

from gftkit.kernel.contracts import Path, Schedule
from gftkit.kernel.registry import Registry
from gftkit.verify import FromRegistry, claim, exact, registered
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.measuring.differences import relative_error
from gftkit_verification.testbeds.problems.moments import FineTune, draw_fine_tunes, rho_of
from gftkit_verification.testbeds.slips.objective import (
    BLENDS,
    CONDITIONS,
    OBJECTIVE,
    SIGN,
    ObjectiveFunctions,
    objective_slips,
)

REHEATED = (10.0, 0.3, 3.0, 0.1, 30.0, 1.0, 0.01)
"""Temperatures that rise and fall."""


def temperature_of(rho: float) -> float:
    """beta of rho; 0 for b_pre itself, whose temperature is infinite."""
    return rho / (1 - rho) if rho < 1 else 0.0


SLIPS = objective_slips(
    step={
        "temperatures for retentions": lambda before, after, gap: (
            abs(after / (1 - after) - temperature_of(before)) * gap
        ),
        "gap squared": lambda before, after, gap: abs(after - before) * gap**2,
        "sum for difference": lambda before, after, gap: (after + before) * gap,
    },
    blend={**BLENDS, **SIGN},
)


def step_lengths(
    problem: FineTune, functions: ObjectiveFunctions, temperatures: Sequence[float]
) -> tuple[float, list[float]]:
    """The worst difference of a step's length from its prediction, and the way's lengths, relative to the gap."""
    drifts = [problem.b_pre, *(functions.blend(problem.b_tgt, problem.b_pre, beta) for beta in temperatures)]
    rhos = [1.0, *map(rho_of, temperatures)]
    lengths = [problem.norm(after - before) / problem.gap for before, after in pairwise(drifts)]
    predicted = [functions.step(before, after, problem.gap) / problem.gap for before, after in pairwise(rhos)]
    return max(abs(length - expected) for length, expected in zip(lengths, predicted, strict=True)), lengths


def detour(problem: FineTune, functions: ObjectiveFunctions, beta: float) -> float:
    """The length of the way from b_pre to b_tgt over b_beta beyond the gap, relative to it."""
    optimum = functions.blend(problem.b_tgt, problem.b_pre, beta)
    return (problem.norm(optimum - problem.b_pre) + problem.norm(optimum - problem.b_tgt)) / problem.gap - 1


def every_schedule(registry: Registry) -> list[Schedule]:
    """The registered schedules, with default options."""
    return [schedule for _, schedule in components(registry, "schedule")]


@claim(
    "T08-gradual-steps-gaussian",
    statement=(
        "Successive optima are |rho_(k+1) - rho_k| |Delta| apart on one straight segment; from b_pre along a monotone "
        "schedule the steps add up to (1 - rho_K) |Delta|."
    ),
    reference="theory, T8",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=SLIPS,
    seeds=1,
    conditions=f"Every registered schedule at 17 times. {CONDITIONS}",
    uses={"path": registered("path", "linear"), "schedules": FromRegistry(every_schedule)},
)
def way_of_schedules(
    functions: ObjectiveFunctions, generator: Generator, *, path: Path, schedules: list[Schedule]
) -> float:
    """Every step along every registered schedule; a monotone one's add up; each optimum lies on the segment."""
    progress = [k / 16 for k in range(17)]
    worst = 0.0
    for problem in draw_fine_tunes(path, generator):
        for schedule in schedules:
            temperatures = [schedule.temperature(s) for s in progress]
            difference, lengths = step_lengths(problem, functions, temperatures)
            rhos = [1.0, *map(rho_of, temperatures)]
            monotone = all(after <= before for before, after in pairwise(rhos))
            of_sum = abs(sum(lengths) - (1 - rhos[-1])) if monotone else 0.0
            detours = (detour(problem, functions, beta) for beta in temperatures)
            worst = max(worst, difference, of_sum, *detours)
    return worst


@claim(
    "T08-reheating-counterexample",
    statement="Along a schedule that isn't monotone the way of the optima is longer, by twice what rho rises.",
    reference="theory, T8",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=SLIPS,
    seeds=1,
    conditions=f"Temperatures 10, 0.3, 3, 0.1, 30, 1, 0.01. {CONDITIONS}",
    uses={"path": registered("path", "linear")},
)
def way_of_reheating(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """Reheating: the way of optima is longer than that of a monotone schedule, by twice what rho rises."""
    rhos = list(map(rho_of, REHEATED))
    rise = sum(max(0.0, after - before) for before, after in pairwise(rhos))
    ways = [step_lengths(problem, functions, REHEATED) for problem in draw_fine_tunes(path, generator)]
    expected = 1 - rhos[-1] + 2 * rise
    return max(max(difference, relative_error(sum(lengths), expected)) for difference, lengths in ways)
