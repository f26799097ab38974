"""Every registered time grid places as many times as it is asked for, increasing from 0 to 1."""

import itertools
from collections.abc import Callable, Sequence

from torch import Generator

from gftkit.kernel.contracts import TimeGrid
from gftkit.verify.claims import exact
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.testbeds.components import each_registered

STEPS = (1, 2, 3, 7, 50, 1000)

Times = Callable[[int], Sequence[float]]
"""A number of steps -> the times between and around them."""


def _slips(grid: TimeGrid) -> dict[str, Times]:
    return {
        "from data to source": lambda steps: list(grid.times(steps))[::-1],
        "last time dropped": lambda steps: list(grid.times(steps))[:-1],
        "ends short of 1": lambda steps: [0.99 * t for t in grid.times(steps)],
        "starts late": lambda steps: [0.01 + 0.99 * t for t in grid.times(steps)],
        "a time twice": lambda steps: [*grid.times(steps), 1.0],
    }


@claim_for_each(
    each_registered("grid"),
    "grid-times-{name}",
    statement="N steps have N + 1 times, which increase from 0 to 1.",
    reference="gftkit.kernel.contracts.TimeGrid",
    subject=lambda grid: grid.times,
    bound=exact(),
    mutants=_slips,
    conditions=f"{', '.join(map(str, STEPS))} steps",
    component="grid:{name}",
    seeds=1,
)
def grid_errors(times: Times, generator: Generator) -> float:  # noqa: ARG001
    """The number of errors of a grid: in its number of times, in its ends, and in each step that isn't forward."""
    errors = 0
    for steps in STEPS:
        placed = times(steps)
        errors += len(placed) != steps + 1
        errors += placed[0] != 0
        errors += placed[-1] != 1
        errors += sum(not earlier < later for earlier, later in itertools.pairwise(placed))
    return float(errors)
