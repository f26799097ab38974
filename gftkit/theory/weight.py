"""The weight w(t) of an objective, a formula in t: how much a flow time counts, beside the law by which it is drawn."""

from collections.abc import Callable

import torch
from torch import Tensor

from gftkit.kernel.errors import ConfigError
from gftkit.theory import expression

WEIGHED = 1001
"""Equally spaced flow times in [0, t_end] at which a weight is checked, both ends among them."""

ROUND_OFF = 1e-6
"""A weight that is negative by this, relative to its largest value, is 0 with round-off."""


def weight_of(text: str) -> Callable[[Tensor], Tensor] | None:
    """A formula of w(t), the weight of an objective, as a function of t; None for one, which costs nothing.

    Raises:
        ConfigError: for text that is no formula in t.
    """
    if text.strip() == "1":
        return None
    try:
        return expression.compile_formula(expression.parse_formula(text))
    except ValueError as error:
        raise ConfigError(f"objective.weight: {error}") from None


def check_weight(text: str, t_end: float) -> None:
    """Refuse a weight w(t) that can't be evaluated, or isn't finite and >= 0, on all of [0, t_end], or is 0 there.

    Args:
        text: the formula.
        t_end: the largest time that is trained on, in (0, 1].

    Raises:
        ConfigError: with the reason, or the first time at which it fails.

    Example:
        >>> check_weight("1/(1.01 - t)", 1.0)
    """
    # Both ends too: a weight that is infinite at one may have no mean. In the precision of training, which overflows.
    weight, where = weight_of(text), f"objective.weight: '{text}'"
    if weight is None:
        return
    t = torch.linspace(0, t_end, WEIGHED)
    try:
        values = weight(t)
    except (ArithmeticError, AttributeError, RuntimeError, TypeError, ValueError) as error:
        raise ConfigError(
            f"{where} can't be evaluated ({type(error).__name__}: {error}). Write w(t) with numbers and t alone."
        ) from None
    # Rounding puts sin(pi t) just below 0 at t = 1.
    lowest = -ROUND_OFF * float(values[torch.isfinite(values)].abs().max()) if torch.isfinite(values).any() else 0.0
    bad = ~(torch.isfinite(values) & (values >= lowest))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ConfigError(
            f"{where}: wanted finite numbers >= 0 for t in [0, {t_end:g}], got {float(values[first]):.4g} at t = "
            f"{float(t[first]):.4g}. Change the formula, for example to 1/(1.01 - t) from 1/(1 - t)."
        )
    if not values.any():
        raise ConfigError(f"{where}: is 0 for all t in [0, {t_end:g}]: nothing would be learned. Change the formula.")
