"""Densities of samples under a flow, against closed forms, and Hutchinson's estimate of the divergence."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.generation import likelihood
from gftkit.generation.likelihood import Density
from gftkit.kernel.contracts import Drift, Path, Solver
from gftkit.verify.claims import Measurement, order, statistical
from gftkit.verify.declaration import claim, registered
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.measuring.statistics import student_t
from gftkit_verification.testbeds.problems.equations import Equation
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, random_covariance
from gftkit_verification.testbeds.problems.moments import cpu_generator

STEPS = (8, 16)
TOLERANCE = 1.2
"""Distance of a slope from 4: a mixture's flow isn't slow."""
DIMENSION = 6
SAMPLES = 20_000

LogDensity = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class Densities:
    """The log-densities of samples under a flow, and the solver.

    Attributes:
        solver: takes the steps.
        log_density: of samples under a flow.
    """

    solver: Solver
    log_density: Callable[..., Density] = likelihood.log_density

    def at(self, drift: Drift, path: Path, steps: int, x1: Tensor, source: LogDensity) -> Tensor:
        """The log-densities."""
        return self.log_density(drift, path, self.solver, steps, x1, source).log


def normal(mean: Tensor, cov: Tensor) -> LogDensity:
    """log N(x; mean, cov)."""
    law: Any = torch.distributions.MultivariateNormal(mean, cov)
    return law.log_prob


def _slip(change: Callable[[Density, LogDensity, Tensor], Tensor]) -> Callable[..., Density]:
    """Log-densities with a slip, made of the right ones, the source's density and the samples."""

    def log_density(
        drift: Drift, path: Path, solver: Solver, steps: int, x1: Tensor, source: LogDensity, *more: Any
    ) -> Density:
        density = likelihood.log_density(drift, path, solver, steps, x1, source, *more)
        return replace(density, log=change(density, source, x1))

    return log_density


def _negated(drift: Drift, *more: Any) -> Density:
    return likelihood.log_density(lambda t, x, **conditions: -drift(t, x, **conditions), *more)


Problem = tuple[Any, Path, Tensor, LogDensity, LogDensity]
"""Velocity, what is integrated, samples, and the log-densities at t = 0 and t = 1."""


def draw_gaussian(path: Path, generator: Generator) -> Problem:  # noqa: ARG001
    """A flow between two Gaussians under the optimal coupling."""
    flow = draw_flow(2, generator, COUPLINGS[-1])
    x1 = flow.mean1 + torch.randn(16, 2, generator=generator, dtype=torch.float64)
    laws = normal(flow.mean0, flow.cov0), normal(flow.mean1, flow.cov1)
    velocity: Any = flow.velocity
    return velocity, Equation(velocity), x1, *laws


def draw_mixture(path: Path, generator: Generator) -> Problem:
    """A flow from a Gaussian to a mixture of three."""
    mean0, cov0 = torch.randn(2, generator=generator, dtype=torch.float64), random_covariance(2, generator)
    means = 2 * torch.randn(3, 2, generator=generator, dtype=torch.float64)
    covs = torch.stack([random_covariance(2, generator) for _ in range(3)])
    flow = MixtureFlow(path, mean0, cov0, torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), means, covs)
    x1 = means[torch.arange(16) % 3] + torch.randn(16, 2, generator=generator, dtype=torch.float64)
    return flow.velocity, path, x1, normal(mean0, cov0), lambda x: flow.log_density(torch.ones(1), x)


def _slips(subject: Densities) -> dict[str, Densities]:
    def slipped(change: Callable[[Density, LogDensity, Tensor], Tensor]) -> Densities:
        return replace(subject, log_density=_slip(change))

    return {
        "sign of the divergence": slipped(lambda density, source, _: 2 * source(density.x0) - density.log),
        "half of the divergence": slipped(lambda density, source, _: (source(density.x0) + density.log) / 2),
        "divergence left out": slipped(lambda density, source, _: source(density.x0)),
        "source's density at the sample": slipped(
            lambda density, source, x1: density.log - source(density.x0) + source(x1)
        ),
        "flow run the other way": replace(subject, log_density=_negated),
    }


LIKELIHOOD: dict[str, Any] = {
    "statement": "log p_1(x) = log p_0(x_0) - int div v dt: the error of the log-density falls as h^4 with rk4.",
    "reference": "theory, section 4; Chen et al. (2018), arXiv:1806.07366, theorem 1",
    "subject": registered("solver", "rk4").then(Densities),
    "bound": order(TOLERANCE),
    "mutants": _slips,
    "conditions": f"d = 2; {STEPS} steps of rk4",
    "axes": ("step h", "error of the log-density"),
    "seeds": 2,
}


