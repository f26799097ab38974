"""The velocity gap is a KL between the targets, and bounds that of the terminal law: T16."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Coupling, Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow, objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify import FromRegistry, Line, Measurement, claim, exact, registered
from gftkit_verification.oracles.affine import NODES, Blend, blend_drifts, collocate, gaussian_kl
from gftkit_verification.oracles.gaussian import Affine, GaussianFlow
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.measuring.differences import relative_error
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import (
    TEMPERATURES,
    cpu_generator,
    gauss_legendre,
    rho_of,
    sigma_points,
)
from gftkit_verification.testbeds.slips.objective import BLENDS, replace_each

EARLY = 1e-6
"""The start of the SDEs with g^2 = 2/k: at 0 their noise is infinite. They forget the start as t/EARLY grows."""

Rates = Callable[[Path, Tensor], tuple[Tensor, Tensor, Tensor]]
Clock = Callable[[Tensor], tuple[Tensor, Tensor]]
"""s -> t and dt/ds."""


@dataclass(frozen=True)
class Velocities:
    """The functions of a velocity and its SDE, and the blend."""

    rates: Rates = flow.rates
    score: Callable[[Path, Tensor, Tensor, Tensor, Coupling], Tensor] = flow.score
    stochastic_drift: Callable[[Tensor, Tensor, Tensor], Tensor] = predictions.stochastic_drift
    path_kl: Callable[[float, float], float] = predictions.path_kl
    blend: Blend = objective.blend


VELOCITIES = Velocities()

RATES = {
    "sigma' of the wrong sign": lambda path, t: (-flow.rates(path, t)[0], *flow.rates(path, t)[1:]),
    "alpha' halved": lambda path, t: (flow.rates(path, t)[0], flow.rates(path, t)[1] / 2, flow.rates(path, t)[2]),
    "rates swapped": lambda path, t: (flow.rates(path, t)[1], flow.rates(path, t)[0], flow.rates(path, t)[2]),
}
SCORES = {
    "sign": lambda *arguments: -flow.score(*arguments),
    "sigma forgotten": lambda path, t, *rest: path.coefficients(t)[0][:, None] * flow.score(path, t, *rest),
}
SCORE_TERMS = {
    "g^2 for g^2/2": lambda v, score, g: v + g**2 * score,
    "no score": lambda v, score, g: v + 0 * g * score,
}


@dataclass(frozen=True)
class FlowFromStandard:
    """The flow from N(0, I) to N(mean, cov) along an affine path, x0 and x1 independent; by the shipped rates."""

    path: Path
    rates: Rates
    mean: Tensor
    cov: Tensor

    def affine(self, t: Tensor) -> Affine:
        """v = alpha' m + (sigma sigma' I + alpha alpha' S)(sigma^2 I + alpha^2 S)^(-1) (x - alpha m)."""
        sigma, alpha, _ = (value[:, None, None] for value in self.path.coefficients(t))
        sigma_rate, alpha_rate, _ = (value[:, None, None] for value in self.rates(self.path, t))
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        cov_rate = sigma * sigma_rate * eye + alpha * alpha_rate * self.cov  # half of it
        slope = torch.linalg.solve(sigma**2 * eye + alpha**2 * self.cov, cov_rate, left=False)
        shift = alpha_rate[..., 0] * self.mean - (slope @ (alpha[..., 0] * self.mean)[..., None])[..., 0]
        return slope, shift

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x)."""
        slope, shift = self.affine(t)
        return (slope @ x[..., None])[..., 0] + shift


def kl_rate(path: Path, rates: Rates, t: Tensor) -> Tensor:
    """k = alpha/(sigma (alpha' sigma - alpha sigma'))."""
    (sigma, alpha, _), (sigma_rate, alpha_rate, _) = path.coefficients(t), rates(path, t)
    return alpha / (sigma * (alpha_rate * sigma - alpha * sigma_rate))


def affine_paths(registry: Registry) -> list[Path]:
    """The registered paths without noise that reach t = 1."""
    return [
        path
        for _, path in components(registry, "path")
        if not (flow.is_noisy(path) or flow.is_stochastic(path)) and flow.t_end(path) == 1
    ]


def target_pairs(
    functions: Velocities, path: Path, generator: Generator
) -> Iterator[tuple[FlowFromStandard, FlowFromStandard]]:
    """Flows to a target and to a pretrained model's law."""

    def draw(d: int) -> FlowFromStandard:
        mean = torch.randn(d, generator=generator, dtype=torch.float64)
        return FlowFromStandard(path, functions.rates, mean, random_covariance(d, generator))

    for d in (2, 4):
        yield draw(d), draw(d)


