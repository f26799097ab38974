"""T1 to T5 and T8: squares of drifts, through the objective's functions."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import sympy

from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim
from gftkit_verification.claims.proofs.algebra import BETA, PRE, RHO, TGT, G, W, event, only, proof
from gftkit_verification.testbeds.symbolic import Symbolic

B, LABEL = event("b"), event("y")
WEIGHT: Any = Symbolic([W])


@dataclass(frozen=True)
class Objective:
    """The functions of the objective, as the loop and the monitors call them, and the predictions about them."""

    penalty: Callable[..., Any] = objective.penalty_loss
    blended: Callable[..., Any] = objective.blended_loss
    blend: Callable[..., Any] = objective.blend
    excess: Callable[..., Any] = objective.excess_risk
    least: Callable[..., Any] = objective.least_risk
    gap: Callable[..., Any] = objective.form_gap
    path_kl: Callable[..., Any] = predictions.path_kl
    step: Callable[..., Any] = predictions.step_between_optima


SHIPPED = Objective()
SQUARES = "For all drifts in two dimensions, temperatures beta > 0 and weights w > 0: symbols."


def slips(**wrong: Callable[..., Any]) -> Objective:
    """``SHIPPED`` with a wrong function."""
    return replace(SHIPPED, **wrong)


def shares(*wrong: Callable[[Any], Any]) -> list[Objective]:
    """``SHIPPED`` with blends that keep other shares of the anchor, by temperature."""
    return [slips(blend=lambda tgt, pre, beta, share=share: tgt + share(beta) * (pre - tgt)) for share in wrong]


COMPLEMENT, WHOLE, SQUARED = shares(
    lambda beta: 1 / (1 + beta), lambda beta: beta, lambda beta: (beta / (1 + beta)) ** 2
)
BLENDS = {"1/(1 + beta) for rho": COMPLEMENT, "beta for rho": WHOLE, "rho squared": SQUARED}
BARE_PENALTY = slips(penalty=lambda b, y, pre, _, w: w * (squared_norm(b - y) + squared_norm(b - pre)))
HALF_WEIGHTED = slips(penalty=lambda b, y, pre, beta, w: w * squared_norm(b - y) + beta * squared_norm(b - pre))
SWAPPED = slips(blended=lambda b, y, pre, beta, w: objective.blended_loss(b, pre, y, beta, w))


def _expected(loss: Callable[..., Any]) -> Any:
    """The mean loss over a label that is y with probability 1/3, and else what makes its mean b_tgt."""
    other = (3 * TGT - LABEL) / 2
    return loss(B, LABEL, PRE, BETA, WEIGHT) / 3 + 2 * loss(B, other, PRE, BETA, WEIGHT) / 3


def _variance() -> Any:
    """tr Cov of that label: |y - b_tgt|^2/3 + 2 |(b_tgt - y)/2|^2/3."""
    return squared_norm(LABEL - TGT) / 2


def _stationary(shipped: Objective) -> Iterator[Any]:
    at = dict(zip(B.values.flat, shipped.blend(TGT, PRE, BETA).values.flat, strict=True))
    for loss, curvature in ((shipped.penalty, 1 + BETA), (shipped.blended, 1)):
        risk = only(_expected(loss))
        for i, one in enumerate(at):
            slope = risk.diff(one)
            yield slope.xreplace(at)
            yield from (slope.diff(two) - 2 * W * curvature * int(i == j) for j, two in enumerate(at))


def _squares(shipped: Objective) -> Iterator[Any]:
    optimum = shipped.blend(TGT, PRE, BETA)
    least = shipped.penalty(optimum, TGT, PRE, BETA, WEIGHT)
    yield only(shipped.penalty(B, TGT, PRE, BETA, WEIGHT) - least - shipped.excess(B, optimum, BETA, WEIGHT))
    yield only(least - shipped.least(TGT, PRE, BETA, WEIGHT))


def _forms(shipped: Objective) -> Iterator[Any]:
    for beta in (BETA, sympy.Integer(0)):
        penalty, blended = (loss(B, LABEL, PRE, beta, WEIGHT) for loss in (shipped.penalty, shipped.blended))
        yield only(penalty - (1 + beta) * blended - shipped.gap(LABEL, PRE, beta, WEIGHT))


def _labels(shipped: Objective) -> Iterator[Any]:
    for loss, share in ((shipped.penalty, 1), (shipped.blended, (1 - RHO) ** 2)):
        yield only(_expected(loss) - loss(B, TGT, PRE, BETA, WEIGHT) - W * share * _variance())


def _linear_error(shipped: Objective) -> Iterator[Any]:
    gap = squared_norm(PRE - TGT)
    yield only(squared_norm(shipped.blend(TGT, PRE, BETA) - TGT) - RHO**2 * gap)
    cooler = sympy.Symbol("beta_2", positive=True)
    apart = squared_norm(shipped.blend(TGT, PRE, BETA) - shipped.blend(TGT, PRE, cooler))
    yield only(apart - shipped.step(RHO, cooler / (1 + cooler), 1) ** 2 * gap)


def _floor(shipped: Objective) -> Iterator[Any]:
    theta, axis = sympy.Symbol("theta", real=True), Symbolic([[1, 0]])  # turned so that the class is along it
    model = PRE + theta * axis
    inside, outside = (PRE - TGT).values[0]  # Pi Delta and (I - Pi) Delta
    best = -(1 - RHO) * inside
    for loss in (shipped.penalty, shipped.blended):
        yield only(loss(model, TGT, PRE, BETA, WEIGHT)).diff(theta).xreplace({theta: best})
    yield only(squared_norm(PRE + best * axis - TGT)) - RHO**2 * inside**2 - outside**2


def _path_kl(shipped: Objective) -> Iterator[Any]:
    def integrand(drift: Any) -> Any:
        return squared_norm(drift - TGT) / (2 * G**2)

    yield only(integrand(shipped.blend(TGT, PRE, BETA)) - shipped.path_kl(RHO, integrand(PRE)))


def claims() -> Iterator[Claim]:
    """The proofs about squares."""
    yield proof(
        "T01-optimum-proof",
        "The gradients of the penalty and of the blended loss, in expectation over labels of mean b_tgt, vanish at "
        "b_beta = blend(b_tgt, b_pre, beta); their Hessians are 2 (1 + beta) w I and 2 w I, so it is the one minimum.",
        "theory, T1",
        SHIPPED,
        _stationary,
        {**BLENDS, "penalty without beta": BARE_PENALTY, "label and anchor swapped": SWAPPED},
        SQUARES,
    )
    yield proof(
        "T02-excess-risk-proof",
        "L_beta(b) - L_beta(b_beta) = (1 + beta) w |b - b_beta|^2 and L_beta(b_beta) = rho w |Delta|^2.",
        "theory, T2",
        SHIPPED,
        _squares,
        {
            "excess without 1 + beta": slips(excess=lambda b, best, _, w: w * squared_norm(b - best)),
            "beta for rho": slips(least=lambda tgt, pre, beta, w: w * beta * squared_norm(pre - tgt)),
            "risk without weight": slips(least=lambda tgt, pre, beta, _: objective.least_risk(tgt, pre, beta)),
            "1/(1 + beta) for rho": COMPLEMENT,
            "weight of one term": HALF_WEIGHTED,
        },
        SQUARES,
    )
    yield proof(
        "T03-forms-proof",
        "Per sample, C = (1 + beta) B + rho w |b_t(x|z) - b_pre|^2; at beta = 0 too.",
        "theory, T3",
        SHIPPED,
        _forms,
        {
            "beta for rho": slips(gap=lambda y, pre, beta, w: w * beta * squared_norm(y - pre)),
            "gap without weight": slips(gap=lambda y, pre, beta, _: objective.form_gap(y, pre, beta)),
            "label and anchor swapped": SWAPPED,
            "weight of one term": HALF_WEIGHTED,
        },
        SQUARES,
    )
    yield proof(
        "T03-conditional-marginal-proof",
        "In expectation over labels b_t(x|z) of mean b_tgt, C_beta - L_beta = w tr Cov, the same for every drift; for "
        "the blended form it is (1 - rho)^2 w tr Cov.",
        "theory, T3 and T9",
        SHIPPED,
        _labels,
        {
            "weight squared": slips(penalty=lambda b, y, pre, beta, w: w * objective.penalty_loss(b, y, pre, beta, w)),
            "label term times 1 + beta": slips(
                penalty=lambda b, y, pre, beta, w: (1 + beta) * objective.penalty_loss(b, y, pre, beta, w)
            ),
            "label and anchor swapped": SWAPPED,
            "beta for rho": slips(blended=lambda b, y, pre, beta, w: w * squared_norm(b - WHOLE.blend(y, pre, beta))),
        },
        SQUARES + " A label of two values.",
    )
    yield proof(
        "T04-drift-error-proof",
        "|b_beta - b_tgt|^2 = rho^2 |Delta|^2, and two optima are |rho - rho'| |Delta| apart (T8).",
        "theory, T4 and T8",
        SHIPPED,
        _linear_error,
        {**BLENDS, "step by sums": slips(step=lambda before, after, gap: (after + before) * gap)},
        SQUARES,
    )
    yield proof(
        "T04-capacity-floor-proof",
        "In a linear class through b_pre with projection Pi the optimum is b_pre + (1 - rho) Pi(b_tgt - b_pre), of "
        "error rho^2 |Pi Delta|^2 + |(I - Pi) Delta|^2.",
        "theory, T4",
        SHIPPED,
        _floor,
        {
            "penalty without beta": BARE_PENALTY,
            "weight of one term": HALF_WEIGHTED,
            "label and anchor swapped": SWAPPED,
        },
        SQUARES + " The class is along the first axis.",
    )
    yield proof(
        "T05-path-kl-proof",
        "Girsanov's integrand |b - b_tgt|^2/(2 g^2) at b_beta is rho^2 times that at b_pre.",
        "theory, T5",
        SHIPPED,
        _path_kl,
        {
            **BLENDS,
            "rho for its square": slips(path_kl=lambda rho, kl: rho * kl),
            "1 - rho^2": slips(path_kl=lambda rho, kl: (1 - rho**2) * kl),
        },
        SQUARES + " g > 0.",
    )
