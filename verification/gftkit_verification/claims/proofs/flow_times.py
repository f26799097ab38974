"""T19 to T21: temperatures above -1 that depend on flow time, and blends of a fit with its anchor."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import sympy

from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit_verification.testbeds.measuring.proofs import PRE, TGT, G, W, event, only, proof
from gftkit_verification.testbeds.measuring.symbolic import Symbolic

Number = Callable[..., Any]

RHOS = sympy.symbols("rho_1 rho_2", real=True)
"""At two flow times."""
HS = sympy.symbols("h_1 h_2", positive=True)
"""1 - rho = 1/(1 + beta) > 0: every temperature above -1 and none else."""
WEIGHTS = (W, sympy.Symbol("w_2", positive=True))
DRIFTS = (event("b"), event("b_2"))
TARGETS, ANCHORS = (TGT, event("c_tgt")), (PRE, event("c_pre"))
LABELS = (event("y"), event("z"))

TIMES = "Two flow times with drifts in two dimensions, weights w > 0 and temperatures beta > -1 of their own: symbols."


@dataclass(frozen=True)
class Timed:
    """The functions of the objective, and the predictions by flow time."""

    penalty: Number = objective.penalty_loss
    blended: Number = objective.blended_loss
    blend: Number = objective.blend
    excess: Number = objective.excess_risk
    least: Number = objective.least_risk
    path_kl: Number = predictions.path_kl_by_time
    label_noise: Number = predictions.label_noise
    temperature: Number = objective.temperature_of
    retention: Number = objective.retention


SHIPPED = Timed()


def slips(**wrong: Number) -> Timed:
    """``SHIPPED`` with a wrong function."""
    return replace(SHIPPED, **wrong)


def _betas() -> list[Any]:
    return [1 / h - 1 for h in HS]


def _total(loss: Number, labels: Sequence[Any]) -> Any:
    """The objective: the sum over two flow times, in expectation over two labels of mean b_tgt at each."""
    total = 0
    for b, target, label, anchor, beta, w in zip(DRIFTS, TARGETS, labels, ANCHORS, _betas(), WEIGHTS, strict=True):
        other = 2 * target - label
        weight: Any = Symbolic([w])
        total += sum(only(loss(b, one, anchor, beta, weight)) for one in (label, other)) / 2
    return total


@proof(
    "T19-optimum-proof",
    statement=(
        "Summed over flow times, the gradients of both losses vanish where at each t b = b_tgt + rho(t) Delta, and "
        "their Hessians are 2 (1 + beta(t)) w I > 0 and 2 w I: the one minimum, for every beta(t) > -1; the excess "
        "risk is the sum of w (1 + beta(t)) |b - b_beta|^2, the least risk that of w rho(t) |Delta|^2."
    ),
    reference="theory, T19",
    subject=SHIPPED,
    mutants={
        "beta for rho": slips(blend=lambda y, pre, beta: y + beta * (pre - y)),
        "the sign": slips(blend=lambda y, pre, beta: y - beta / (1 + beta) * (pre - y)),
        "size of beta": slips(
            penalty=lambda b, y, pre, beta, w: w * (squared_norm(b - y) + beta**2 * squared_norm(b - pre))
        ),
        "excess without 1 + beta": slips(excess=lambda b, best, _, w: w * squared_norm(b - best)),
        "1 - rho for rho": slips(least=lambda tgt, pre, beta, w: w / (1 + beta) * squared_norm(pre - tgt)),
    },
    conditions=TIMES,
)
def gradients_by_time(shipped: Timed) -> Iterator[Any]:
    """Gradients at the optimum, Hessians and risks, less their values."""
    optima = [shipped.blend(*each) for each in zip(TARGETS, ANCHORS, _betas(), strict=True)]
    at: dict[Any, Any] = {}
    for b, optimum in zip(DRIFTS, optima, strict=True):
        at |= dict(zip(b.values.flat, optimum.values.flat, strict=True))
    for loss, curvatures in ((shipped.penalty, [1 / h for h in HS]), (shipped.blended, [1, 1])):
        risk = _total(loss, LABELS)
        for k, b in enumerate(DRIFTS):
            for one in b.values.flat:
                slope = risk.diff(one)
                yield slope.xreplace(at)
                yield from (slope.diff(two) - 2 * WEIGHTS[k] * curvatures[k] * int(one == two) for two in at)
    risk, excess, least = _total(shipped.penalty, TARGETS), 0, 0
    for b, optimum, target, anchor, beta, w in zip(DRIFTS, optima, TARGETS, ANCHORS, _betas(), WEIGHTS, strict=True):
        weight: Any = Symbolic([w])
        excess += only(shipped.excess(b, optimum, beta, weight))
        least += only(shipped.least(target, anchor, beta, weight))
    yield risk - excess - least


@proof(
    "T19-path-kl-proof",
    statement=(
        "Girsanov's integrand |b - b_tgt|^2/(2 g^2) at the optimum is rho(t)^2 that at b_pre at each t, and the label "
        "noise of the blended form (1 - rho(t))^2 that of plain flow matching."
    ),
    reference="theory, T19 with T5 and T9",
    subject=SHIPPED,
    mutants={
        "rho for rho squared": slips(
            path_kl=lambda rhos, kls: sum(rho * kl for rho, kl in zip(rhos, kls, strict=True))
        ),
        "the mean squared": slips(path_kl=lambda rhos, kls: (sum(rhos) / 2) ** 2 * sum(kls)),
        "noise 1 - rho^2": slips(label_noise=lambda rho, plain: (1 - rho**2) * plain),
        "beta for rho": slips(blend=lambda y, pre, beta: y + beta * (pre - y)),
    },
    conditions=TIMES,
)
def integrands_by_time(shipped: Timed) -> Iterator[Any]:
    """The sum of Girsanov's integrands, and the variance of blended labels, less their predictions."""
    rhos, at_pre, at_optimum = [1 - h for h in HS], [], 0
    for target, anchor, label, beta, w, rho in zip(TARGETS, ANCHORS, LABELS, _betas(), WEIGHTS, rhos, strict=True):
        optimum = shipped.blend(target, anchor, beta)
        at_pre.append(w * only(squared_norm(anchor - target)) / (2 * G**2))
        at_optimum += w * only(squared_norm(optimum - target)) / (2 * G**2)
        noise = only(squared_norm(shipped.blend(label, anchor, beta) - optimum))  # of a label and its mirror image
        yield noise - shipped.label_noise(rho, only(squared_norm(label - target)))
    yield at_optimum - shipped.path_kl(rhos, at_pre)


