"""T12 for noise of the user's choice: a velocity's flow, sampled by an SDE, keeps the marginals of its ODE."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Drift, NoiseScale, Path
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.sampling.scheme import Scheme
from gftkit.sampling.stochastic import StochasticPath
from gftkit.theory import flow
from gftkit.verify.claims import Claim, Measurement, exact, order, statistical
from gftkit_verification.claims.laws.sampling_trained import DEGREE, LINEAR, Run
from gftkit_verification.oracles.affine import bures_wasserstein
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.moments import on_cpu
from gftkit_verification.testbeds.problems import random_covariance
from gftkit_verification.testbeds.statistics import cross_fitted, evened
from gftkit_verification.testbeds.trials import LinearModel

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

Equation = tuple[Drift, Path]


@dataclass(frozen=True)
class Sampling:
    """A scheme with a noise scale, and what it makes of a velocity.

    Attributes:
        scheme: the scheme.
        change: (velocity, path, scheme's drift, scheme's path, g) -> what is integrated.
    """

    scheme: Scheme
    change: Callable[[Drift, Path, Drift, Path, NoiseScale], Equation] = lambda v, path, b, noisy, g: (b, noisy)  # noqa: ARG005

    def equation(self, velocity: Drift, path: Path) -> Equation:
        """What is integrated."""
        assert self.scheme.diffusion is not None
        return self.change(velocity, path, *self.scheme.equation(velocity, path), self.scheme.diffusion)


def _mixed(weights: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Equation]:
    """The drift made otherwise of velocity, the SDE's drift and g."""

    def change(v: Drift, path: Path, b: Drift, noisy: Path, g: NoiseScale) -> Equation:  # noqa: ARG001
        def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
            return weights(v(t, x, **conditions), b(t, x, **conditions), flow.expand(g(t), x))

        return drift, noisy

    return change


def _late(v: Drift, path: Path, b: Drift, noisy: Path, g: NoiseScale) -> Equation:  # noqa: ARG001
    """The score of the time 0.9 t."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        velocity = v(t, x, **conditions)
        return velocity + flow.expand(g(t) ** 2 / 2, x) * flow.affine_score(path, 0.9 * t, x, velocity)

    return drift, noisy


class Cut(StochasticPath):
    """The sampler's path, as if t_end were the end."""

    final_step = "mean"