@claim(
    "T16-velocity-gap-kl",
    statement="int k E|v_pre - v_tgt|^2 dt = KL(q || q_pre) = KL(P_tgt || P_pre) of the SDEs with g^2 = 2/k.",
    reference="theory, T16",
    subject=VELOCITIES,
    bound=exact(1e-9),
    mutants=replace_each(VELOCITIES, rates=RATES, score=SCORES, stochastic_drift=SCORE_TERMS),
    conditions="Every registered affine path; source N(0, I), independent; normal targets of dimension 2 and 4.",
    seeds=1,
    uses={"paths": FromRegistry(affine_paths), "independent": registered("coupling", "independent")},
)
def gap_against_kl(functions: Velocities, generator: Generator, *, paths: list[Path], independent: Coupling) -> float:
    """KL(q || q_pre) against int k E|Delta_v|^2 dt, and against the path KL of the SDEs with g^2 = 2/k."""
    worst, generator = 0.0, cpu_generator(generator)
    for path in paths:
        for target, anchor in target_pairs(functions, path, generator):
            law = GaussianFlow(0 * target.mean, torch.eye(len(target.mean)), target.mean, target.cov)
            at = sigma_points(law, *gauss_legendre(NODES))
            x = flow.sample(path, at.t, at.x0, at.x1, at.noise)
            velocities = [each.velocity(at.t, x) for each in (target, anchor)]
            k = kl_rate(path, functions.rates, at.t)
            g = (2 / k).abs().sqrt()[:, None]
            drifts = [
                functions.stochastic_drift(v, functions.score(path, at.t, x, v, independent), g) for v in velocities
            ]
            kl = gaussian_kl(target.mean, target.cov, anchor.mean, anchor.cov)
            by_velocity = float((at.weight * k) @ squared_norm(velocities[1] - velocities[0]))
            by_path = float((at.weight / (2 * g[:, 0] ** 2)) @ squared_norm(drifts[1] - drifts[0]))
            worst = max(worst, relative_error(by_velocity, kl), relative_error(by_path, kl))
    return worst


def logarithmic_clock(s: Tensor) -> tuple[Tensor, Tensor]:
    """t from EARLY to 1, of equal steps in log t, and dt/ds."""
    span = -math.log(EARLY)
    t = torch.exp(-span * (1 - s))
    return t, span * t


def clocked_drift(flow_to: FlowFromStandard, functions: Velocities, clock: Clock, s: Tensor) -> Affine:
    """The drift v + (1/k) score in the time s of a clock; the score is that of N(alpha m, sigma^2 I + alpha^2 S)."""
    t, speed = clock(s)
    slope, shift = flow_to.affine(t)
    sigma, alpha, _ = (value[:, None, None] for value in flow_to.path.coefficients(t))
    eye = torch.eye(len(flow_to.mean), dtype=torch.float64)
    precision = torch.linalg.inv(sigma**2 * eye + alpha**2 * flow_to.cov)
    pull = (precision @ (alpha[..., 0] * flow_to.mean)[..., None])[..., 0]
    g = (2 / kl_rate(flow_to.path, functions.rates, t)).sqrt()[:, None]
    return (
        speed[:, None, None] * functions.stochastic_drift(slope, -precision, g[..., None]),
        speed[:, None] * functions.stochastic_drift(shift, pull, g),
    )


@claim(
    "T16-terminal-kl",
    statement="KL(q || p_1^beta) <= rho^2 KL(q || q_pre), for the SDE with g^2 = 2/k.",
    reference="theory, T16",
    subject=VELOCITIES,
    bound=exact(1e-9),
    mutants=replace_each(
        VELOCITIES,
        stochastic_drift=SCORE_TERMS,
        blend={"1/(1 + beta) for rho": BLENDS["1/(1 + beta) for rho"]},
        path_kl={"rho^4": lambda rho, whole: rho**4 * whole},
    ),
    conditions=(
        "Every registered affine path; source N(0, I), independent; normal targets of dimension 2 and 4; from "
        f"t = {EARLY:g}; temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}."
    ),
    seeds=1,
    axes=("temperature", "KL(q || p_1^beta)"),
    uses={"paths": FromRegistry(affine_paths)},
)
def terminal_kl_excess(functions: Velocities, generator: Generator, *, paths: list[Path]) -> Measurement:
    """The relative excess of KL(q || p_1^beta) over rho^2 KL(q || q_pre), p^beta by the SDE with g^2 = 2/k."""
    worst, generator = 0.0, cpu_generator(generator)
    lines: dict[str, Line] = {}
    for path in paths:

        def noise(s: Tensor) -> Tensor:
            t, speed = logarithmic_clock(s)
            return (2 * speed / kl_rate(path, functions.rates, t)).sqrt()  # noqa: B023

        for target, anchor in target_pairs(functions, path, generator):
            target_drift, anchor_drift = (
                partial(clocked_drift, each, functions, logarithmic_clock) for each in (target, anchor)
            )
            start = path.coefficients(torch.tensor([EARLY], dtype=torch.float64))
            sigma, alpha = float(start[0]), float(start[1])
            law = alpha * target.mean, sigma**2 * torch.eye(len(target.mean)) + alpha**2 * target.cov
            whole = gaussian_kl(target.mean, target.cov, anchor.mean, anchor.cov)
            ends = [
                collocate(blend_drifts(target_drift, anchor_drift, beta, functions.blend), noise, *law)
                for beta in TEMPERATURES
            ]
            kls = [gaussian_kl(target.mean, target.cov, *end) for end in ends]
            bounds = [functions.path_kl(rho_of(beta), whole) for beta in TEMPERATURES]
            worst = max(worst, *(kl / bound - 1 for kl, bound in zip(kls, bounds, strict=True)))
            lines = lines or {"measured": (TEMPERATURES, kls), "rho^2 KL(q || q_pre)": (TEMPERATURES, bounds)}
    return Measurement(worst, lines)