@proof(
    "T19-temperature-proof",
    statement="beta = rho/(1 - rho) and rho = beta/(1 + beta) undo each other on beta > -1, rho < 1.",
    reference="theory, T19",
    subject=SHIPPED,
    mutants={
        "1 + rho": slips(temperature=lambda rho: rho / (1 + rho)),
        "1/(1 + beta)": slips(retention=lambda beta: 1 / (1 + beta)),
    },
    conditions="1 - rho > 0: a symbol.",
)
def inverse_functions(shipped: Timed) -> Iterator[Any]:
    """Each function at h = 1 - rho = 1/(1 + beta), less its value."""
    rho, beta = 1 - HS[0], 1 / HS[0] - 1
    yield shipped.temperature(rho) - beta
    yield shipped.retention(beta) - rho


# --- T20 --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Lagging:
    """A blend of a fit with its anchor, and the predictions about it."""

    blend: Number = objective.blend
    error: Number = predictions.error_with_noise
    best: Number = predictions.best_retention
    lag: Number = predictions.lag_of


def lag_slips(**wrong: Number) -> Lagging:
    """A wrong function."""
    return replace(Lagging(), **wrong)


@proof(
    "T20-lag-proof",
    statement=(
        "|b + r (b_pre - b) - b_tgt|^2 = (c + r (1 - c))^2 |Delta|^2 + (1 - r)^2 F for b = b_tgt + c Delta + zeta with "
        "<zeta, Delta> = 0; its derivative in r is 0 at r*, its second one 2 ((1 - c)^2 |Delta|^2 + F) > 0; with F = 0 "
        "r* = -c/(1 - c) and the blend is b_tgt."
    ),
    reference="theory, T20",
    subject=Lagging(),
    mutants={
        "lag not damped": lag_slips(error=lambda r, gap, f, c: (c + r) ** 2 * gap**2 + (1 - r) ** 2 * f),
        "noise not damped": lag_slips(error=lambda r, gap, f, c: (c + r * (1 - c)) ** 2 * gap**2 + f),
        "the sign": lag_slips(best=lambda gap, f, c: (f + c * (1 - c) * gap**2) / ((1 - c) ** 2 * gap**2 + f)),
        "lag left out": lag_slips(best=lambda gap, f, c: f / (gap**2 + f)),  # noqa: ARG005
        "r for the lag": lag_slips(lag=lambda r: -r),
        "beta for r": lag_slips(blend=lambda b, pre, beta: b + beta * (pre - b)),
    },
    conditions="For all drifts in two dimensions, c = 1 - 1/(1 + k) with k > 0 and noise orthogonal to Delta: symbols.",
)
def error_of_blend(shipped: Lagging) -> Iterator[Any]:
    """The error of the blend, its derivatives at r*, and the blend without noise, less their values."""
    k, z = sympy.symbols("k z", positive=True)
    c, h = k / (1 + k), HS[0]  # beta = 1/h - 1, r = 1 - h
    of_gap = sympy.Symbol("D", positive=True)
    gap, zeta = Symbolic([[of_gap, 0]]), Symbolic([[0, z]])  # turned so that Delta is along the first axis
    pre = TGT + gap
    error = only(squared_norm(shipped.blend(TGT + c * gap + zeta, pre, 1 / h - 1) - TGT))
    yield error - shipped.error(1 - h, of_gap, z**2, c)
    best = sympy.cancel(shipped.best(of_gap, z**2, c))
    yield sympy.cancel(sympy.cancel(error.diff(h)).xreplace({h: 1 - best}))
    yield error.diff(h, 2) - 2 * ((1 - c) ** 2 * of_gap**2 + z**2)
    past = sympy.simplify(shipped.best(of_gap, 0, c))
    yield past + k  # -c/(1 - c)
    yield shipped.lag(past) - c
    yield from (shipped.blend(TGT + c * gap, pre, 1 / (1 + k) - 1) - TGT).values.flat  # beta of r = -k