def _cut(v: Drift, path: Path, b: Drift, noisy: Path, g: NoiseScale) -> Equation:  # noqa: ARG001
    """Nothing moves in the closing step."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        return b(t, x, **conditions) * (t < flow.t_end(noisy) - 1e-9)[:, None]

    return drift, Cut(path, g)


def none(t: Tensor) -> Tensor:
    """No noise."""
    return torch.zeros_like(t)


SLIPS: dict[str, Callable[..., Equation]] = {
    "sign of the score": _mixed(lambda v, b, g: 2 * v - b),  # noqa: ARG005
    "factor 1/2 forgotten": _mixed(lambda v, b, g: 2 * b - v),  # noqa: ARG005
    "g for g^2": _mixed(lambda v, b, g: v + (b - v) / g.clamp(min=1e-6)),
    "velocity in place of the drift": lambda v, path, b, noisy, g: (v, noisy),  # noqa: ARG005
    "noise left out": lambda v, path, b, noisy, g: (b, StochasticPath(path, none)),  # noqa: ARG005
    "score of another time": _late,
}


class Units:
    """Noise that gives unit vectors: the states are affine in it, and one run gives all coefficients.

    Args:
        before: rows without noise.
        d: dimension.
    """

    device = torch.device("cpu")

    def __init__(self, before: int, d: int) -> None:
        self._before, self._d, self._taken = before, d, 0

    def begin(self, first: int, count: int) -> None:  # noqa: ARG002
        """From the first step on."""
        self._taken = 0

    def normal(self, x: Tensor) -> Tensor:
        """The next step's, of x's shape."""
        drawn = torch.zeros_like(x)
        at = self._before + self._taken * self._d
        drawn[at : at + self._d] = torch.eye(self._d, dtype=x.dtype)
        self._taken += 1
        return drawn

    def generator(self) -> Generator:
        """Not asked for."""
        raise NotImplementedError


def chain(subject: Sampling, drift: Drift, path: Path, steps: int, d: int) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the sampler's states half way, and at the end, from N(0, I): (2, d), (2, d, d)."""
    drift, path = subject.equation(drift, path)
    before = 1 + d
    x0 = torch.zeros(before + (steps + 1) * d, d, dtype=torch.float64)
    x0[1:before] = torch.eye(d, dtype=torch.float64)
    states = integrate.generate(
        drift, path, subject.scheme.solver, steps, x0, Units(before, d), batch_size=len(x0), whole=True
    )
    states = states[[steps // 2, len(states) - 1]]
    rest = states[:, 1:] - states[:, :1]
    slope, noise = rest[:, :d].mT, rest[:, d:]
    return states[:, 0], slope @ slope.mT + noise.mT @ noise


def _problem(path: Path, generator: Generator, components: int) -> MixtureFlow:
    """From N(0, I) to a normal law or mixture in the plane that is neither isotropic nor centred."""
    weights = torch.tensor([0.35, 0.65] if components == 2 else [1.0], dtype=torch.float64)
    means = torch.randn(components, 2, generator=generator, dtype=torch.float64)
    if components == 2:
        means = torch.stack([means[0], -means[0]]) * 1.5 / means[0].norm()
    covs = 0.5 * torch.stack([random_covariance(2, generator) for _ in range(components)])
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    return MixtureFlow(path, zero, eye, weights, means, covs)


def _velocity(problem: MixtureFlow) -> Drift:
    return lambda t, x, **_: problem.velocity(t.clamp(0, 1), x)


def moments(subject: Sampling, path: Path, generator: Generator) -> float:
    """The relative distance of mean and covariance from the marginals', half way and at t = 1, at its largest."""
    generator = on_cpu(generator)
    worst = 0.0
    problem = _problem(path, generator, 1)
    (mean, cov), (finer_mean, finer_cov) = (chain(subject, _velocity(problem), path, steps, 2) for steps in CHAINS)
    mean, cov = (4 * finer_mean - mean) / 3, (4 * finer_cov - cov) / 3
    for k, t in enumerate((flow.t_end(StochasticPath(path, none)) / 2, 1.0)):
        sigma, alpha, _ = (float(part) for part in path.coefficients(torch.tensor(t, dtype=torch.float64)))
        wanted = sigma**2 * torch.eye(2, dtype=torch.float64) + alpha**2 * problem.covs[0]
        size = float(wanted.norm())
        apart = float((mean[k] - alpha * problem.means[0]).norm()) / size**0.5
        worst = max(worst, float((cov[k] - wanted).norm()) / size, apart)
    return worst


def mixed(subject: Sampling, path: Path, generator: Generator) -> float:
    """Standard errors of functions of the samples at t = 1 that have mean 0 on the mixture.

    Both components' shares, first and second moments, and by Stein's identity the score s and x s^T + I.
    """
    generator = on_cpu(generator)
    problem = _problem(path, generator, 2)
    drift, noisy = subject.equation(_velocity(problem), path)
    x0 = torch.randn(SAMPLES, 2, generator=generator, dtype=torch.float64)
    x = integrate.generate(drift, noisy, subject.scheme.solver, STEPS, x0, generator, batch_size=SAMPLES)
    mean = problem.weights @ problem.means
    second = (problem.weights[:, None, None] * (problem.covs + problem.means[..., None] * problem.means[:, None])).sum(
        0
    )
    score = problem.score(torch.ones(SAMPLES, dtype=torch.float64), x)
    stein = x[..., None] * score[:, None] + torch.eye(2, dtype=torch.float64)
    squares = x[..., None] * x[:, None] - second
    found = torch.cat([x - mean, squares.flatten(1)[:, [0, 1, 3]], score, stein.flatten(1)], 1)
    return cross_fitted(evened(found), torch.zeros(found.shape[1]))


def trained(subject: Sampling, run: Run, generator: Generator) -> Measurement:
    """W2 of the samples' normal law from q, relative to q's spread, of a drift that the shipped loop has trained."""
    here = on_cpu(generator)
    zero, eye = torch.zeros(2, dtype=torch.float64), torch.eye(2, dtype=torch.float64)
    mean = torch.randn(2, generator=here, dtype=torch.float64)
    gaussian = GaussianFlow(zero, eye, 2 * mean / mean.norm(), random_covariance(2, here))
    fitted: nn.Module = run.fitted(LinearModel(2, DEGREE), gaussian, LINEAR, generator)
    drift, path = subject.equation(fitted, run.path)
    x0 = gaussian.starts(8000, here).float()
    x = integrate.generate(drift, path, subject.scheme.solver, TRAINED_STEPS, x0, generator, batch_size=8000).double()
    apart = bures_wasserstein(x.mean(0), torch.cov(x.mT), gaussian.mean1, gaussian.cov1)
    return Measurement(apart / float(gaussian.cov1.trace().sqrt()))


def out_of_range(scale: NoiseScale, generator: Generator) -> float:  # noqa: ARG001
    """The share of times in [0, 1] where g is negative or not finite; 1 where it isn't of t's shape and type."""
    worst = 0.0
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(0, 1, 1001, dtype=dtype)
        g = scale(t)
        if (g.shape, g.dtype) != (t.shape, t.dtype):
            return 1.0
        worst = max(worst, float((~torch.isfinite(g) | (g < 0)).double().mean()))
    return worst


def made(registry: Registry, name: str) -> NoiseScale:
    """A noise scale of size 1.6, where it takes a size."""
    options: dict[str, Any] = {"scale": SCALE} if "scale" in registry.component("diffusion", name).options else {}
    scale: NoiseScale = registry.create("diffusion", name, **options)
    return scale


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    linear, trigonometric = registry.create("path", "linear"), registry.create("path", "trigonometric")
    solver = registry.create("solver", "stochastic-heun")
    run = Run(registry, registry.create("coupling", "independent"), linear, registry.create("solver", "euler"))
    for name, plain in components(registry, "diffusion"):
        component = f"diffusion:{name}"
        subject = Sampling(Scheme(solver, STEPS, None, made(registry, name)))
        slips = {key: replace(subject, change=change) for key, change in SLIPS.items()}
        yield Claim(
            f"diffusion-range-{name}",
            "The noise scale g is >= 0 and finite on [0, 1], and of t's shape and type.",
            "gftkit.kernel.contracts.NoiseScale",
            plain,
            out_of_range,
            exact(),
            {
                "negative": lambda t, g=plain: -1 - g(t),
                "infinite at the data": lambda t, g=plain: (1 + g(t)) / (1 - t),
                "not a number at the data": lambda t, g=plain: g(t) + torch.sqrt(0.9 - t),
                "one number for all": lambda t, g=plain: g(t)[0],
            },
            "1001 times, float32 and float64",
            component,
            seeds=1,
        )
        yield Claim(
            f"T12-sampled-gaussian-{name}",
            "A velocity's flow sampled with this noise has the ODE's mean and covariance, half way and at t = 1.",
            "theory, T12 and section 1",
            subject,
            lambda subject, generator: moments(subject, linear, generator),
            order(MOMENTS),
            {**slips, "closing step dropped": replace(subject, change=_cut)},
            f"from N(0, I) to a normal law in the plane, linear path; stochastic-heun in {CHAINS} steps, extrapolated; "
            f" moments computed and not sampled",
            component,
            seeds=1,
        )
        yield Claim(
            f"T12-sampled-mixture-{name}",
            "A velocity's flow sampled with this noise ends in the mixture that its ODE ends in.",
            "theory, T12 and section 1",
            subject,
            lambda subject, generator: mixed(subject, trigonometric, generator),
            statistical(),
            {key: slips[key] for key in ("sign of the score", "velocity in place of the drift", "noise left out")},
            f"two normal laws in the plane, trigonometric path; {SAMPLES} samples, {STEPS} steps of "
            f"stochastic-heun; moments and Stein's identity",
            component,
            seeds=1,
        )
        if float(plain(torch.ones(1))) > 0:
            continue  # near t = 1 an error of v counts 1/(1 - t)-fold in the score: with noise there it isn't small
        yield Claim(
            f"T12-sampled-trained-{name}",
            "A velocity that was trained, sampled with this noise, has the moments of q.",
            "theory, T12 and section 1",
            subject,
            lambda subject, generator: trained(subject, run, generator),
            order(TRAINED),
            {key: slips[key] for key in ("sign of the score", "velocity in place of the drift", "noise left out")},
            f"from N(0, I) to a normal law in the plane, linear model of degree {DEGREE} in t, {TRAINED_STEPS} steps "
            f"of stochastic-heun, 8000 samples",
            component,
            "full",
            seeds=1,
        )
