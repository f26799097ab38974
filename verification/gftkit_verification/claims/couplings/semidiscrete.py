"""T22: the semidiscrete map has the least cost and equal masses, and its segments never cross."""

import math
from collections.abc import Callable, Mapping

import numpy as np
import torch
from scipy import stats
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from gftkit.data.transport import Transport
from gftkit.kernel.contracts import Path, Solver, TransportMap
from gftkit.kernel.registry import Registry
from gftkit.theory import flow
from gftkit.verify import claim, claim_for_each, exact, order, registered, statistical
from gftkit.verify.declaration import FromRegistry
from gftkit_verification.testbeds.components import each_registered
from gftkit_verification.testbeds.problems.equations import Equation
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems.point_sets import (
    Points,
    Remapped,
    clustered_points,
    fitted_transport,
    normal_source,
    potentials,
)
from gftkit_verification.testbeds.slips.transport import maps_without_potentials, wrong_maps

NAME = "coupling:semidiscrete"
CHI2 = 0.005
"""Bound on the masses' relative variance where masses are measured: 7 % of each, in the root mean square."""
SEMIDISCRETE = registered("coupling", "semidiscrete")
COPIED = 3
"""Copies of one of the points."""
DRAWS = 200_000
CLOSE = 0.03
"""Relative: what masses within their bound leave in cells and costs."""
LOOSE = 0.1
"""chi^2 of the masses of any registered map."""


def chi_squared(index: Tensor, n: int) -> float:
    """N sum_j (p_j - 1/N)^2 without bias, by the counts of two independent halves of the draws."""
    halves = [torch.bincount(half, minlength=n).double() / len(half) - 1 / n for half in index.chunk(2)]
    return n * float((halves[0] * halves[1]).sum())


def _indices(transport: Transport, points: Tensor, x0: Tensor, generator: Generator) -> Tensor:
    """The point that each x0 goes to; points are different."""
    x1 = transport.pair(x0, generator).x1
    return torch.cdist(x1.flatten(1), points.flatten(1), compute_mode="donot_use_mm_for_euclid_dist").argmin(1)


@claim(
    "T22-cells-on-a-line",
    statement=(
        "From N(0, 1) to points on a line each point receives the source between two quantiles: those of the share of "
        "points below it, and up to it. Equal points have their masses together."
    ),
    reference="theory, T22; Villani (2009), theorem 5.30",
    subject=registered("coupling", "semidiscrete", chi2=0.002),  # cells are off by the sum of errors in masses
    bound=order(CLOSE),
    mutants=wrong_maps,
    conditions=f"12 points, one of them {COPIED} times; share of {DRAWS} draws that go elsewhere",
    component=NAME,
    seeds=2,
)
def astray_on_a_line(coupling: TransportMap, generator: Generator) -> float:
    """The share of the source that goes to another point than by quantiles."""
    generator = cpu_generator(generator)
    x1 = 1 + 0.7 * torch.randn(12, 1, generator=generator).sort(0).values + 0.1 * torch.arange(12)[:, None]
    x1[5 : 5 + COPIED] = x1[5].clone()
    shuffled = x1[torch.randperm(12, generator=generator)]
    transport = fitted_transport(coupling, Points(shuffled), draw_seed(generator))
    x0 = torch.randn(DRAWS, 1, generator=generator)
    place = torch.from_numpy(stats.norm.cdf(x0[:, 0].double().numpy()) * 12).long().clamp(max=11)
    return float((transport.pair(x0, generator).x1 != x1[place])[:, 0].double().mean())