# --- T21 --------------------------------------------------------------------------------------------------------------


@proof(
    "T21-time-by-time-proof",
    statement=(
        "The error of a retention r(t) beyond r*(t)'s is int w (r*(t) - r(t))^2 E|b_hat - b_pre|^2 dt, and that of the "
        "best constant, the mean of r* with these weights, is least among constants."
    ),
    reference="theory, T21",
    subject=predictions.profile_gain,
    mutants={
        "not squared": lambda best, weights, r=None: sum(
            (one - (0 if r is None else r[k])) * weights[k] for k, one in enumerate(best)
        ),
        "about the plain mean": lambda best, weights, r=None: predictions.profile_gain(
            best, weights, [sum(best) / len(best)] * len(best) if r is None else r
        ),
        "weights forgotten": lambda best, weights, r=None: predictions.profile_gain(best, [1] * len(weights), r),
    },
    conditions="Two flow times; fits, targets and anchors in two dimensions, and weights w > 0: symbols.",
)
def gain_by_time(gain: Number) -> Iterator[Any]:
    """The difference of two errors, by the blend's squares, less the gain."""
    parts = []
    for k, (anchor, w) in enumerate(zip(ANCHORS, WEIGHTS, strict=True)):
        m, u, v = sympy.symbols(f"m_{k} u_{k} v_{k}", positive=True)
        b = anchor + Symbolic([[m, 0]])  # turned so that b_hat - b_pre is along the first axis
        parts.append((b, b - Symbolic([[u, v]]), anchor, w))
    along = [only(((b - target) * (b - anchor)).sum(1)) for b, target, anchor, _ in parts]
    moved = [only(squared_norm(b - anchor)) for b, _, anchor, _ in parts]
    best = [sympy.cancel(one / other) for one, other in zip(along, moved, strict=True)]
    weights = [sympy.expand(w * square) for square, (*_, w) in zip(moved, parts, strict=True)]

    def error(retention: Sequence[Any]) -> Any:
        each = zip(parts, retention, strict=True)
        return sum(w * only(squared_norm(b + r * (anchor - b) - target)) for (b, target, anchor, w), r in each)

    yield error(RHOS) - error(best) - gain(best, weights, list(RHOS))
    constant = sum(one * weight for one, weight in zip(best, weights, strict=True)) / sum(weights)
    yield error([constant] * 2) - error(best) - gain(best, weights)
    yield error([RHOS[0]] * 2).diff(RHOS[0]).xreplace({RHOS[0]: constant})
