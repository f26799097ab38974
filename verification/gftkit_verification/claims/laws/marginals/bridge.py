"""T12 on the Brownian bridge: the sampler's stochastic flow with its closing step, exact and trained."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.sampling import integrate
from gftkit.theory import predictions
from gftkit.verify.claims import Measurement, order, statistical
from gftkit.verify.declaration import REGISTRY, FromRegistry, claim, registered
from gftkit_verification.oracles.gaussian import GaussianFlow, square_root
from gftkit_verification.testbeds.loops.fitted_flows import STEPS, FlowFit, distance_to_target, distant_normals
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.bridges import Bridge, Closed, PairDrift
from gftkit_verification.testbeds.problems.flows import draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips.solvers import NOISE_SLIPS, SLIPS, AlteredSolver

TRAIN = Train(steps=1500, batch_size=256, learning_rate=0.15, decay="cosine", clip=None)
"""Longer than for paths without noise, whose labels have less of it."""
DEGREE = 6
"""Of the linear model's polynomials in t: the bridge's drift changes fast near t = 1."""


@dataclass(frozen=True)
class Stochastic:
    """A way to sample a stochastic flow: its drift of velocity, score and g, a solver, and a path's closing step."""

    solver: Solver
    build: Callable[[Tensor, Tensor, Tensor], Tensor] = predictions.stochastic_drift
    closing: Callable[[Path], Path] = lambda path: path


@claim(
    "T12-sampler-gaussian",
    statement="Samples of dX = (v + (g^2/2) grad log p_t) dt + g dW on the Brownian bridge, closing step included, "
    "have the mean and covariance of its Euler-Maruyama chain.",
    reference="theory, T12 and section 1",
    subject=registered("solver", "euler-maruyama").then(Stochastic),
    bound=statistical(),
    mutants=lambda stochastic: {
        "sign of the score": replace(stochastic, build=lambda v, s, g: predictions.stochastic_drift(v, -s, g)),
        "factor 1/2 dropped": replace(stochastic, build=lambda v, s, g: v + g**2 * s),
        "g for g^2": replace(stochastic, build=lambda v, s, g: v + g / 2 * s),
        "noise scaled by h": replace(
            stochastic, solver=AlteredSolver(stochastic.solver, NOISE_SLIPS["noise scaled by h"])
        ),
        "no noise in the closing step": replace(stochastic, closing=lambda path: Closed(path, "mean", 0.9)),
    },
    conditions="two normal laws in the plane, 8000 samples, 12 steps to t = 0.9 and the closing step",
    component="solver:euler-maruyama",
    uses={"registry": REGISTRY},
)
def bridge_moments_error(subject: Stochastic, generator: Generator, *, registry: Registry) -> float:
    """Standard errors of the states' moments from those of the Euler-Maruyama chain: half way, at t_end and at 1."""
    generator = cpu_generator(generator)
    steps, delta, scale, n = 12, 0.1, 1.6 + 0.4 * float(torch.rand(1, generator=generator)), 8000
    laws = draw_flow(2, generator)
    gaussian = GaussianFlow(laws.mean0, laws.cov0, laws.mean1, 0.1 * laws.cov1)
    path = registry.create("path", "brownian-bridge", scale=scale, delta=delta)
    bridge = Bridge(gaussian, scale)
    x0 = gaussian.starts(n, generator)
    drift = bridge.drift(subject.build)
    path = subject.closing(path)
    states = integrate.generate(drift, path, subject.solver, steps, x0, generator, batch_size=n // 2, whole=True)
    chain = list(bridge.chain(steps, 1 - delta))
    moments = [_whitened_moments(states[k], *chain[k - 1]) for k in (steps // 2, steps, steps + 1)]
    return cross_fitted_t(torch.cat(moments, 1), torch.zeros(15))


def _whitened_moments(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """First and second moments of whitened samples of a law in the plane, less those of N(0, I): (n, 2) -> (n, 5)."""
    white = torch.linalg.solve(square_root(cov), (x - mean).mT).mT
    u, v = white.unbind(1)
    return torch.stack([u, v, u**2 - 1, v**2 - 1, u * v], 1)


def _bridge_fit(registry: Registry) -> FlowFit:
    """Independent pairs on the bridge; Euler-Maruyama."""
    bridge = registry.create("path", "brownian-bridge", scale=1.2, delta=0.05)
    independent = registry.create("coupling", "independent")
    return FlowFit(registry, independent, bridge, registry.create("solver", "euler-maruyama"))


@claim(
    "T12-sampler-trained",
    statement=(
        "A drift trained on the Brownian bridge, sampled by Euler-Maruyama with a closing step, has the moments of q."
    ),
    reference="theory, T12 and section 1",
    subject=FromRegistry(_bridge_fit),
    bound=order(0.06),
    mutants=lambda fit: {
        "no noise in sampling": replace(fit, solver=AlteredSolver(fit.solver, NOISE_SLIPS["no noise"])),
        "noise scaled by h": replace(fit, solver=AlteredSolver(fit.solver, NOISE_SLIPS["noise scaled by h"])),
        "half of the drift": replace(fit, solver=AlteredSolver(fit.solver, SLIPS["half of the drift"])),
        "trained on x1 - x0": replace(fit, loop_path=PairDrift),
    },
    conditions=(
        f"normal laws in the plane, independent pairs, linear model of degree {DEGREE} in t, {STEPS[True]} steps"
    ),
    component="solver:euler-maruyama",
    profile="full",
    seeds=1,
)
def distance_of_trained_flow(fit: FlowFit, generator: Generator) -> Measurement:
    """The distance of the samples of a trained stochastic flow from q."""
    gaussian = distant_normals(cpu_generator(generator))
    drift = fit.trained_drift(LinearModel(2, DEGREE), gaussian, TRAIN, generator)
    return Measurement(distance_to_target(fit.states(drift, gaussian, generator), gaussian))
