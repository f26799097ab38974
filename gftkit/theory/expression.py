"""Functions of t written as text, such as ``sqrt(1 - t)``: read without evaluating code.

sympy is loaded where a formula is first read, since few runs have one.
"""

import ast
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor

from gftkit.runtime.extras import require

if TYPE_CHECKING:
    import sympy

_FUNCTIONS = ("sqrt", "exp", "log", "sin", "cos", "tan", "tanh", "Abs")
_ALLOWED = (
    ast.Expression, ast.BinOp, ast.UnaryOp, ast.Call, ast.Name, ast.Load, ast.Constant,
    ast.Add, ast.Sub, ast.Mult, ast.Div, ast.Pow, ast.USub, ast.UAdd,
)  # fmt: skip
_TORCH = {name: getattr(torch, name.lower()) for name in _FUNCTIONS}


def parse_formula(text: str) -> "sympy.Expr":
    """A sympy expression in t from text.

    Raises:
        MissingPackageError: where sympy isn't installed.
        ValueError: for anything but numbers, t, pi, + - * / ** and sqrt, exp, log, sin, cos, tan, tanh, Abs, and for
            a part that isn't real.

    Example:
        >>> differentiate(parse_formula("1 - t**2"))
        -2*t
    """
    require("symbolic", "a formula in t")
    import sympy

    try:
        tree = ast.parse(text.strip(), mode="eval")
    except SyntaxError:
        raise ValueError(f"'{text}' is not a formula in t, such as 'sqrt(1 - t)'.") from None
    names = {"t", "pi", *_FUNCTIONS}
    # Checked node by node, because sympify evaluates its text: a name or an attribute would be looked up and called.
    for node in ast.walk(tree):
        wrong_name = isinstance(node, ast.Name) and node.id not in names
        wrong_number = isinstance(node, ast.Constant) and type(node.value) not in (int, float)
        if not isinstance(node, _ALLOWED) or wrong_name or wrong_number:
            raise ValueError(f"'{text}': only numbers, t, pi, + - * / ** and {', '.join(_FUNCTIONS)} may be used.")
    known = {"t": _time(), "pi": sympy.pi, **{name: getattr(sympy, name) for name in _FUNCTIONS}}
    try:
        expression = sympy.sympify(text.strip(), locals=known)
    except (sympy.SympifyError, TypeError, ValueError):
        expression = None
    if not isinstance(expression, sympy.Expr):
        raise ValueError(f"'{text}' is not a formula in t: a function takes one argument, as in 'sqrt(1 - t)'.")
    if expression.has(sympy.I, sympy.zoo, sympy.nan):
        raise ValueError(f"'{text}' has a part that isn't a real number, such as sqrt(-1) or 1/0.")
    return expression


def differentiate(formula: "sympy.Expr") -> "sympy.Expr":
    """The derivative by t."""
    return formula.diff(_time())


def value_at(formula: "sympy.Expr", t: int) -> Any:
    """The exact value at a whole t, as a sympy number: ``is_finite`` tells a singular end."""
    return formula.subs(_time(), t)


def compile_formula(formula: "sympy.Expr") -> Callable[[Tensor], Tensor]:
    """A formula as a function of a tensor t, elementwise, of t's shape and dtype."""
    import sympy

    # Parts without t, such as sqrt(2), become numbers: torch's functions take tensors only.
    parts = formula.atoms(sympy.Function, sympy.Pow)
    numbers = {part: part.evalf(20) for part in parts if not part.free_symbols}
    formula = formula.xreplace(numbers)
    compiled = sympy.lambdify(_time(), formula, modules=[_TORCH, "math"])

    def evaluate(t: Tensor) -> Tensor:
        return compiled(t) + torch.zeros_like(t)  # a constant formula too has t's shape

    return evaluate


def _time() -> Any:
    """The symbol t; sympy takes two symbols of one name and assumptions as the same."""
    import sympy

    return sympy.Symbol("t", real=True)
