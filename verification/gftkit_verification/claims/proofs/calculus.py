"""T11 to T13 and T16: derivatives of fields, densities and curves."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any, cast

import sympy
import torch
from torch import Tensor

from gftkit.theory import flow, objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim
from gftkit_verification.claims.proofs.algebra import BETA, PRE, RHO, TGT, G, T, only, proof
from gftkit_verification.testbeds.symbolic import Symbolic

PLACE = sympy.symbols("x y", real=True)


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
    """The functions that T11, T12 and T16 are about."""

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


def _curved(motion: Motion) -> Iterator[Any]:
    tgt, pre = _field("v"), _field("u")
    gap = pre - tgt
    wanted = _acceleration(motion.blend(tgt, pre, BETA))
    found = motion.acceleration(_acceleration(tgt), _acceleration(pre), _along(gap, gap), RHO)
    yield from (found - wanted).values.flat


def _same_marginals(motion: Motion) -> Iterator[Any]:
    log_density = sympy.Function("log_p")(T, *PLACE)
    score = Symbolic([[log_density.diff(x) for x in PLACE]])
    velocity, g = _field("v"), sympy.Function("g")(T)

    def rate(drift: Symbolic, noise: Any) -> Any:
        """d/dt of log p by the Fokker-Planck equation, divided by p."""
        flux = _divergence(drift) + only((drift * score).sum())
        return noise**2 / 2 * (_divergence(score) + only((score * score).sum())) - flux

    yield rate(motion.drift(velocity, score, g), g) - rate(velocity, 0)


def _other_marginals(motion: Motion) -> Iterator[Any]:
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


def _velocity_gap(motion: Motion) -> Iterator[Any]:
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


S, U, RATE = sympy.symbols("s u lambda", positive=True)


def _remembered(values: Any) -> Any:
    """int_0^s e^(-lambda (s - u)) f(u) du."""
    return sympy.exp(-RATE * S) * sympy.Integral(sympy.exp(RATE * U) * values.subs(S, U), (U, 0, S))


def _start(rho: Any) -> Any:
    return sympy.exp(-RATE * S) + RATE * _remembered(rho)


def _lagging(rho: Any) -> Any:
    return rho + sympy.exp(-RATE * S) * (1 - rho.subs(S, 0)) - _remembered(rho.diff(S))


def _slow(rho: Any) -> Any:
    slope = rho.diff(S)
    first = 1 - rho.subs(S, 0) + slope.subs(S, 0) / RATE
    return rho - slope / RATE + sympy.exp(-RATE * S) * first + _remembered(slope.diff(S)) / RATE


@dataclass(frozen=True)
class Tracking:
    """A loss, and three forms of the curve that its gradient flow follows."""

    loss: Callable[..., Any] = objective.blended_loss
    start: Callable[[Any], Any] = _start
    lagging: Callable[[Any], Any] = _lagging
    slow: Callable[[Any], Any] = _slow


def _tracking(tracking: Tracking) -> Iterator[Any]:
    c, rho = sympy.Symbol("c", real=True), sympy.Function("rho")(S)
    loss = only(tracking.loss(TGT + c * (PRE - TGT), TGT, PRE, BETA))
    # b moves by -(lambda/2) grad B, and c by the share of it along Delta: -(lambda/2) dB/dc/|Delta|^2.
    yield loss.diff(c) / 2 - only(squared_norm(PRE - TGT)) * (c - RHO)
    for form in (tracking.start, tracking.lagging, tracking.slow):
        curve = form(rho)
        yield curve.diff(S) + RATE * (curve - rho)
        yield curve.subs(S, 0).doit() - 1


def claims() -> Iterator[Claim]:
    """The proofs by calculus."""
    smooth = "For all smooth fields in two dimensions: undefined functions of (t, x, y)."
    yield proof(
        "T11-blend-acceleration-proof",
        "d_t v + (grad v) v of the blended velocity is (1 - rho) a_tgt + rho a_pre - rho (1 - rho) (grad Delta) Delta.",
        "theory, T11",
        MOTION,
        _curved,
        {
            "no gap term": replace(MOTION, acceleration=lambda tgt, pre, _, rho: (1 - rho) * tgt + rho * pre),
            "gap term's sign": replace(
                MOTION, acceleration=lambda tgt, pre, gap, rho: predictions.blend_acceleration(tgt, pre, -gap, rho)
            ),
            "rho^2 for rho (1 - rho)": replace(
                MOTION, acceleration=lambda tgt, pre, gap, rho: (1 - rho) * tgt + rho * pre - rho**2 * gap
            ),
            "1/(1 + beta) for rho": replace(MOTION, blend=lambda tgt, pre, beta: tgt + (pre - tgt) / (1 + beta)),
        },
        smooth,
    )
    yield proof(
        "T12-same-marginals-proof",
        "dX = (v + (g^2/2) grad log p_t) dt + g dW and dX = v dt have the same Fokker-Planck equation at p_t.",
        "theory, T12",
        MOTION,
        _same_marginals,
        STOCHASTIC,
        smooth + " Any density p > 0 and any g(t).",
    )
    yield proof(
        "T12-blends-proof-counterexample",
        "At beta = 1 it fails: for centred Gaussian flows of variance p and q at time t, the SDE with blended drifts "
        "changes the ODE's variance by -g^2 (sqrt(p) - sqrt(q))^2/(2 sqrt(p q)) more; not 0 unless p = q. At beta = 0 "
        "it is 0.",
        "theory, T12",
        MOTION,
        _other_marginals,
        {**STOCHASTIC, "no score": replace(MOTION, drift=lambda v, score, g: v)},  # noqa: ARG005
        "One dimension, one common start; the blended ODE carries the variance p^(1 - rho) q^rho.",
    )
    yield proof(
        "T13-tracking-proof",
        "Gradient flow on the blended loss from b_pre is c' = -lambda (c - rho(s)), c(0) = 1, with c = e^(-lambda s) + "
        "lambda int e^(-lambda (s - u)) rho(u) du: never below e^(-lambda s); c - rho = (1 - rho(0)) e^(-lambda s) - "
        "int e^(-lambda (s - u)) rho'(u) du: no overshoot where rho falls; and, by parts again, -rho'/lambda to first "
        "order in 1/lambda.",
        "theory, T13",
        Tracking(),
        _tracking,
        {
            "penalty form": Tracking(loss=objective.penalty_loss),
            "started at 0": Tracking(start=lambda rho: _start(rho) - sympy.exp(-RATE * S)),
            "lag of the other sign": Tracking(lagging=lambda rho: 2 * rho - _lagging(rho)),
            "lag rho' for rho'/lambda": Tracking(slow=lambda rho: _slow(rho) + rho.diff(S) * (1 / RATE - 1)),
        },
        "For every differentiable rho(s): an undefined function. One mode. The loss is the kernel's, the curves are "
        "algebra.",
    )
    yield proof(
        "T16-path-kl-proof",
        "flow.score is -E[x0|x_t]/sigma, and with g^2 = 2/k, k = alpha/(sigma (alpha' sigma - alpha sigma')), "
        "Delta_b = 2 Delta_v: Girsanov's integrand |Delta_b|^2/(2 g^2) is k |Delta_v|^2.",
        "theory, section 1 and T16",
        MOTION,
        _velocity_gap,
        {
            **STOCHASTIC,
            "score's sign in the flow": replace(MOTION, score=lambda *given: -1 * flow.score(*given)),
            "E[x0|x_t] for the score": replace(
                MOTION, score=lambda path, t, *given: -1 * path.coefficients(t)[0] * flow.score(path, t, *given)
            ),
        },
        "One affine path, sigma = 1 - t and alpha = t^2; x0 ~ N(0, 1) independent of x1.",
    )