@claim("likelihood-gaussian", **LIKELIHOOD, uses={"draw_problem": draw_gaussian, "path": registered("path", "linear")})
@claim(
    "likelihood-mixture",
    **LIKELIHOOD,
    profile="full",
    uses={"draw_problem": draw_mixture, "path": registered("path", "linear")},
)
def order_of_log_density(
    subject: Densities, generator: Generator, *, draw_problem: Callable[[Path, Generator], Problem], path: Path
) -> Measurement:
    """The distance from 4 of the slope of rk4's error on its step."""
    velocity, equation, x1, before, after = draw_problem(path, cpu_generator(generator))
    errors = [float((subject.at(velocity, equation, n, x1, before) - after(x1)).square().mean().sqrt()) for n in STEPS]
    slope = -np.polyfit(np.log(STEPS), np.log(np.maximum(errors, 1e-300)), 1)[0]
    h = [1 / n for n in STEPS]
    line = [errors[-1] * (step / h[-1]) ** 4 for step in h]
    lines = {"measured": (h, errors), "order 4": (h, line)}
    return Measurement(float(slope - 4), lines, f"slope {slope:.3f}, error {errors[-1]:.1e}")


@dataclass(frozen=True)
class Estimator:
    """The estimate of a divergence, and the law of its probes."""

    estimate: Callable[[Tensor, Tensor, Tensor], Tensor] = likelihood.hutchinson
    draw: Callable[[tuple[int, ...], Generator], Tensor] = likelihood.rademacher

    def errors(self, generator: Generator) -> tuple[Tensor, Tensor]:
        """Estimates minus the trace of a random linear velocity's matrix, (SAMPLES,), and that matrix, (d, d)."""
        generator = cpu_generator(generator)
        skewed = torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
        slope = random_covariance(DIMENSION, generator) + skewed + 3 * torch.eye(DIMENSION, dtype=torch.float64)
        with torch.enable_grad():
            x = torch.randn(SAMPLES, DIMENSION, generator=generator, dtype=torch.float64).requires_grad_()
            probes = self.draw((SAMPLES, 1, DIMENSION), generator).double()
            estimates = self.estimate(x @ slope.mT, x, probes)
        return estimates[:, 0].detach() - slope.trace(), slope


def _normal_probes(scale: float) -> Estimator:
    return Estimator(draw=lambda shape, g: scale * torch.randn(shape, generator=g, device=g.device))


HUTCHINSON = f"a linear velocity, d = {DIMENSION}, {SAMPLES} samples"


@claim(
    "likelihood-hutchinson-unbiased",
    statement="Hutchinson's estimate e^T (dv/dx) e has the mean div v.",
    reference="Hutchinson (1990); Grathwohl et al. (2019), arXiv:1810.01367",
    subject=Estimator(),
    bound=statistical(SAMPLES - 1),
    mutants={
        "probes of variance 2": _normal_probes(2**0.5),
        "half of the coordinates": Estimator(
            draw=lambda shape, g: likelihood.rademacher(shape, g) * (torch.arange(shape[-1]) % 2)
        ),
        "probe left out on one side": Estimator(lambda v, x, e: likelihood.hutchinson(v, x, e) * e[:, :, 0]),
    },
    conditions=HUTCHINSON,
)
def mean_of_estimates(subject: Estimator, generator: Generator) -> float:
    """The mean over samples of the estimates' errors, in standard errors."""
    return student_t(subject.errors(generator)[0])


@claim(
    "likelihood-hutchinson-variance",
    statement="With signs as probes its variance is 2 |S|^2 - 2 sum S_ii^2, S the symmetric part of dv/dx.",
    reference="Avron, Toledo (2011), Journal of the ACM 58, lemma 1",
    subject=Estimator(),
    bound=statistical(SAMPLES - 1),
    mutants={
        "normal probes": _normal_probes(1.0),
        "the mean of two estimates": Estimator(
            lambda v, x, e: (likelihood.hutchinson(v, x, e) + likelihood.hutchinson(v, x, e.roll(1, 0))) / 2
        ),
    },
    conditions=HUTCHINSON,
)
def variance_of_estimates(subject: Estimator, generator: Generator) -> float:
    """The mean of the squared errors minus their variance, in standard errors."""
    errors, slope = subject.errors(generator)
    symmetric = (slope + slope.mT) / 2
    expected = 2 * symmetric.square().sum() - 2 * symmetric.diagonal().square().sum()
    return student_t(errors.square(), float(expected))
