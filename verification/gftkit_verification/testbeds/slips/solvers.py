"""Solvers with a wrong step, for mutants: of an ODE's step, of higher orders, and of the noise."""

import functools
import math
from collections.abc import Callable, Mapping

from torch import Tensor

from gftkit.kernel.contracts import Diffusion, Field, Solver

Step = Callable[[Solver, Field, Diffusion, float, float, Tensor, Tensor | None], Tensor]
"""A solver's step, with the solver itself in front."""


class AlteredSolver:
    """A solver with another step, and the orders that it declares.

    Args:
        solver: the solver.
        altered: its step; by default the solver's own.
        more: added to every declared order.
    """

    def __init__(self, solver: Solver, altered: Step, more: float = 0) -> None:
        self._step = functools.partial(altered, solver)
        orders = (solver.ode_order, solver.strong_order, solver.weak_order)
        self.ode_order, self.strong_order, self.weak_order = (None if p is None else p + more for p in orders)

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        """The state at t + h."""
        return self._step(drift, diffusion, t, h, x, dw)


def own_step(solver: Solver, b: Field, g: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
    """The solver's step as it is."""
    return solver.step(b, g, t, h, x, dw)


def scaled_noise(scale: Callable[[float], float]) -> Step:
    """The increment multiplied by scale(h)."""
    return lambda s, b, g, t, h, x, dw: s.step(b, g, t, h, x, None if dw is None else scale(h) * dw)


def same_noise() -> Step:
    """The first step's increment in every step."""
    first: list[Tensor | None] = [None]

    def step(s: Solver, b: Field, g: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        if t == 0:
            first[0] = dw
        return s.step(b, g, t, h, x, first[0])

    return step


SLIPS: Mapping[str, Step] = {
    "time held at 0": lambda s, b, g, t, h, x, dw: s.step(lambda _, y: b(0.0, y), lambda _: g(0.0), t, h, x, dw),
    "last step dropped": lambda s, b, g, t, h, x, dw: x if t + h > 1 - 1e-9 else s.step(b, g, t, h, x, dw),
    "half of the drift": lambda s, b, g, t, h, x, dw: s.step(lambda u, y: b(u, y) / 2, g, t, h, x, dw),
}
HIGHER_SLIPS: Mapping[str, Step] = {
    "slope of the step's start": lambda s, b, g, t, h, x, dw: s.step(lambda *_: b(t, x), g, t, h, x, dw),
    "step 1 % too long at h = 0.1": lambda s, b, g, t, h, x, dw: s.step(
        lambda u, y: b(u, y) * (1 + h / 10), g, t, h, x, dw
    ),
}
NOISE_SLIPS: Mapping[str, Step] = {
    "noise scaled by h": scaled_noise(math.sqrt),
    "no noise": scaled_noise(lambda _: 0.0),
    "diffusion held at 0": lambda s, b, g, t, h, x, dw: s.step(b, lambda _: g(0.0), t, h, x, dw),
    "squared diffusion": lambda s, b, g, t, h, x, dw: s.step(b, lambda u: g(u) ** 2, t, h, x, dw),
}


def replayed(increments: Tensor) -> Step:
    """Steps with these increments, (steps, n, d), for those that the sampler draws."""
    return lambda s, b, g, t, h, x, _: s.step(b, g, t, h, x, increments[round(t * len(increments))])
