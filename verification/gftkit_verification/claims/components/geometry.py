"""T10 and T11 along the sampler's trajectories: energy, optimal transport and straightness, as gftkit measures."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.geometry import shape as geometry
from gftkit.kernel.contracts import Solver
from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Claim, exact
from gftkit_verification.testbeds.equations import Equation
from gftkit_verification.testbeds.moments import cpu_generator
from gftkit_verification.testbeds.problems import COUPLINGS, draw_flow

STEPS = 24
POINTS = 40
VISIBLE = 1e-3
"""Relative energy above the optimal transport's that is not round-off."""


@dataclass(frozen=True)
class Measures:
    """What is measured of trajectories."""

    energies: Callable[[Tensor, Sequence[float]], Tensor] = geometry.energies
    straightness: Callable[[Tensor, Sequence[float]], Tensor] = geometry.straightness
    transport: Callable[[Tensor, Tensor], float] = lambda x0, x1: (
        geometry.transport_cost(x0, x1, torch.Generator()).value
    )


def least_energy(measures: Measures, solver: Solver, generator: Generator) -> float:
    """The largest relative violation, over the flows of both couplings.

    Of the optimal coupling: how far the energy is from the transport cost, and straightness from 0. Of the other: how
    far the energy is from being visibly above. Of both: how far straightness is from energy - |x_1 - x_0|^2.
    """
    generator = cpu_generator(generator)
    times = [k / STEPS for k in range(STEPS + 1)]
    worst = 0.0
    for d, coupling in itertools.product((2, 5), COUPLINGS):
        flow = draw_flow(d, generator, coupling)

        def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
            return flow.velocity(t, x)  # noqa: B023

        states = Equation(drift).states(solver, STEPS, flow.starts(POINTS, generator), generator)
        order = torch.randperm(POINTS, generator=generator)  # which end is whose isn't told
        energy = float(measures.energies(states, times).mean())
        bent = float(measures.straightness(states, times).mean())
        least = measures.transport(states[0], states[-1][order])
        moved = float((states[-1] - states[0]).square().sum(1).mean())
        worst = max(worst, abs(energy - moved - bent) / moved)
        if coupling == "optimal-transport":
            worst = max(worst, abs(energy / least - 1), bent / moved)
        else:
            worst = max(worst, (1 + VISIBLE) * least / energy - 1)
    return worst


def _nearest(x0: Tensor, x1: Tensor) -> float:
    return float(torch.cdist(x0, x1).square().min(1).values.mean())


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    measures = Measures()
    rk4 = registry.create("solver", "rk4")
    yield Claim(
        name="T10-least-energy-sampled",
        statement=(
            "Along the sampler's trajectories the energy int E|v_t|^2 dt is W2^2 between their starts and ends for the "
            "optimal coupling, above it for the independent one; what is above |x_1 - x_0|^2 is the straightness S."
        ),
        reference="theory, T10 and T11; Liu et al. (2022), section 2.2",
        subject=measures,
        measure=lambda subject, generator: least_energy(subject, rk4, generator),
        bound=exact(),
        mutants={
            "steps forgotten": replace(
                measures,
                energies=lambda states, times: states.diff(dim=0).square().sum((0, 2)),  # noqa: ARG005
            ),
            "speed for its square": replace(
                measures,
                energies=lambda states, times: geometry.lengths(states),  # noqa: ARG005
            ),
            "pairs as they come": replace(measures, transport=lambda x0, x1: float((x1 - x0).square().sum(1).mean())),
            "nearest end": replace(measures, transport=_nearest),
            "distance for its square": replace(
                measures, transport=lambda x0, x1: math.sqrt(geometry.transport_cost(x0, x1, torch.Generator()).value)
            ),
            "straightness without the chord": replace(measures, straightness=geometry.energies),
        },
        conditions=f"normal laws, d = 2 and 5, {POINTS} trajectories of {STEPS} steps of rk4; ends in random order",
        seeds=2,
    )
