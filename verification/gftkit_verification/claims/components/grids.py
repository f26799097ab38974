"""Every registered time grid places as many times as it is asked for, increasing from 0 to 1."""

import itertools
from collections.abc import Callable, Iterator, Sequence

from torch import Generator

from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Claim, exact
from gftkit_verification.testbeds.components import components

STEPS = (1, 2, 3, 7, 50, 1000)

Times = Callable[[int], Sequence[float]]


def wrong(times: Times, generator: Generator) -> float:  # noqa: ARG001
    """How often a grid is wrong: in its number of times, in its ends, and in each step that doesn't go on."""
    found = 0
    for steps in STEPS:
        placed = times(steps)
        found += len(placed) != steps + 1
        found += placed[0] != 0
        found += placed[-1] != 1
        found += sum(not earlier < later for earlier, later in itertools.pairwise(placed))
    return float(found)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    for name, grid in components(registry, "grid"):
        times: Times = grid.times
        yield Claim(
            name=f"grid-times-{name}",
            statement="N steps have N + 1 times, which increase from 0 to 1.",
            reference="gftkit.kernel.contracts.TimeGrid",
            subject=times,
            measure=wrong,
            bound=exact(),
            mutants={
                "from data to source": lambda steps, times=times: list(times(steps))[::-1],
                "last time dropped": lambda steps, times=times: list(times(steps))[:-1],
                "ends short of 1": lambda steps, times=times: [0.99 * t for t in times(steps)],
                "starts late": lambda steps, times=times: [0.01 + 0.99 * t for t in times(steps)],
                "a time twice": lambda steps, times=times: [*times(steps), 1.0],
            },
            conditions=f"{', '.join(map(str, STEPS))} steps",
            component=f"grid:{name}",
            seeds=1,
        )
