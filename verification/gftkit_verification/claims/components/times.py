"""Every registered law of t: its density is that of its quantiles, of its draws, and the weight of every norm."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path, TimeLaw
from gftkit.theory import flow, objective
from gftkit.theory.objective import squared_norm
from gftkit.theory.times import distribution_error, levels, scaled_times
from gftkit.verify import claim_for_each, exact, registered, statistical
from gftkit_verification.oracles.affine import Blend
from gftkit_verification.testbeds.components import each_registered
from gftkit_verification.testbeds.measuring.differences import relative_error
from gftkit_verification.testbeds.problems.flows import draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator, rho_of, sigma_points
from gftkit_verification.testbeds.slips.objective import BLENDS, replace_each

FILLED = "Required options of the law filled with values of their types"
DRAWS = 8000
END = 0.5
"""Where the path's training ends: below 1, so that a law that isn't scaled shows."""
NODES = 4
"""Of Gauss-Legendre quadrature between two quantiles."""
TEMPERATURES = (0.1, 1.0, 7.0)
LEAST = 1e-300
"""Probabilities below it are taken for it: their deviate is 37 standard errors."""

Draw = Callable[[TimeLaw, float, Tensor], Tensor]
"""(law, t_end, uniform numbers) -> times, as ``scaled_times``."""


@dataclass(frozen=True)
class Law:
    """A law of two functions."""

    quantile: Callable[[Tensor], Tensor]
    density: Callable[[Tensor], Tensor]


def _changed(law: TimeLaw) -> dict[str, TimeLaw]:
    q, p = law.quantile, law.density
    return {
        "quantile reversed": Law(lambda u: q((1 - u).clamp(max=1 - 1e-16)), p),
        "quantile of u^2": Law(lambda u: q(u.square()), p),
        "not normalised": Law(q, lambda t: 2 * p(t)),
        "Jacobian of t^2 too many": Law(q, lambda t: 2 * t * p(t)),
        "density of a time of [0, 1/2]": Law(q, lambda t: p(t / 2)),
    }


def _other_than_uniform(law: TimeLaw) -> dict[str, TimeLaw]:
    """Without those that are no slip here: uniform at half the time is uniform."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    same = torch.allclose(law.density(t), law.density(t / 2))
    return {name: slip for name, slip in _changed(law).items() if not (same and name.endswith("[0, 1/2]"))}


@claim_for_each(
    each_registered("time"),
    "time-density-{name}",
    statement="The integral of the density of {name} up to quantile(u) is u, and 1 up to t = 1.",
    reference="gftkit.kernel.contracts.TimeLaw",
    bound=exact(1e-6),
    mutants=_other_than_uniform,
    conditions=f"{FILLED}; {len(levels())} probabilities u, denser towards both ends.",
    component="time:{name}",
    seeds=1,
)
def density_error(law: TimeLaw, generator: Generator) -> float:  # noqa: ARG001
    """The largest error of the distribution function: the measure by which a run's law is checked, too."""
    return distribution_error(law)


DRAWN: dict[str, Draw] = {
    "t_end left out": lambda law, t_end, u: law.quantile(u),  # noqa: ARG005
    "t_end twice": lambda law, t_end, u: t_end**2 * law.quantile(u),
    "the smaller of two": lambda law, t_end, u: t_end * law.quantile(torch.minimum(u, u.flip(0))),
    "t from the upper half": lambda law, t_end, u: t_end * (1 + law.quantile(u)) / 2,
}


