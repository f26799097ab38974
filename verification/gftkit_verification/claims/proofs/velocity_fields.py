"""T11, T12 and T16: accelerations, densities and drifts of velocity fields."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import sympy
import torch
from torch import Tensor

from gftkit.theory import flow, objective, predictions
from gftkit_verification.testbeds.measuring.proofs import BETA, RHO, G, T, only, proof
from gftkit_verification.testbeds.measuring.symbolic import Symbolic

PLACE = sympy.symbols("x y", real=True)
SMOOTH = "For all smooth fields in two dimensions: undefined functions of (t, x, y)."


def _field(name: str) -> Symbolic:
    """Any smooth vector field in two dimensions, (1, 2): undefined functions of (t, x, y)."""
    return Symbolic([[sympy.Function(f"{name}_{i}")(T, *PLACE) for i in range(2)]])


def _along(field: Symbolic, by: Symbolic) -> Symbolic:
    """(grad field) by."""
    moved = [sum(b * f.diff(x) for b, x in zip(by.values[0], PLACE, strict=True)) for f in field.values[0]]
    return Symbolic([moved])


def _divergence(field: Symbolic) -> Any:
    return sum(f.diff(x) for f, x in zip(field.values[0], PLACE, strict=True))


def _acceleration(velocity: Symbolic) -> Symbolic:
    return Symbolic([[v.diff(T) for v in velocity.values[0]]]) + _along(velocity, velocity)


@dataclass(frozen=True)
class Motion:
    """The functions of T11, T12 and T16."""

    blend: Callable[..., Any] = objective.blend
    acceleration: Callable[..., Any] = predictions.blend_acceleration
    drift: Callable[..., Any] = predictions.stochastic_drift
    score: Callable[..., Any] = flow.score


MOTION = Motion()
STOCHASTIC = {
    "score's sign": replace(MOTION, drift=lambda v, score, g: v - g**2 / 2 * score),
    "g^2 for g^2/2": replace(MOTION, drift=lambda v, score, g: v + g**2 * score),
    "g for g^2": replace(MOTION, drift=lambda v, score, g: v + g / 2 * score),
}


@proof(
    "T11-blend-acceleration-proof",
    statement=(
        "d_t v + (grad v) v of the blended velocity is (1 - rho) a_tgt + rho a_pre - rho (1 - rho) (grad Delta) Delta."
    ),
    reference="theory, T11",
    subject=MOTION,
    mutants={
        "no gap term": replace(MOTION, acceleration=lambda tgt, pre, _, rho: (1 - rho) * tgt + rho * pre),
        "gap term's sign": replace(
            MOTION, acceleration=lambda tgt, pre, gap, rho: predictions.blend_acceleration(tgt, pre, -gap, rho)
        ),
        "rho^2 for rho (1 - rho)": replace(
            MOTION, acceleration=lambda tgt, pre, gap, rho: (1 - rho) * tgt + rho * pre - rho**2 * gap
        ),
        "1/(1 + beta) for rho": replace(MOTION, blend=lambda tgt, pre, beta: tgt + (pre - tgt) / (1 + beta)),
    },
    conditions=SMOOTH,
)
def blend_acceleration(motion: Motion) -> Iterator[Any]:
    """The predicted acceleration less the blend's own."""
    tgt, pre = _field("v"), _field("u")
    gap = pre - tgt
    exact = _acceleration(motion.blend(tgt, pre, BETA))
    predicted = motion.acceleration(_acceleration(tgt), _acceleration(pre), _along(gap, gap), RHO)
    yield from (predicted - exact).values.flat


@proof(
    "T12-same-marginals-proof",
    statement="dX = (v + (g^2/2) grad log p_t) dt + g dW and dX = v dt have the same Fokker-Planck equation at p_t.",
    reference="theory, T12",
    subject=MOTION,
    mutants=STOCHASTIC,
    conditions=SMOOTH + " Any density p > 0 and any g(t).",
)
def fokker_planck_rates(motion: Motion) -> Iterator[Any]:
    """The rates of log p by the SDE and by the ODE, subtracted."""
    log_density = sympy.Function("log_p")(T, *PLACE)
    score = Symbolic([[log_density.diff(x) for x in PLACE]])
    velocity, g = _field("v"), sympy.Function("g")(T)

    def rate(drift: Symbolic, noise: Any) -> Any:
        """d/dt of log p by the Fokker-Planck equation, divided by p."""
        flux = _divergence(drift) + only((drift * score).sum())
        return noise**2 / 2 * (_divergence(score) + only((score * score).sum())) - flux

    yield rate(motion.drift(velocity, score, g), g) - rate(velocity, 0)


