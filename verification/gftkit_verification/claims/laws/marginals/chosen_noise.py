"""T12 for noise of the user's choice: a velocity's flow, sampled by an SDE, keeps the marginals of its ODE."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Drift, NoiseScale, Path
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.sampling.scheme import Scheme
from gftkit.sampling.stochastic import StochasticPath
from gftkit.theory import flow
from gftkit.verify.claims import Measurement, order, statistical
from gftkit.verify.declaration import FromRegistry, claim_for_each, registered
from gftkit_verification.oracles.affine import bures_wasserstein
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.loops.fitted_flows import DEGREE, LINEAR, FlowFit
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t, equalise_columns
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips.noise import SLIPS, Sampling, UnitNoise, no_noise, without_closing_step

CHAINS = (16, 32)
"""Steps of the chains whose moments are computed; both give the limit up to O(h^3), where g is smooth."""
MOMENTS = 2e-3
"""Largest distance of mean and covariance, relative to the covariance: what non-smooth g leaves."""
SAMPLES, STEPS = 5000, 32
"""On a mixture: in 16 steps their error was as large as the samples'."""
SCALE = 1.6
"""Of a noise scale that takes one: at 1 a slip of g for g^2 wouldn't show."""
TRAINED_STEPS = 60
TRAINED = 0.1
"""Of samples of a trained drift: W2 from q relative to q's spread."""
FEW_SLIPS = ("sign of the score", "velocity in place of the drift", "noise left out")


def noise_scales(registry: Registry) -> Iterator[tuple[str, Sampling]]:
    """Every registered noise scale, of size SCALE where it takes a size, as a way to sample."""
    solver = registry.create("solver", "stochastic-heun")
    for name, _ in components(registry, "diffusion"):
        options: dict[str, Any] = {"scale": SCALE} if "scale" in registry.component("diffusion", name).options else {}
        scale: NoiseScale = registry.create("diffusion", name, **options)
        yield name, Sampling(Scheme(solver, STEPS, None, scale))


def vanishing_noise_scales(registry: Registry) -> Iterator[tuple[str, Sampling]]:
    """The noise scales that are 0 at t = 1: near it an error of v counts 1/(1 - t)-fold in the score."""
    defaults = dict(components(registry, "diffusion"))
    return ((name, sampling) for name, sampling in noise_scales(registry) if float(defaults[name](torch.ones(1))) <= 0)


def _slips(sampling: Sampling) -> dict[str, Sampling]:
    return {name: replace(sampling, change=change) for name, change in SLIPS.items()}


def _few_slips(sampling: Sampling) -> dict[str, Sampling]:
    return {name: replace(sampling, change=SLIPS[name]) for name in FEW_SLIPS}


