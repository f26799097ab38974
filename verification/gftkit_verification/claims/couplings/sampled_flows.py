"""T10 along the sampler's trajectories, of exact flows and of trained drifts: their energy, and where they end."""

import itertools
import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from gftkit.geometry import shape as geometry
from gftkit.kernel.contracts import Coupling, Solver
from gftkit.kernel.registry import Registry
from gftkit.verify import Measurement, claim, claim_for_each, exact, order, registered
from gftkit_verification.oracles import affine
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.loops.fitted_flows import DEGREE, LINEAR, FlowFit, distance_to_target, distant_normals
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.problems.equations import Equation
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips.solvers import SLIPS, AlteredSolver

STEPS = 24
POINTS = 40
VISIBLE = 1e-3
"""Relative energy above the optimal transport's that is not round-off."""
TRAINING = replace(LINEAR, steps=1200, learning_rate=0.3)
"""With fewer or shorter steps some problems' slowest direction is still on its way."""
TOLERANCE = 0.1
"""Relative: what training noise, polynomials in t, discretisation and the samples' moments leave."""


@dataclass(frozen=True)
class Measures:
    """The measures of trajectories."""

    energies: Callable[[Tensor, Sequence[float]], Tensor] = geometry.energies
    straightness: Callable[[Tensor, Sequence[float]], Tensor] = geometry.straightness
    transport: Callable[[Tensor, Tensor], float] = lambda x0, x1: (
        geometry.transport_cost(x0, x1, torch.Generator()).value
    )


MEASURES = Measures()


def nearest_cost(x0: Tensor, x1: Tensor) -> float:
    """The mean squared distance to the nearest end."""
    return float(torch.cdist(x0, x1).square().min(1).values.mean())


@claim(
    "T10-least-energy-sampled",
    statement=(
        "Along the sampler's trajectories the energy int E|v_t|^2 dt is W2^2 between their starts and ends for the "
        "optimal coupling, above it for the independent one; what is above |x_1 - x_0|^2 is the straightness S."
    ),
    reference="theory, T10 and T11; Liu et al. (2022), section 2.2",
    subject=MEASURES,
    bound=exact(),
    mutants={
        "steps forgotten": replace(
            MEASURES,
            energies=lambda states, times: states.diff(dim=0).square().sum((0, 2)),  # noqa: ARG005
        ),
        "speed for its square": replace(
            MEASURES,
            energies=lambda states, times: geometry.lengths(states),  # noqa: ARG005
        ),
        "pairs as they come": replace(MEASURES, transport=lambda x0, x1: float((x1 - x0).square().sum(1).mean())),
        "nearest end": replace(MEASURES, transport=nearest_cost),
        "distance for its square": replace(
            MEASURES, transport=lambda x0, x1: math.sqrt(geometry.transport_cost(x0, x1, torch.Generator()).value)
        ),
        "straightness without the chord": replace(MEASURES, straightness=geometry.energies),
    },
    conditions=f"normal laws, d = 2 and 5, {POINTS} trajectories of {STEPS} steps of rk4; ends in random order",
    seeds=2,
    uses={"solver": registered("solver", "rk4")},
)
def energy_violation(measures: Measures, generator: Generator, *, solver: Solver) -> float:
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
        shuffle = torch.randperm(POINTS, generator=generator)  # which end is whose must not matter
        energy = float(measures.energies(states, times).mean())
        straightness = float(measures.straightness(states, times).mean())
        least = measures.transport(states[0], states[-1][shuffle])
        chord = float((states[-1] - states[0]).square().sum(1).mean())
        worst = max(worst, abs(energy - chord - straightness) / chord)
        if coupling == "optimal-transport":
            worst = max(worst, abs(energy / least - 1), straightness / chord)
        else:
            worst = max(worst, (1 + VISIBLE) * least / energy - 1)
    return worst


class OtherRates:
    """The linear path with other rates (sigma', alpha')."""

    def __init__(self, rates: tuple[float, float]) -> None:
        self._rates = rates

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1 - t, t, 0)."""
        return 1 - t, t, torch.zeros_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The other ones."""
        sigma, alpha = (torch.full_like(t, rate) for rate in self._rates)
        return sigma, alpha, torch.zeros_like(t)


def kinetic_energy(drift: nn.Module, states: Tensor) -> float:
    """int E|v_t|^2 dt along the sampler's states at equal times, by the trapezoidal rule."""
    device = next(drift.parameters()).device
    values = []
    for k, x in enumerate(states.float().to(device)):
        v = drift(torch.full((len(x),), k / (len(states) - 1), device=device), x)
        values.append(float(v.double().square().sum(1).mean()))
    return float(torch.trapezoid(torch.tensor(values), dx=1 / (len(states) - 1)))


def mean_square_velocity(gaussian: GaussianFlow, t: Tensor) -> Tensor:
    """E|v_t|^2, (n,)."""
    (slope, shift), (mean, cov) = gaussian.affine(t), gaussian.marginal(t)
    at_mean = (slope @ mean[..., None])[..., 0] + shift
    return at_mean.square().sum(1) + ((slope @ cov) * slope).sum((1, 2))


def coupled_fits(registry: Registry) -> Iterator[tuple[str, FlowFit]]:
    """A fit on the pairs of each registered coupling, along the linear path and sampled by rk4."""
    path, solver = registry.create("path", "linear"), registry.create("solver", "rk4")
    for name, coupling in components(registry, "coupling"):
        if isinstance(coupling, Coupling):  # a transport map goes to a finite set, and q is a normal law
            yield name, FlowFit(registry, coupling, path, solver)


@claim_for_each(
    coupled_fits,
    "T10-sampler-trained-{name}",
    statement=(
        "A drift trained on minibatches of this coupling carries p0 to q, with int E|v_t|^2 dt between "
        "W2(p0, q)^2 and the independent coupling's."
    ),
    reference="theory, T10",
    bound=order(TOLERANCE),
    mutants=lambda fit: {
        "sum for difference of the endpoints": replace(fit, loop_path=lambda _: OtherRates((1.0, 1.0))),
        "rate of x0 dropped": replace(fit, loop_path=lambda _: OtherRates((0.0, 1.0))),
        "last step dropped": replace(fit, solver=AlteredSolver(fit.solver, SLIPS["last step dropped"])),
    },
    conditions=f"normal laws in the plane, batches of {TRAINING.batch_size}, linear model of degree {DEGREE} in t",
    component="coupling:{name}",
    profile="full",
    seeds=1,
)
def trained_transport(fit: FlowFit, generator: Generator) -> Measurement:
    """The samples' distance from q, or the kinetic energy's from between W2^2 and the independent coupling's."""
    gaussian = distant_normals(cpu_generator(generator))
    drift = fit.trained_drift(LinearModel(2, DEGREE), gaussian, TRAINING, generator)
    states = fit.states(drift, gaussian, generator)
    most = affine.integrate(lambda t: mean_square_velocity(gaussian, t))
    least = affine.bures_wasserstein(gaussian.mean0, gaussian.cov0, gaussian.mean1, gaussian.cov1) ** 2
    energy, distance = kinetic_energy(drift, states), distance_to_target(states, gaussian)
    worst = max(distance, least / energy - 1, energy / most - 1)
    note = f"W2 to q is {distance:.3f} of its spread; energy {energy:.3f} between {least:.3f} and {most:.3f}"
    return Measurement(worst, note=note)