@proof(
    "T12-blends-proof-counterexample",
    statement=(
        "At beta = 1 it fails: for centred Gaussian flows of variance p and q at time t, the SDE with blended drifts "
        "changes the ODE's variance by -g^2 (sqrt(p) - sqrt(q))^2/(2 sqrt(p q)) more; not 0 unless p = q. At beta = 0 "
        "it is 0."
    ),
    reference="theory, T12",
    subject=MOTION,
    mutants={**STOCHASTIC, "no score": replace(MOTION, drift=lambda v, *_: v)},
    conditions="One dimension, one common start; the blended ODE carries the variance p^(1 - rho) q^rho.",
)
def excess_variance_of_blends(motion: Motion) -> Iterator[Any]:
    """The rate of the variance of the SDE less that of the ODE's: 0 at beta = 0, and its value at 1."""
    x, p, q, a, c = sympy.symbols("x p q a c", positive=True)

    def excess(temperature: int) -> Any:
        """dS/dt of the SDE less that of the ODE at the ODE's variance: S = p^(1 - rho) q^rho, as (log S)' = 2 A."""
        beta = sympy.Integer(temperature)
        variance = sympy.exp(motion.blend(sympy.log(p), sympy.log(q), beta))
        velocities, scores = (Symbolic([[a * x]]), Symbolic([[c * x]])), (-x / p, -x / q)
        drifts = [motion.drift(v, Symbolic([[score]]), G) for v, score in zip(velocities, scores, strict=True)]
        slope = only(motion.blend(*drifts, beta) - motion.blend(*velocities, beta)) / x
        return sympy.expand(2 * slope * variance + G**2)

    yield excess(0)
    yield excess(1) + G**2 * (sympy.sqrt(p) - sympy.sqrt(q)) ** 2 / (2 * sympy.sqrt(p * q))


class _Curved:
    """An affine path of no symmetry."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        return 1 - t, t**2, torch.zeros_like(t)


class _Apart:
    independent = True


@proof(
    "T16-path-kl-proof",
    statement=(
        "flow.score is -E[x0|x_t]/sigma, and with g^2 = 2/k, k = alpha/(sigma (alpha' sigma - alpha sigma')), "
        "Delta_b = 2 Delta_v: Girsanov's integrand |Delta_b|^2/(2 g^2) is k |Delta_v|^2."
    ),
    reference="theory, section 1 and T16",
    subject=MOTION,
    mutants={
        **STOCHASTIC,
        "score's sign in the flow": replace(MOTION, score=lambda *arguments: -1 * flow.score(*arguments)),
        "E[x0|x_t] for the score": replace(
            MOTION, score=lambda path, t, *arguments: -1 * path.coefficients(t)[0] * flow.score(path, t, *arguments)
        ),
    },
    conditions="One affine path, sigma = 1 - t and alpha = t^2; x0 ~ N(0, 1) independent of x1.",
)
def drift_gap_of_path_kl(motion: Motion) -> Iterator[Any]:
    """The score less its value, and the gap of drifts less twice that of velocities."""
    path, t = _Curved(), Symbolic([T])
    sigma, alpha, _ = (only(value) for value in path.coefficients(cast(Tensor, t)))
    k = alpha / (sigma * (alpha.diff(T) * sigma - alpha * sigma.diff(T)))
    x = sympy.Symbol("x", real=True)
    drifts, velocities = [], []
    for name in ("tgt", "pre"):
        start = sympy.Symbol(f"x0_{name}", real=True)  # E[x0|x_t = x]; with it sigma E[x0|x] + alpha E[x1|x] = x
        velocity = sigma.diff(T) * start + alpha.diff(T) * (x - sigma * start) / alpha
        score = motion.score(path, t, Symbolic([[x]]), Symbolic([[velocity]]), _Apart())
        yield only(score) + start / sigma
        velocities.append(velocity)
        drifts.append(only(motion.drift(Symbolic([[velocity]]), score, sympy.sqrt(2 / k))))
    yield drifts[1] - drifts[0] - 2 * (velocities[1] - velocities[0])
