"""Flow maps: X(t, s, x), where the flow of a velocity has brought x, which it holds at t, by the time s.

X(t, s, x) = x + (s - t) u(t, s, x) with the average velocity u: a network with ``jumps``, which is called with the
start t and ``end``, s. It is trained on a teacher v, whose flow it is to be, by the Lagrangian equation
d/ds X(t, s, x) = v(s, X(t, s, x)) with X(t, t, x) = x, of which the flow map is the only solution.

Reference: Boffi, Albergo, Vanden-Eijnden (2024), Flow map matching, arXiv:2406.07507; the same (2025), How to build a
consistency model, arXiv:2505.18825.
"""

import warnings
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.contracts import Drift
from gftkit.kernel.errors import ConfigError
from gftkit.theory import flow
from gftkit.theory.objective import squared_norm


def is_flow_map(drift: Any) -> bool:
    """True for a network that takes the end of a jump."""
    return bool(getattr(drift, "jumps", False))


def check_jumps(solver: Any, drift: Any) -> None:
    """Refuse a solver that jumps, of a drift that isn't a flow map.

    Raises:
        ConfigError: with the cure.
    """
    if getattr(solver, "jumps", False) and not is_flow_map(drift):
        raise ConfigError(
            f"solver {type(solver).__name__} requires a flow map, and this drift is a velocity: it doesn't take the "
            f"end of a jump. (A flow map under guidance, or in a blend, is a velocity too.) Train a flow map with "
            f"`gft distill`, or use euler or heun."
        )


def jump(student: Drift, t: Tensor, end: Tensor, x: Tensor, conditions: Mapping[str, Tensor] | None = None) -> Tensor:
    """X(t, end, x) = x + (end - t) u(t, end, x). t, end: (batch,); x: (batch, *event)."""
    return x + flow.expand(end - t, x) * student(t, x, end=end, **(conditions or {}))


def lagrangian_loss(
    student: Drift,
    teacher: Drift,
    t: Tensor,
    end: Tensor,
    x: Tensor,
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """|d/ds X(t, s, x) - v(s, X(t, s, x))|^2 at s = end, per sample.

    The derivative is u + (s - t) d/ds u, in forward mode, and learns; the teacher's velocity at the place where the
    student lands doesn't. So only the student is differentiated, and by the end alone.

    Args:
        student: u, a flow map.
        teacher: v, a drift that doesn't learn.
        t: starts, (batch,).
        end: s, (batch,).
        x: states at the starts, (batch, *event), of any law that covers where the flow goes.
        conditions: by name, (batch, ...) each.

    Returns:
        (batch,), the squared norm summed over the event.

    Reference: Boffi et al. (2024), Lagrangian map distillation, arXiv:2406.07507; the stopped gradient: the same
    (2025), arXiv:2505.18825.

    Example:
        >>> import torch
        >>> teacher = lambda t, x: 2 * x
        >>> student = lambda t, x, end: torch.expm1(2 * (end - t))[:, None] / (end - t)[:, None] * x
        >>> t, end = torch.tensor([0.1], dtype=torch.float64), torch.tensor([0.7], dtype=torch.float64)
        >>> bool(lagrangian_loss(student, teacher, t, end, torch.ones(1, 1, dtype=torch.float64)) < 1e-20)
        True
    """
    keywords = dict(conditions or {})
    average, slope = value_and_derivative(lambda until: student(t, x, end=until, **keywords), end)
    length = flow.expand(end - t, x)
    with torch.no_grad():
        there = teacher(end, x + length * average, **keywords)
    return squared_norm(average + length * slope - there)


def value_and_derivative(function: Callable[[Tensor], Tensor], at: Tensor) -> tuple[Tensor, Tensor]:
    """A function's value and its derivative in direction 1, in forward mode; both can be differentiated further.

    Args:
        function: of a tensor.
        at: where.
    """
    with warnings.catch_warnings():
        # Torch's own, where its derivatives in forward mode are first used. Its dual tensors without torch.func can't
        # differentiate a softmax once more.
        warnings.filterwarnings("ignore", message=".*torch.jit", category=DeprecationWarning)
        value_and_derivative: tuple[Tensor, Tensor] = torch.func.jvp(function, (at,), (torch.ones_like(at),))  # type: ignore[assignment]
    return value_and_derivative