@claim_for_each(
    each_registered("time"),
    "time-draws-{name}",
    statement="Times as the loop and the monitors draw them have the density of {name}, scaled onto [0, t_end].",
    reference="theory, section 0",
    subject=lambda law: scaled_times,  # noqa: ARG005
    bound=statistical(),
    mutants=DRAWN,
    conditions=f"{FILLED}; {DRAWS} draws, t_end {END:g}. Kolmogorov's test, by its exact law.",
    component="time:{name}",
    item_as="law",
)
def deviation_of_draws(draw: Draw, generator: Generator, *, law: TimeLaw) -> float:
    """Kolmogorov's statistic of the draws as a normal deviate; the distribution function is the density's integral."""
    from scipy import stats

    u = torch.rand(DRAWS, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    t = (draw(law, END, u) / END).sort().values
    if bool((t > 1).any()):
        return math.inf
    below = torch.cumsum(_integrals(law, torch.cat([t.new_zeros(1), t]), 8), 0)
    steps = torch.arange(DRAWS + 1, dtype=torch.float64) / DRAWS
    statistic = float(torch.maximum(steps[1:] - below, below - steps[:-1]).max())
    tail = max(float(stats.kstwo.sf(min(statistic, 1.0), DRAWS)), LEAST)
    return float(stats.norm.isf(tail / 2))


def _integrals(law: TimeLaw, edges: Tensor, nodes: int) -> Tensor:
    """The density's integral between neighbouring times."""
    t, weights = _nodes(edges, nodes)
    inside = (t > 0) & (t < 1)
    values = torch.zeros_like(t)
    values[inside] = law.density(t[inside])
    return (values * weights).sum(1)


def _nodes(edges: Tensor, nodes: int) -> tuple[Tensor, Tensor]:
    """Nodes and weights of quadrature between neighbours, (n - 1, nodes) each."""
    at, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(nodes))
    width = edges.diff()[:, None]
    return edges[:-1, None] + (at + 1) / 2 * width, weights / 2 * width


@dataclass(frozen=True)
class Weighing:
    """The functions by which times are drawn and drifts blended."""

    draw: Draw = scaled_times
    blend: Blend = objective.blend


@claim_for_each(
    each_registered("time"),
    "T04-norm-of-time-{name}",
    statement=(
        "b_beta is stationary at every state whatever the law of t, and its drift error over times of the law {name} "
        "is rho |Delta|_w, with w dt the law's density: the optimum doesn't depend on the law, and the norm does."
    ),
    reference="theory, T1, T2, T4 and section 0",
    subject=lambda law: Weighing(),  # noqa: ARG005
    bound=exact(1e-6),
    mutants=replace_each(
        Weighing(),
        draw={k: DRAWN[k] for k in ("t_end left out", "the smaller of two", "t from the upper half")},
        blend=BLENDS,
    ),
    conditions=(
        f"{FILLED}; a Gaussian problem of dimension 2, linear path, t_end {END:g}; temperatures "
        f"{', '.join(f'{beta:g}' for beta in TEMPERATURES)}. Expectations are exact but for quadrature over t."
    ),
    component="time:{name}",
    seeds=1,
    uses={"path": registered("path", "linear")},
    item_as="law",
)
def norm_difference(weighing: Weighing, generator: Generator, *, law: TimeLaw, path: Path) -> float:
    """The error's mean over times that are drawn, against rho |Delta|_w by the density; and the gradient at b_beta."""
    generator = cpu_generator(generator)
    target = draw_flow(2, generator)
    pretrained = retarget(target, generator)
    edges = torch.cat([levels(), torch.ones(1, dtype=torch.float64)])
    u, drawn = _nodes(edges, NODES)
    t, width = _nodes(torch.cat([law.quantile(edges[:-1]), edges[-1:]]), NODES)
    inside = (t > 0) & (t < 1)
    times = {
        "drawn": (weighing.draw(law, END, u.flatten()), drawn.flatten()),
        "density": (END * t[inside], law.density(t[inside]) * width[inside]),
    }
    drifts = {}
    for name, (at, weights) in times.items():
        points = sigma_points(target, at, weights)
        x = flow.sample(path, points.t, points.x0, points.x1, points.noise)
        drifts[name] = target.velocity(points.t, x), pretrained.velocity(points.t, x), points.weight
    b_tgt, b_pre, weight = drifts["density"]
    norm = math.sqrt(float(weight @ squared_norm(b_pre - b_tgt)))
    worst = 0.0
    b_tgt, b_pre, weight = drifts["drawn"]
    for beta in TEMPERATURES:
        optimum = weighing.blend(b_tgt, b_pre, beta)
        error = math.sqrt(float(weight @ squared_norm(optimum - b_tgt)))
        drift = optimum.detach().requires_grad_()
        total = objective.penalty_loss(drift, b_tgt, b_pre, beta, weight).sum()
        slope = torch.autograd.grad(total, drift)[0] / weight[:, None]
        worst = max(worst, relative_error(error, rho_of(beta) * norm), float(slope.abs().max()) / (1 + beta) / norm)
    return worst
