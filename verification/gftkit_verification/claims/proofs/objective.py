"""T1 to T5 and T8: squares of drifts, through the functions of the objective."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import sympy

from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit_verification.testbeds.measuring.proofs import BETA, PRE, RHO, TGT, G, W, event, only, proof
from gftkit_verification.testbeds.measuring.symbolic import Symbolic

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


@proof(
    "T01-optimum-proof",
    statement=(
        "The gradients of the penalty and of the blended loss, in expectation over labels of mean b_tgt, vanish at "
        "b_beta = blend(b_tgt, b_pre, beta); their Hessians are 2 (1 + beta) w I and 2 w I, so it is the one minimum."
    ),
    reference="theory, T1",
    subject=SHIPPED,
    mutants={**BLENDS, "penalty without beta": BARE_PENALTY, "label and anchor swapped": SWAPPED},
    conditions=SQUARES,
)
def gradients_at_optimum(shipped: Objective) -> Iterator[Any]:
    """The gradients at the optimum, and the Hessians less their values."""
    at = dict(zip(B.values.flat, shipped.blend(TGT, PRE, BETA).values.flat, strict=True))
    for loss, curvature in ((shipped.penalty, 1 + BETA), (shipped.blended, 1)):
        risk = only(_expected(loss))
        for i, one in enumerate(at):
            slope = risk.diff(one)
            yield slope.xreplace(at)
            yield from (slope.diff(two) - 2 * W * curvature * int(i == j) for j, two in enumerate(at))


@proof(
    "T02-excess-risk-proof",
    statement="L_beta(b) - L_beta(b_beta) = (1 + beta) w |b - b_beta|^2 and L_beta(b_beta) = rho w |Delta|^2.",
    reference="theory, T2",
    subject=SHIPPED,
    mutants={
        "excess without 1 + beta": slips(excess=lambda b, best, _, w: w * squared_norm(b - best)),
        "beta for rho": slips(least=lambda tgt, pre, beta, w: w * beta * squared_norm(pre - tgt)),
        "risk without weight": slips(least=lambda tgt, pre, beta, _: objective.least_risk(tgt, pre, beta)),
        "1/(1 + beta) for rho": COMPLEMENT,
        "weight of one term": HALF_WEIGHTED,
    },
    conditions=SQUARES,
)
def excess_risk(shipped: Objective) -> Iterator[Any]:
    """The excess risk and the least risk, less their values."""
    optimum = shipped.blend(TGT, PRE, BETA)
    least = shipped.penalty(optimum, TGT, PRE, BETA, WEIGHT)
    yield only(shipped.penalty(B, TGT, PRE, BETA, WEIGHT) - least - shipped.excess(B, optimum, BETA, WEIGHT))
    yield only(least - shipped.least(TGT, PRE, BETA, WEIGHT))


@proof(
    "T03-forms-proof",
    statement="Per sample, C = (1 + beta) B + rho w |b_t(x|z) - b_pre|^2; at beta = 0 too.",
    reference="theory, T3",
    subject=SHIPPED,
    mutants={
        "beta for rho": slips(gap=lambda y, pre, beta, w: w * beta * squared_norm(y - pre)),
        "gap without weight": slips(gap=lambda y, pre, beta, _: objective.form_gap(y, pre, beta)),
        "label and anchor swapped": SWAPPED,
        "weight of one term": HALF_WEIGHTED,
    },
    conditions=SQUARES,
)
def difference_of_forms(shipped: Objective) -> Iterator[Any]:
    """The difference of the two forms, less its value."""
    for beta in (BETA, sympy.Integer(0)):
        penalty, blended = (loss(B, LABEL, PRE, beta, WEIGHT) for loss in (shipped.penalty, shipped.blended))
        yield only(penalty - (1 + beta) * blended - shipped.gap(LABEL, PRE, beta, WEIGHT))


@proof(
    "T03-conditional-marginal-proof",
    statement=(
        "In expectation over labels b_t(x|z) of mean b_tgt, C_beta - L_beta = w tr Cov, the same for every drift; for "
        "the blended form it is (1 - rho)^2 w tr Cov."
    ),
    reference="theory, T3 and T9",
    subject=SHIPPED,
    mutants={
        "weight squared": slips(penalty=lambda b, y, pre, beta, w: w * objective.penalty_loss(b, y, pre, beta, w)),
        "label term times 1 + beta": slips(
            penalty=lambda b, y, pre, beta, w: (1 + beta) * objective.penalty_loss(b, y, pre, beta, w)
        ),
        "label and anchor swapped": SWAPPED,
        "beta for rho": slips(blended=lambda b, y, pre, beta, w: w * squared_norm(b - WHOLE.blend(y, pre, beta))),
    },
    conditions=SQUARES + " A label of two values.",
)
def label_variance(shipped: Objective) -> Iterator[Any]:
    """The difference of the conditional and the marginal loss, less its value."""
    for loss, share in ((shipped.penalty, 1), (shipped.blended, (1 - RHO) ** 2)):
        yield only(_expected(loss) - loss(B, TGT, PRE, BETA, WEIGHT) - W * share * _variance())


@proof(
    "T04-drift-error-proof",
    statement="|b_beta - b_tgt|^2 = rho^2 |Delta|^2, and two optima are |rho - rho'| |Delta| apart (T8).",
    reference="theory, T4 and T8",
    subject=SHIPPED,
    mutants={**BLENDS, "step by sums": slips(step=lambda before, after, gap: (after + before) * gap)},
    conditions=SQUARES,
)
def drift_errors(shipped: Objective) -> Iterator[Any]:
    """The squared drift error of an optimum, and the distance of two, less their values."""
    gap = squared_norm(PRE - TGT)
    yield only(squared_norm(shipped.blend(TGT, PRE, BETA) - TGT) - RHO**2 * gap)
    cooler = sympy.Symbol("beta_2", positive=True)
    apart = squared_norm(shipped.blend(TGT, PRE, BETA) - shipped.blend(TGT, PRE, cooler))
    yield only(apart - shipped.step(RHO, cooler / (1 + cooler), 1) ** 2 * gap)


@proof(
    "T04-capacity-floor-proof",
    statement=(
        "In a linear class through b_pre with projection Pi the optimum is b_pre + (1 - rho) Pi(b_tgt - b_pre), of "
        "error rho^2 |Pi Delta|^2 + |(I - Pi) Delta|^2."
    ),
    reference="theory, T4",
    subject=SHIPPED,
    mutants={
        "penalty without beta": BARE_PENALTY,
        "weight of one term": HALF_WEIGHTED,
        "label and anchor swapped": SWAPPED,
    },
    conditions=SQUARES + " The class is along the first axis.",
)
def capacity_floor(shipped: Objective) -> Iterator[Any]:
    """The gradients at the optimum of a class, and its error less its value."""
    theta, axis = sympy.Symbol("theta", real=True), Symbolic([[1, 0]])  # turned so that the class is along it
    model = PRE + theta * axis
    inside, outside = (PRE - TGT).values[0]  # Pi Delta and (I - Pi) Delta
    best = -(1 - RHO) * inside
    for loss in (shipped.penalty, shipped.blended):
        yield only(loss(model, TGT, PRE, BETA, WEIGHT)).diff(theta).xreplace({theta: best})
    yield only(squared_norm(PRE + best * axis - TGT)) - RHO**2 * inside**2 - outside**2


@proof(
    "T05-path-kl-proof",
    statement="Girsanov's integrand |b - b_tgt|^2/(2 g^2) at b_beta is rho^2 times that at b_pre.",
    reference="theory, T5",
    subject=SHIPPED,
    mutants={
        **BLENDS,
        "rho for its square": slips(path_kl=lambda rho, kl: rho * kl),
        "1 - rho^2": slips(path_kl=lambda rho, kl: (1 - rho**2) * kl),
    },
    conditions=SQUARES + " g > 0.",
)
def girsanov_integrand(shipped: Objective) -> Iterator[Any]:
    """Girsanov's integrand at the optimum, less its prediction."""

    def integrand(drift: Any) -> Any:
        return squared_norm(drift - TGT) / (2 * G**2)

    yield only(integrand(shipped.blend(TGT, PRE, BETA)) - shipped.path_kl(RHO, integrand(PRE)))