@claim(
    "T22-least-cost",
    statement="The pairs' cost is that of an exact transport of the same draws, each point taken equally often.",
    reference="theory, T10 and T22; Kitagawa, Merigot, Thibert (2019), section 1.2",
    subject=SEMIDISCRETE,
    bound=order(CLOSE),
    mutants=wrong_maps,
    conditions="20 points in 2 and 8 dimensions, 600 draws; the dual value of the map's own potentials",
    component=NAME,
    seeds=1,
)
def dual_gap(coupling: TransportMap, generator: Generator) -> float:
    """The relative distance of mean |x0 - x1|^2/2 - g + mean g, a lower bound at the map, from the least cost."""
    generator = cpu_generator(generator)
    worst = 0.0
    for d in (2, 8):
        x1 = clustered_points(20, d, generator)
        fitted = coupling.fit(x1, normal_source((d,)), generator, lambda draws, text: None)  # noqa: ARG005
        x0 = torch.randn(600, d, generator=generator)
        index = coupling.assign(x0, x1, fitted, generator)
        cost = torch.cdist(x0.double(), x1.double()).square() / 2
        g = potentials(fitted, x1)
        value = float((cost[torch.arange(600), index] - g[index]).mean() + g.mean())
        rows, columns = linear_sum_assignment(np.tile(cost.numpy(), 30))  # each point may be taken 30 times
        least = float(cost.numpy()[rows, columns % 20].mean())
        worst = max(worst, abs(value / least - 1))
    return worst


@claim(
    "T22-masses",
    statement="Every sample receives the mass 1/N, to within the bound on chi^2 = N sum_j (p_j - 1/N)^2.",
    reference="theory, T22",
    subject=registered("coupling", "semidiscrete", chi2=CHI2),
    bound=statistical(),
    mutants=lambda coupling: {
        name: wrong for name, wrong in wrong_maps(coupling).items() if name not in maps_without_potentials(coupling)
    },
    conditions=f"60 points in 3 dimensions; {DRAWS} draws in two halves",
    component=NAME,
    seeds=2,
)
def mass_excess(coupling: TransportMap, generator: Generator) -> float:
    """How far chi^2 is above its bound, in standard errors; 0 below."""
    generator = cpu_generator(generator)
    x1 = clustered_points(60, 3, generator)
    transport = fitted_transport(coupling, Points(x1), draw_seed(generator))
    index = _indices(transport, x1, torch.randn(DRAWS, 3, generator=generator), generator)
    error = math.sqrt(4 * 60 / DRAWS**2 + 4 * CHI2 / DRAWS)
    return max(0.0, chi_squared(index, 60) - CHI2) / error


