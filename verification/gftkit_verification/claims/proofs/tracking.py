"""T13: the curve that gradient flow on the blended loss follows."""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import sympy

from gftkit.theory import objective
from gftkit.theory.objective import squared_norm
from gftkit_verification.testbeds.measuring.proofs import BETA, PRE, RHO, TGT, only, proof

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


@proof(
    "T13-tracking-proof",
    statement=(
        "Gradient flow on the blended loss from b_pre is c' = -lambda (c - rho(s)), c(0) = 1, with c = e^(-lambda s) + "
        "lambda int e^(-lambda (s - u)) rho(u) du: never below e^(-lambda s); c - rho = (1 - rho(0)) e^(-lambda s) - "
        "int e^(-lambda (s - u)) rho'(u) du: no overshoot where rho falls; and, by parts again, -rho'/lambda to first "
        "order in 1/lambda."
    ),
    reference="theory, T13",
    subject=Tracking(),
    mutants={
        "penalty form": Tracking(loss=objective.penalty_loss),
        "started at 0": Tracking(start=lambda rho: _start(rho) - sympy.exp(-RATE * S)),
        "lag of the other sign": Tracking(lagging=lambda rho: 2 * rho - _lagging(rho)),
        "lag rho' for rho'/lambda": Tracking(slow=lambda rho: _slow(rho) + rho.diff(S) * (1 / RATE - 1)),
    },
    conditions=(
        "For every differentiable rho(s): an undefined function. One mode. The loss is the kernel's, the curves are "
        "algebra."
    ),
)
def tracking_curve(tracking: Tracking) -> Iterator[Any]:
    """The loss's gradient along the gap, and the equation and start of each form of the curve."""
    c, rho = sympy.Symbol("c", real=True), sympy.Function("rho")(S)
    loss = only(tracking.loss(TGT + c * (PRE - TGT), TGT, PRE, BETA))
    # b moves by -(lambda/2) grad B, and c by the share of it along Delta: -(lambda/2) dB/dc/|Delta|^2.
    yield loss.diff(c) / 2 - only(squared_norm(PRE - TGT)) * (c - RHO)
    for form in (tracking.start, tracking.lagging, tracking.slow):
        curve = form(rho)
        yield curve.diff(S) + RATE * (curve - rho)
        yield curve.subs(S, 0).doit() - 1
