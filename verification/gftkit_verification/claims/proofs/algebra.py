"""Expressions that are 0 where a statement is true, and claims that they are."""

from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Generator

from gftkit.verify.claims import Claim, Measurement, exact
from gftkit_verification.testbeds.symbolic import Symbolic

POINTS, DIGITS = 3, 30
"""Random points, and digits there, at which a residual is evaluated before algebra is tried."""

PROVED, UNPROVED = exact(1e-12), 1e-30
"""The bound, and the least size of what algebra doesn't bring to 0."""

BETA, H, W, T, G = sympy.symbols("beta h w t g", positive=True)
RHO = BETA / (1 + BETA)

Residuals = Callable[[Any], Iterable[Any]]
"""A subject -> expressions that are 0 where the statement is true."""


def vanishes(expression: Any) -> bool:
    """Whether algebra brings an expression to 0: as a rational function of roots, exponentials and what else is in it.

    Roots are taken apart as for positive symbols, among them 1 - t.
    """
    # With h = 1/(1 + beta) squares are sums of powers, and need no common denominator.
    short = expression.xreplace({BETA: 1 / H - 1}).expand()
    if short == 0 or sympy.numer(sympy.together(short)).expand() == 0:
        return True
    return bool(sympy.numer(sympy.together(sympy.powdenest(short, force=True))).expand() == 0)


def size(expression: Any, generator: Generator) -> float:
    """Its largest magnitude at random values of its symbols in (0, 1); where it is tiny there, 0 if algebra says so."""
    expression = sympy.sympify(expression)
    unknown = expression.atoms(AppliedUndef, sympy.Derivative, sympy.Integral, sympy.Subs)
    ordered = sorted(unknown, key=sympy.default_sort_key)  # equal seeds give equal points
    expression = expression.xreplace({atom: sympy.Symbol(f"_{k}", positive=True) for k, atom in enumerate(ordered)})
    symbols = sorted(expression.free_symbols, key=str)
    found = UNPROVED
    for _ in range(POINTS):
        draws = torch.randint(100, 900, (len(symbols),), generator=generator, device=generator.device).tolist()
        at = {symbol: sympy.Rational(draw, 1000) for symbol, draw in zip(symbols, draws, strict=True)}
        value = expression.xreplace(at).evalf(DIGITS)
        found = max(found, float(abs(value)) if value.is_finite else float("inf"))
    return 0.0 if found < PROVED.value and vanishes(expression) else found


def proof(
    name: str,
    statement: str,
    reference: str,
    subject: Any,
    residuals: Residuals,
    mutants: Mapping[str, Any],
    conditions: str,
    component: str = "",
) -> Claim:
    """A claim that every residual is 0: by algebra, or else (which the note says) to 30 digits at random points."""

    def measure(shipped: Any, generator: Generator) -> Measurement:
        found = max(size(residual, generator) for residual in residuals(shipped))
        unproved = 0 < found < PROVED.value
        return Measurement(found, note=f"Not proved, but true to {DIGITS} digits at random points." if unproved else "")

    return Claim(
        name=name,
        statement=statement,
        reference=reference,
        subject=subject,
        measure=measure,
        bound=PROVED,
        mutants=mutants,
        conditions=conditions,
        component=component,
        seeds=1,
    )


def event(name: str, d: int = 2) -> Any:
    """One state of d coordinates, (1, d), for functions that take tensors."""
    return Symbolic([sympy.symbols(f"{name}_:{d}", real=True)])


def only(value: Any) -> Any:
    """The expression of a Symbolic of one element."""
    return value.item()


PRE, TGT = event("b_pre"), event("b_tgt")
