"""Proofs by sympy: expressions that are 0 where a statement is true, and claims that they are."""

import functools
from collections.abc import Callable, Iterable, Mapping
from typing import Any

import sympy
import torch
from sympy.core.function import AppliedUndef
from torch import Generator

from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Measurement, exact
from gftkit.verify.declaration import claim, claim_for_each
from gftkit_verification.testbeds.measuring.symbolic import Symbolic

POINTS, DIGITS = 3, 30
"""Random points, and digits there, at which a residual is evaluated before algebra is tried."""

PROVED, UNPROVED = exact(1e-12), 1e-30
"""The bound, and the least size of what algebra doesn't bring to 0."""

BETA, H, W, T, G = sympy.symbols("beta h w t g", positive=True)
RHO = BETA / (1 + BETA)

Residuals = Callable[..., Iterable[Any]]
"""A subject -> expressions that are 0 where the statement is true."""


def vanishes(expression: Any) -> bool:
    """True where algebra brings an expression to 0, as a rational function of roots, exponentials and the like.

    Roots are taken apart as for positive symbols, among them 1 - t.
    """
    # With h = 1/(1 + beta) squares are sums of powers, and need no common denominator.
    short = expression.xreplace({BETA: 1 / H - 1}).expand()
    if short == 0 or sympy.numer(sympy.together(short)).expand() == 0:
        return True
    return bool(sympy.numer(sympy.together(sympy.powdenest(short, force=True))).expand() == 0)


def size(expression: Any, generator: Generator) -> float:
    """The largest magnitude of an expression at random values of its symbols in (0, 1); 0 where algebra says so."""
    expression = sympy.sympify(expression)
    unknown = expression.atoms(AppliedUndef, sympy.Derivative, sympy.Integral, sympy.Subs)
    ordered = sorted(unknown, key=sympy.default_sort_key)  # equal seeds give equal points
    expression = expression.xreplace({atom: sympy.Symbol(f"_{k}", positive=True) for k, atom in enumerate(ordered)})
    symbols = sorted(expression.free_symbols, key=str)
    largest = UNPROVED
    for _ in range(POINTS):
        draws = torch.randint(100, 900, (len(symbols),), generator=generator, device=generator.device).tolist()
        at = {symbol: sympy.Rational(draw, 1000) for symbol, draw in zip(symbols, draws, strict=True)}
        value = expression.xreplace(at).evalf(DIGITS)
        largest = max(largest, float(abs(value)) if value.is_finite else float("inf"))
    return 0.0 if largest < PROVED.value and vanishes(expression) else largest


def proof(
    name: str,
    *,
    statement: str,
    reference: str,
    subject: Any,
    mutants: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]],
    conditions: Any,
    items: Callable[[Registry], Iterable[tuple[str, Any]]] | None = None,
    component: str = "",
    item_as: str = "",
) -> Callable[[Residuals], Callable[..., Measurement]]:
    """Declare a claim on a function of residuals: each is 0, by algebra or else (as the note says) to 30 digits.

    Args:
        name: as of ``claim``; with ``items`` as of ``claim_for_each``, and so are the others.
        statement: one sentence, with the formula.
        reference: where it is derived.
        subject: goes to the residuals; with ``items``, a function of the item.
        mutants: name -> a wrong subject, or a function of the subject or item.
        conditions: under what the statement is proved.
        items: registry -> (name, item) pairs, for one claim each.
        component: "kind:name".
        item_as: the residuals' keyword argument that takes the item; "" where they need none.
    """

    def declare(residuals: Residuals) -> Callable[..., Measurement]:
        @functools.wraps(residuals)
        def measure(shipped: Any, generator: Generator, **arguments: Any) -> Measurement:
            largest = max(size(residual, generator) for residual in residuals(shipped, **arguments))
            unproved = 0 < largest < PROVED.value
            note = f"Not proved, but true to {DIGITS} digits at random points." if unproved else ""
            return Measurement(largest, note=note)

        common: dict[str, Any] = {
            "statement": statement,
            "reference": reference,
            "subject": subject,
            "bound": PROVED,
            "mutants": mutants,
            "conditions": conditions,
            "component": component,
            "seeds": 1,
        }
        if items is None:
            return claim(name, **common)(measure)
        return claim_for_each(items, name, item_as=item_as, **common)(measure)

    return declare


def event(name: str, d: int = 2) -> Any:
    """One state of d coordinates, (1, d), for functions that take tensors."""
    return Symbolic([sympy.symbols(f"{name}_:{d}", real=True)])


def only(value: Any) -> Any:
    """The expression of a Symbolic of one element."""
    return value.item()


PRE, TGT = event("b_pre"), event("b_tgt")
