"""The ODE and the SDEs of one flow have the same marginals, those of a blend have not: T12 on closed forms."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim, Line, Measurement, exact
from gftkit_verification.claims.laws.closed_forms import CONDITIONS, G, start_of
from gftkit_verification.oracles.affine import Blend, blended, bures_wasserstein, carried
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, Diffusion, scale_of
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.moments import TEMPERATURES, FineTune, fine_tunes, on_cpu
from gftkit_verification.testbeds.objective_functions import replace_each
from gftkit_verification.testbeds.problems import random_covariance


@dataclass(frozen=True)
class Shipped:
    """The drift of a flow's SDE, and the blend."""

    stochastic_drift: Callable[[Tensor, Tensor, Tensor], Tensor] = predictions.stochastic_drift
    blend: Blend = objective.blend


SHIPPED = Shipped()


def affine_sde(problem: FineTune, shipped: Shipped, diffusion: Diffusion, pretrained: bool = False) -> AffineDrift:
    """The drift of the SDE by the shipped formula: it is linear in (v, score), so it acts on slopes and shifts."""
    flow = problem.pretrained if pretrained else problem.target

    def drift(t: Tensor) -> Affine:
        (slope, shift), (mean, cov) = flow.affine(t), flow.marginal(t)
        precision, g = torch.linalg.inv(cov), scale_of(diffusion, t)
        pull = (precision @ mean[..., None])[..., 0]
        return shipped.stochastic_drift(slope, -precision, g[..., None]), shipped.stochastic_drift(shift, pull, g)

    return drift


def same_marginals(path: Path, shipped: Shipped, generator: Generator) -> float:
    """The ends of the target's ODE and of its SDEs, for g constant and falling."""
    worst = 0.0
    for problem in fine_tunes(path, generator):
        by_ode = carried(problem.target.affine, 0.0, *start_of(problem))
        for g in (0.4, 1.5, lambda t: 1.3 - t):
            by_sde = carried(affine_sde(problem, shipped, g), g, *start_of(problem))
            worst = max(worst, *(float((a - b).norm() / b.norm()) for a, b in zip(by_sde, by_ode, strict=True)))
    return worst


APART = 1e-3
"""What W2 between the ends of the blends' ODE and SDE must reach."""


def blends_part(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """How far W2 between the ends of ODE and SDE of the blends, at its largest, falls short of ``APART``."""
    largest = 0.0
    lines: dict[str, Line] = {}
    for problem in fine_tunes(path, generator, (2, 3)):
        sdes = affine_sde(problem, shipped, G), affine_sde(problem, shipped, G, pretrained=True)
        found = []
        for beta in TEMPERATURES:
            odes = problem.target.affine, problem.pretrained.affine
            by_ode = carried(blended(*odes, beta, shipped.blend), 0.0, *start_of(problem))
            by_sde = carried(blended(*sdes, beta, shipped.blend), G, *start_of(problem))
            found.append(bures_wasserstein(*by_ode, *by_sde))
        largest = max(largest, *found)
        lines = lines or {"measured": (TEMPERATURES, found)}
    return Measurement(max(0.0, APART / largest - 1), lines, f"Largest W2: {largest:.3g}.")


def fokker_planck(registry: Registry, shipped: Shipped, generator: Generator) -> float:
    """d_t p = -div(b p) + (g^2/2) lap p at random points, as rates of log p, relative to the size of the terms."""
    generator = on_cpu(generator)
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
            gained = (drift * score).sum(1) + trace(drift, x)
            spread = g**2 / 2 * (trace(score, x) + squared_norm(score))
            size = rate.abs() + gained.abs() + spread.abs()
            worst = max(worst, float(((rate + gained - spread) / size).detach().abs().max()))
    return worst


def trace(field: Tensor, x: Tensor) -> Tensor:
    """div f = sum_i d f_i/d x_i, (n,)."""
    return sum(
        (torch.autograd.grad(field[:, i].sum(), x, retain_graph=True)[0][:, i] for i in range(x.shape[1])),
        start=torch.zeros(len(x), dtype=torch.float64),
    )


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path = registry.create("path", "linear")
    terms = {
        "score's sign": lambda v, score, g: v - g**2 / 2 * score,
        "g^2 for g^2/2": lambda v, score, g: v + g**2 * score,
        "g for g^2": lambda v, score, g: v + g / 2 * score,
        "no score": lambda v, score, g: v + 0 * g * score,
    }
    yield Claim(
        name="T12-marginals-gaussian",
        statement="The SDE with drift v + (g^2/2) grad log p_t ends in the law of the ODE with v, for every g.",
        reference="theory, T12",
        subject=SHIPPED,
        measure=partial(same_marginals, path),
        bound=exact(1e-9),
        mutants=replace_each(SHIPPED, stochastic_drift=terms),
        conditions="Gaussian problems of dimension 2, 3, 5, both couplings; g = 0.4, 1.5 and 1.3 - t.",
        seeds=1,
    )
    yield Claim(
        name="T12-marginals-mixture",
        statement=(
            "Velocity and score of a Gaussian mixture's flow solve the Fokker-Planck equation with b = v + (g^2/2) "
            "score."
        ),
        reference="theory, T12",
        subject=SHIPPED,
        measure=partial(fokker_planck, registry),
        bound=exact(1e-9),
        mutants=replace_each(SHIPPED, stochastic_drift=terms),
        conditions="Three components in dimension 2, linear and trigonometric path, 20 points; g = 0, 0.6 and 1.5.",
        seeds=2,
    )
    yield Claim(
        name="T12-blend-counterexample",
        statement=(
            "At beta > 0 the ODE with blended v and the SDE with blended b end in different laws: W2 reaches "
            f"{APART:g}."
        ),
        reference="theory, T12",
        subject=SHIPPED,
        measure=partial(blends_part, path),
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
    )
