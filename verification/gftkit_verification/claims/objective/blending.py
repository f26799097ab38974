"""T1 at inference: the law in which a fine-tune ends when it is sampled between its drift and its anchor."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from gftkit.generation.blending import Blended
from gftkit.kernel.contracts import Drift, Solver
from gftkit.sampling import integrate
from gftkit.theory.objective import retention, temperature_of
from gftkit.verify import claim, order, registered
from gftkit_verification.oracles import affine
from gftkit_verification.oracles.gaussian import GaussianFlow, square_root
from gftkit_verification.testbeds.problems.equations import Equation
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator

TEMPERATURES = (-0.2, 0.3, 3.0, 30.0)
STEPS = 12
TOLERANCE = 1e-4
"""Relative to the law's spread: what the sampler's steps leave."""

Blend = Callable[[Drift, Drift, float], Drift]
"""(fine-tuned drift, anchor, retention) -> what is sampled."""


def drift_of(gaussian: GaussianFlow) -> Drift:
    """Its velocity as a drift that the sampler takes."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
        return gaussian.velocity(t, x)

    return drift


def sampled_law(drift: Drift, solver: Solver, gaussian: GaussianFlow) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the samples at 1 from N(mean0, cov0); d + 1 points give the map of an affine drift."""
    points = torch.cat([gaussian.mean0[None], gaussian.mean0 + square_root(gaussian.cov0)])
    ends = integrate.generate(drift, Equation(drift), solver, STEPS, points, torch.Generator())
    slope = ends[1:] - ends[:1]
    return ends[0], slope.mT @ slope


def unbounded_share(drift: Drift, anchor: Drift, rho: float) -> Drift:
    """A blend with beta for rho."""
    beta = temperature_of(rho)

    def blended(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        tuned = drift(t, x, **conditions)
        return tuned + beta * (anchor(t, x, **conditions) - tuned)

    return blended


def stale_anchor(drift: Drift, anchor: Drift, rho: float) -> Drift:
    """A blend whose anchor is asked for t = 0 throughout."""

    def at_start(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        return anchor(torch.zeros_like(t), x, **conditions)

    return Blended(drift, at_start, rho)


@claim(
    "T01-blended-sampler",
    statement=(
        "Sampled between a fine-tune and its anchor, the samples' law at t = 1 is that of (b + beta b_pre)/(1 + beta)."
    ),
    reference="theory, T1 and section 4",
    subject=Blended,
    bound=order(TOLERANCE),
    mutants={
        "beta for rho": unbounded_share,
        "swapped roles": lambda drift, anchor, rho: Blended(anchor, drift, rho),
        "temperature left out": lambda drift, anchor, _: Blended(drift, anchor, retention(1.0)),
        "anchor at t = 0": stale_anchor,
    },
    conditions=(
        f"normal laws in dimension 3, every coupling; {STEPS} steps of rk4; temperatures "
        f"{', '.join(f'{beta:g}' for beta in TEMPERATURES)}"
    ),
    seeds=2,
    uses={"solver": registered("solver", "rk4")},
)
def blended_law(blend: Blend, generator: Generator, *, solver: Solver) -> float:
    """The largest distance of the sampled law's moments from the blend's, relative to its spread."""
    generator = cpu_generator(generator)
    worst = 0.0
    for coupling in COUPLINGS:
        target = draw_flow(3, generator, coupling)
        anchor = retarget(target, generator)
        for beta in TEMPERATURES:
            drift = affine.blend_drifts(target.affine, anchor.affine, beta)
            expected_mean, expected_cov = affine.collocate(drift, 0.0, target.mean0, target.cov0)
            mean, cov = sampled_law(blend(drift_of(target), drift_of(anchor), retention(beta)), solver, target)
            spread = float(expected_cov.trace().sqrt())
            worst = max(worst, float((mean - expected_mean).norm()) / spread)
            worst = max(worst, float((cov - expected_cov).norm()) / spread**2)
    return worst
