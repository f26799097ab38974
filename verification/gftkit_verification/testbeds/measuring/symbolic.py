"""Symbolic values in the place of tensors: proofs are about the shipped functions themselves."""

from collections.abc import Callable, Sequence
from fractions import Fraction
from math import pi
from typing import Any

import numpy as np
import sympy
import torch
from torch import Tensor

LARGEST = 10_000
"""Largest denominator of a float that is read as a fraction, or a fraction of pi."""


class NotSymbolicError(TypeError):
    """A function that ``Symbolic`` doesn't know."""


def number(value: Any) -> Any:
    """A number as an exact expression: of a float the fraction, or the fraction of pi, that rounds to it.

    Example:
        >>> number(0.1), number(-pi / 2)
        (1/10, -pi/2)
    """
    if not isinstance(value, (int, float)):
        return sympy.sympify(value, strict=True)
    for unit, exactly in ((1.0, sympy.Integer(1)), (pi, sympy.pi)):
        ratio = Fraction(value / unit).limit_denominator(LARGEST) if abs(value) < float("inf") else Fraction(0)
        if float(ratio) * unit == value:
            return sympy.Rational(ratio.numerator, ratio.denominator) * exactly
    return sympy.Rational(value) if abs(value) < float("inf") else sympy.sympify(value)


def _values(operand: Any) -> np.ndarray:
    """The expressions of a Symbolic, a tensor or a number."""
    if isinstance(operand, Symbolic):
        return operand.values
    if isinstance(operand, Tensor):
        return np.vectorize(number, otypes=[object])(np.array(operand.tolist(), dtype=object))
    return np.array(number(operand), dtype=object)


def _operator(operation: Callable[..., Any], *, swapped: bool = False) -> Callable[..., "Symbolic"]:
    def apply(self: Any, other: Any) -> "Symbolic":
        one, two = _values(self), _values(other)
        return Symbolic(operation(two, one) if swapped else operation(one, two))

    return apply


class Symbolic:
    """An array of sympy expressions in a tensor's place: operators, broadcasting and the torch functions below.

    ``torch.autograd.grad`` is the derivative by a symbol. It isn't a tensor: a function that isn't here raises.

    Args:
        values: expressions, nested as the array's shape has it: (batch,) times, (batch, *event) states.

    Example:
        >>> from gftkit.theory.objective import squared_norm
        >>> x, y = sympy.symbols("x y")
        >>> squared_norm(Symbolic([[x, y]])).item()
        x**2 + y**2
        >>> torch.sqrt(4 * Symbolic([x**0]) * torch.tensor([0.25])).item()
        1
    """

    __array_ufunc__ = None  # numpy leaves operators to this class
    dtype, device = torch.float64, torch.device("cpu")
    requires_grad = True

    def __init__(self, values: Any) -> None:
        self.values = np.array(values, dtype=object)

    __add__, __radd__ = _operator(np.add), _operator(np.add, swapped=True)
    __sub__, __rsub__ = _operator(np.subtract), _operator(np.subtract, swapped=True)
    __mul__, __rmul__ = _operator(np.multiply), _operator(np.multiply, swapped=True)
    __truediv__, __rtruediv__ = _operator(np.true_divide), _operator(np.true_divide, swapped=True)
    __pow__, __rpow__ = _operator(np.power), _operator(np.power, swapped=True)

    def __neg__(self) -> "Symbolic":
        return -1 * self

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the array."""
        return self.values.shape

    @property
    def ndim(self) -> int:
        """The number of dimensions."""
        return self.values.ndim

    def reshape(self, *shape: int) -> "Symbolic":
        """These expressions in another shape."""
        return Symbolic(self.values.reshape(shape))

    def flatten(self, start: int = 0) -> "Symbolic":
        """These expressions with all dimensions from ``start`` on in one."""
        return self.reshape(*self.shape[:start], -1)

    def square(self) -> "Symbolic":
        """The square of each expression."""
        return self**2

    def sum(self, dim: int | None = None) -> "Symbolic":
        """The sum over a dimension, or over everything."""
        return Symbolic(self.values.sum(axis=dim))

    def item(self) -> Any:
        """The one expression.

        Raises:
            ValueError: for more than one.
        """
        return self.values.item()

    def detach(self) -> "Symbolic":
        """Itself: there is no graph."""
        return self

    def requires_grad_(self) -> "Symbolic":
        """Itself: every symbol can be differentiated by."""
        return self

    @classmethod
    def __torch_function__(
        cls, func: Callable[..., Any], types: Any, args: Sequence[Any] = (), kwargs: Any = None
    ) -> Any:
        """Called by torch in the place of its function.

        Raises:
            NotSymbolicError: for a function that isn't known here.
        """
        name = func.__name__.strip("_")
        if func is torch.autograd.grad:
            (total,), (by,) = args[:2]
            return (cls(np.full(by.shape, total.item().diff(by.item()), dtype=object)),)
        if name in _FILLED:
            return cls(np.full(args[0].shape, number((*args[1:], *_FILLED[name])[0]), dtype=object))
        if name in _BINARY and len(args) == 2:
            return _operator(_BINARY[name])(*args)
        if name in _ELEMENTWISE and len(args) == 1:
            return cls(np.vectorize(_ELEMENTWISE[name], otypes=[object])(_values(args[0])))
        raise NotSymbolicError(
            f"torch's '{name}' isn't known to Symbolic, so nothing can be proved about its callers. "
            f"Add it to gftkit_verification.testbeds.measuring.symbolic."
        )


_FILLED: dict[str, tuple[int, ...]] = {"zeros_like": (0,), "ones_like": (1,), "full_like": ()}
_BINARY: dict[str, Callable[..., Any]] = {
    "add": np.add,
    "sub": np.subtract,
    "rsub": lambda one, other: other - one,
    "mul": np.multiply,
    "div": np.true_divide,
    "true_divide": np.true_divide,
    "pow": np.power,
}
_SAME = ("sqrt", "exp", "log", "sin", "cos", "tan", "sinh", "cosh", "tanh")
_ELEMENTWISE: dict[str, Callable[[Any], Any]] = {name: getattr(sympy, name) for name in _SAME} | {
    "abs": sympy.Abs,
    "square": lambda x: x**2,
    "neg": lambda x: -x,
    "reciprocal": lambda x: 1 / x,
}
