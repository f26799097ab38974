"""T12 on closed forms: the ODE and the SDEs of one flow have the same marginals, those of a blend have not."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Line, Measurement, exact
from gftkit.verify.declaration import REGISTRY, claim, registered
from gftkit_verification.oracles.affine import Blend, blend_drifts, bures_wasserstein, collocate
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, Diffusion, scale_column
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, FineTune, cpu_generator, draw_fine_tunes
from gftkit_verification.testbeds.slips.blend_laws import CONDITIONS, G, start_of
from gftkit_verification.testbeds.slips.objective import replace_each


@dataclass(frozen=True)
class Marginals:
    """The drift of a flow's SDE, and the blend."""

    stochastic_drift: Callable[[Tensor, Tensor, Tensor], Tensor] = predictions.stochastic_drift
    blend: Blend = objective.blend


SHIPPED = Marginals()

TERMS = {
    "score's sign": lambda v, score, g: v - g**2 / 2 * score,
    "g^2 for g^2/2": lambda v, score, g: v + g**2 * score,
    "g for g^2": lambda v, score, g: v + g / 2 * score,
    "no score": lambda v, score, g: v + 0 * g * score,
}
"""Wrong drifts of velocity, score and g."""
APART = 1e-3
"""What W2 between the ends of the blends' ODE and SDE must reach."""


def affine_sde(problem: FineTune, shipped: Marginals, diffusion: Diffusion, *, pretrained: bool = False) -> AffineDrift:
    """The drift of the SDE by the shipped formula: it is linear in (v, score), so it acts on slopes and shifts."""
    flow = problem.pretrained if pretrained else problem.target

    def drift(t: Tensor) -> Affine:
        (slope, shift), (mean, cov) = flow.affine(t), flow.marginal(t)
        precision, g = torch.linalg.inv(cov), scale_column(diffusion, t)
        pull = (precision @ mean[..., None])[..., 0]
        return shipped.stochastic_drift(slope, -precision, g[..., None]), shipped.stochastic_drift(shift, pull, g)

    return drift


@claim(
    "T12-marginals-gaussian",
    statement="The SDE with drift v + (g^2/2) grad log p_t ends in the law of the ODE with v, for every g.",
    reference="theory, T12",
    subject=SHIPPED,
    bound=exact(1e-9),
    mutants=replace_each(SHIPPED, stochastic_drift=TERMS),
    conditions="Gaussian problems of dimension 2, 3, 5, both couplings; g = 0.4, 1.5 and 1.3 - t.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def distance_of_ends(shipped: Marginals, generator: Generator, *, path: Path) -> float:
    """The relative distance of the ends of the target's ODE and of its SDEs, for g constant and falling."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator):
        by_ode = collocate(problem.target.affine, 0.0, *start_of(problem))
        for g in (0.4, 1.5, lambda t: 1.3 - t):
            by_sde = collocate(affine_sde(problem, shipped, g), g, *start_of(problem))
            worst = max(worst, *(float((a - b).norm() / b.norm()) for a, b in zip(by_sde, by_ode, strict=True)))
    return worst


@claim(
    "T12-marginals-mixture",
    statement="Velocity and score of a Gaussian mixture's flow solve the Fokker-Planck equation with b = v + (g^2/2) "
    "score.",
    reference="theory, T12",
    subject=SHIPPED,
    bound=exact(1e-9),
    mutants=replace_each(SHIPPED, stochastic_drift=TERMS),
    conditions="Three components in dimension 2, linear and trigonometric path, 20 points; g = 0, 0.6 and 1.5.",
    seeds=2,
    uses={"registry": REGISTRY},
)
def fokker_planck_residual(shipped: Marginals, generator: Generator, *, registry: Registry) -> float:
    """The residual of d_t p = -div(b p) + (g^2/2) lap p at random points, as rates of log p, relative to the terms."""
    generator = cpu_generator(generator)
    worst = 0.0
    d, k, n = 2, 3, 20
    for name in ("linear", "trigonometric"):
        means = 2 * torch.randn(k, d, generator=generator, dtype=torch.float64)
        covs = torch.stack([random_covariance(d, generator) for _ in range(k)])
        weights = torch.rand(k, generator=generator, dtype=torch.float64) + 0.2
        start = torch.randn(d, generator=generator, dtype=torch.float64), random_covariance(d, generator)
        flow = MixtureFlow(registry.create("path", name), *start, weights / weights.sum(), means, covs)
        t = (0.05 + 0.9 * torch.rand(n, generator=generator, dtype=torch.float64)).requires_grad_()
        x = (2 * torch.randn(n, d, generator=generator, dtype=torch.float64)).requires_grad_()
        rate, score = torch.autograd.grad(flow.log_density(t, x).sum(), (t, x), create_graph=True)
        for g in (0.0, 0.6, 1.5):
            drift = shipped.stochastic_drift(
                flow.velocity(t, x), flow.score(t, x), torch.full((n, 1), g, dtype=torch.float64)
            )
            gained = (drift * score).sum(1) + divergence(drift, x)
            spread = g**2 / 2 * (divergence(score, x) + squared_norm(score))
            size = rate.abs() + gained.abs() + spread.abs()
            worst = max(worst, float(((rate + gained - spread) / size).detach().abs().max()))
    return worst


def divergence(field: Tensor, x: Tensor) -> Tensor:
    """div f = sum_i d f_i/d x_i, (n,)."""
    return sum(
        (torch.autograd.grad(field[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])),
        start=torch.zeros(len(x), dtype=torch.float64),
    )


@claim(
    "T12-blend-counterexample",
    statement="At beta > 0 the ODE with blended v and the SDE with blended b end in different laws: W2 reaches "
    f"{APART:g}.",
    reference="theory, T12",
    subject=SHIPPED,
    bound=exact(1e-9),
    mutants=replace_each(
        SHIPPED,
        blend={
            "nothing retained": lambda target, anchor, beta: target + 0 * anchor,  # noqa: ARG005
            "everything retained": lambda target, anchor, beta: anchor + 0 * target,  # noqa: ARG005
        },
    ),
    conditions=f"{CONDITIONS} g = {G}. The mutants are flows of one target, for which both ends agree.",
    seeds=1,
    axes=("temperature", "W2 between the ends of ODE and SDE"),
    uses={"path": registered("path", "linear")},
)
def shortfall_of_distance(shipped: Marginals, generator: Generator, *, path: Path) -> Measurement:
    """The shortfall from ``APART`` of the largest W2 between the ends of ODE and SDE of the blends."""
    largest = 0.0
    lines: dict[str, Line] = {}
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        sdes = affine_sde(problem, shipped, G), affine_sde(problem, shipped, G, pretrained=True)
        distances = []
        for beta in TEMPERATURES:
            odes = problem.target.affine, problem.pretrained.affine
            by_ode = collocate(blend_drifts(*odes, beta, shipped.blend), 0.0, *start_of(problem))
            by_sde = collocate(blend_drifts(*sdes, beta, shipped.blend), G, *start_of(problem))
            distances.append(bures_wasserstein(*by_ode, *by_sde))
        largest = max(largest, *distances)
        lines = lines or {"measured": (TEMPERATURES, distances)}
    return Measurement(max(0.0, APART / largest - 1), lines, f"Largest W2: {largest:.3g}.")