def _always_first(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return torch.zeros(len(x0), dtype=torch.int64)


def _by_place(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return torch.arange(len(x0)) % len(x1)


@claim_for_each(
    each_registered("coupling", lambda coupling: isinstance(coupling, TransportMap)),
    "coupling-map-{name}",
    statement=(
        "x1 is a function of x0, of the label that is asked for, and in law near uniform over the data of that label."
    ),
    reference="theory, T10 and T22",
    bound=exact(),
    mutants=lambda coupling: {
        "always the first": Remapped(coupling, _always_first),
        "by the place in the batch": Remapped(coupling, _by_place),
        "indices off by one": Remapped(coupling, lambda x0, x1, g, _: _by_place(x0, x1, g, _) + 1),
        **maps_without_potentials(coupling),
    },
    conditions=f"shapes (2,) and (1, 2, 2), with and without labels; chi^2 of {DRAWS} draws at most {LOOSE:g}",
    component="coupling:{name}",
    seeds=1,
)
def unlawful_map(coupling: TransportMap, generator: Generator) -> float:
    """The largest share of x0 whose datum changes with its neighbours or has another label, or excess of chi^2."""
    generator = cpu_generator(generator)
    worst = 0.0
    for shape, classes in (((2,), None), ((1, 2, 2), None), ((2,), 3)):
        x1 = clustered_points(30, math.prod(shape), generator).reshape(-1, *shape)
        labels = None if classes is None else torch.arange(30) % classes
        transport = fitted_transport(coupling, Points(x1, labels), draw_seed(generator))
        x0 = torch.randn(DRAWS, *shape, generator=generator)
        label = None if labels is None else labels[torch.randint(30, (DRAWS,), generator=generator)]
        index = torch.cdist(transport.pair(x0, generator, label).x1.flatten(1), x1.flatten(1)).argmin(1)
        few = torch.randperm(DRAWS, generator=generator)[:400]
        again = transport.pair(x0[few], generator, None if label is None else label[few]).x1
        changed = (again != x1[index[few]]).flatten(1).any(1)
        astray = 0.0 if label is None or labels is None else float((labels[index] != label).double().mean())
        worst = max(worst, float(changed.double().mean()), astray, chi_squared(index, 30) - LOOSE)
    return worst


def _segments(coupling: TransportMap, generator: Generator) -> tuple[Tensor, Tensor]:
    """Pairs of a map, 400 in 4 dimensions to 40 points."""
    x1 = clustered_points(40, 4, generator)
    transport = fitted_transport(coupling, Points(x1), draw_seed(generator))
    x0 = torch.randn(400, 4, generator=generator)
    return x0.double(), transport.pair(x0, generator).x1.double()


@claim(
    "T22-no-crossing",
    statement=(
        "(x0 - x0').(x1 - x1') >= 0 for all pairs, so |x_t - x_t'|^2 >= (1 - t)^2 |x0 - x0'|^2 + t^2 |x1 - x1'|^2: "
        "segments never cross, and (t, x_t) determines the pair."
    ),
    reference="theory, T9 and T22; Villani (2009), theorem 5.10",
    subject=SEMIDISCRETE,
    bound=exact(1e-5),
    mutants=maps_without_potentials,
    conditions="400 pairs to 40 points in 4 dimensions, the linear path at t = 0.1, 0.5, 0.9; float32",
    component=NAME,
    seeds=2,
    uses={"path": registered("path", "linear")},
)
def crossing(coupling: TransportMap, generator: Generator, *, path: Path) -> float:
    """The largest relative violation of either inequality."""
    x0, x1 = _segments(coupling, cpu_generator(generator))
    apart = [(x[:, None] - x).flatten(0, 1) for x in (x0, x1)]
    size = apart[0].norm(dim=1) * apart[1].norm(dim=1)
    product = (apart[0] * apart[1]).sum(1)
    worst = float((-product[size > 0] / size[size > 0]).max().clamp(min=0))
    for t in (0.1, 0.5, 0.9):
        at = flow.sample(path, torch.full((len(x0),), t, dtype=torch.float64), x0, x1, None)
        least = (1 - t) ** 2 * apart[0].square().sum(1) + t**2 * apart[1].square().sum(1)
        between = (at[:, None] - at).flatten(0, 1).square().sum(1)
        worst = max(worst, float((1 - between[least > 0] / least[least > 0]).max()))
    return worst


def euler(registry: Registry) -> Solver:
    """Euler's method."""
    return registry.create("solver", "euler")


class _ExactDrift:
    """b(t, x) = (y_j - x)/(1 - t) for the j whose segment passes x at t: x = (1 - t) x0 + t y_j, x0 going to y_j."""

    def __init__(self, assign: Callable[[Tensor], Tensor], x1: Tensor) -> None:
        self._assign, self._x1 = assign, x1

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG002
        time = t[:, None, None]
        starts = (x[:, None] - time * self._x1) / (1 - time)  # (n, N, d): where each point's segment through x began
        goes = self._assign(starts.flatten(0, 1).float()).reshape(starts.shape[:2])
        place = (goes == torch.arange(len(self._x1))).double().argmax(1)
        return (self._x1[place] - x) / (1 - time[:, 0])


@claim(
    "T22-one-step",
    statement="By the exact drift of the pairs Euler's method ends in each x0's datum, whatever the number of steps.",
    reference="theory, T11 and T22",
    subject=SEMIDISCRETE,
    bound=exact(1e-5),
    mutants=maps_without_potentials,
    conditions="60 starts, 15 points in 3 dimensions; 1, 2 and 5 steps",
    component=NAME,
    seeds=1,
    uses={"solver": FromRegistry(euler)},
)
def missed_ends(coupling: TransportMap, generator: Generator, *, solver: Solver) -> float:
    """The largest distance of an end from the datum of its start."""
    generator = cpu_generator(generator)
    x1 = clustered_points(15, 3, generator)
    fitted: Mapping[str, Tensor] = coupling.fit(x1, normal_source((3,)), generator, lambda draws, text: None)  # noqa: ARG005

    def assign(x0: Tensor) -> Tensor:
        return coupling.assign(x0, x1, fitted, generator)

    x0 = torch.randn(60, 3, generator=generator)
    wanted = x1[assign(x0)].double()
    drift = _ExactDrift(assign, x1.double())
    ends = [Equation(drift).states(solver, steps, x0.double(), generator)[-1] for steps in (1, 2, 5)]
    return max(float((end - wanted).norm(dim=1).max()) for end in ends)