def chain_moments(subject: Sampling, drift: Drift, path: Path, steps: int, d: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the sampler's states half way, and at the end, from N(0, I): (2, d), (2, d, d)."""
    drift, path = subject.equation(drift, path)
    before = 1 + d
    x0 = torch.zeros(before + (steps + 1) * d, d, dtype=torch.float64)
    x0[1:before] = torch.eye(d, dtype=torch.float64)
    states = integrate.generate(
        drift, path, subject.scheme.solver, steps, x0, UnitNoise(before, d), batch_size=len(x0), whole=True
    )
    states = states[[steps // 2, len(states) - 1]]
    rest = states[:, 1:] - states[:, :1]
    slope, noise = rest[:, :d].mT, rest[:, d:]
    return states[:, 0], slope @ slope.mT + noise.mT @ noise


def _draw_mixture(path: Path, generator: Generator, components: int) -> MixtureFlow:
    """A flow from N(0, I) to a normal law or mixture in the plane that is neither isotropic nor centred."""
    weights = torch.tensor([0.35, 0.65] if components == 2 else [1.0], dtype=torch.float64)
    means = torch.randn(components, 2, generator=generator, dtype=torch.float64)
    if components == 2:
        means = torch.stack([means[0], -means[0]]) * 1.5 / means[0].norm()
    covs = 0.5 * torch.stack([random_covariance(2, generator) for _ in range(components)])
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    return MixtureFlow(path, zero, eye, weights, means, covs)


def _velocity(problem: MixtureFlow) -> Drift:
    return lambda t, x, **_: problem.velocity(t.clamp(0, 1), x)


@claim_for_each(
    noise_scales,
    "T12-sampled-gaussian-{name}",
    statement="A velocity's flow sampled with this noise has the ODE's mean and covariance, half way and at t = 1.",
    reference="theory, T12 and section 1",
    bound=order(MOMENTS),
    mutants=lambda sampling: {
        **_slips(sampling),
        "closing step dropped": replace(sampling, change=without_closing_step),
    },
    conditions=f"from N(0, I) to a normal law in the plane, linear path; stochastic-heun in {CHAINS} steps, "
    f"extrapolated;  moments computed and not sampled",
    component="diffusion:{name}",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def moments_error(subject: Sampling, generator: Generator, *, path: Path) -> float:
    """The relative distance of mean and covariance from the marginals', half way and at t = 1, at its largest."""
    generator = cpu_generator(generator)
    worst = 0.0
    problem = _draw_mixture(path, generator, 1)
    (mean, cov), (finer_mean, finer_cov) = (
        chain_moments(subject, _velocity(problem), path, steps, 2) for steps in CHAINS
    )
    mean, cov = (4 * finer_mean - mean) / 3, (4 * finer_cov - cov) / 3
    for k, t in enumerate((flow.t_end(StochasticPath(path, no_noise)) / 2, 1.0)):
        sigma, alpha, _ = (float(part) for part in path.coefficients(torch.tensor(t, dtype=torch.float64)))
        expected = sigma**2 * torch.eye(2, dtype=torch.float64) + alpha**2 * problem.covs[0]
        size = float(expected.norm())
        mean_error = float((mean[k] - alpha * problem.means[0]).norm()) / size**0.5
        worst = max(worst, float((cov[k] - expected).norm()) / size, mean_error)
    return worst


@claim_for_each(
    noise_scales,
    "T12-sampled-mixture-{name}",
    statement="A velocity's flow sampled with this noise ends in the mixture that its ODE ends in.",
    reference="theory, T12 and section 1",
    bound=statistical(),
    mutants=_few_slips,
    conditions=f"two normal laws in the plane, trigonometric path; {SAMPLES} samples, {STEPS} steps of "
    f"stochastic-heun; moments and Stein's identity",
    component="diffusion:{name}",
    seeds=1,
    uses={"path": registered("path", "trigonometric")},
)
def mixture_error(subject: Sampling, generator: Generator, *, path: Path) -> float:
    """Standard errors of functions of the samples at t = 1 that have mean 0 on the mixture.

    Both components' shares, first and second moments, and by Stein's identity the score s and x s^T + I.
    """
    generator = cpu_generator(generator)
    problem = _draw_mixture(path, generator, 2)
    drift, noisy = subject.equation(_velocity(problem), path)
    x0 = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    x = integrate.generate(drift, noisy, subject.scheme.solver, STEPS, x0, generator, batch_size=SAMPLES)
    mean = problem.weights @ problem.means
    products = problem.means[..., None] * problem.means[:, None]
    second = (problem.weights[:, None, None] * (problem.covs + products)).sum(0)
    score = problem.score(torch.ones(SAMPLES, dtype=torch.float64), x)
    stein = x[..., None] * score[:, None] + torch.eye(2, dtype=torch.float64)
    squares = x[..., None] * x[:, None] - second
    functions = torch.cat([x - mean, squares.flatten(1)[:, [0, 1, 3]], score, stein.flatten(1)], 1)
    return cross_fitted_t(equalise_columns(functions), torch.zeros(functions.shape[1]))


def _plain_fit(registry: Registry) -> FlowFit:
    independent, linear = registry.create("coupling", "independent"), registry.create("path", "linear")
    return FlowFit(registry, independent, linear, registry.create("solver", "euler"))


@claim_for_each(
    vanishing_noise_scales,
    "T12-sampled-trained-{name}",
    statement="A velocity that was trained, sampled with this noise, has the moments of q.",
    reference="theory, T12 and section 1",
    bound=order(TRAINED),
    mutants=_few_slips,
    conditions=f"from N(0, I) to a normal law in the plane, linear model of degree {DEGREE} in t, {TRAINED_STEPS} "
    f"steps of stochastic-heun, 8000 samples",
    component="diffusion:{name}",
    profile="full",
    seeds=1,
    uses={"fit": FromRegistry(_plain_fit)},
)
def trained_error(subject: Sampling, generator: Generator, *, fit: FlowFit) -> Measurement:
    """W2 of the samples' normal law from q, relative to q's spread, of a drift that the shipped loop has trained."""
    here = cpu_generator(generator)
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    mean = torch.randn(2, generator=here, dtype=torch.float64)
    gaussian = GaussianFlow(zero, eye, 2 * mean / mean.norm(), random_covariance(2, here))
    velocity: nn.Module = fit.trained_drift(LinearModel(2, DEGREE), gaussian, LINEAR, generator)
    drift, path = subject.equation(velocity, fit.path)
    x0 = gaussian.starts(8000, here).float()
    x = integrate.generate(drift, path, subject.scheme.solver, TRAINED_STEPS, x0, generator, batch_size=8000).double()
    distance = bures_wasserstein(x.mean(0), torch.cov(x.mT), gaussian.mean1, gaussian.cov1)
    return Measurement(distance / float(gaussian.cov1.trace().sqrt()))
