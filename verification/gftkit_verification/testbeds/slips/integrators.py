"""Solvers of libraries with a wrong integration or Brownian path, for mutants."""

import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

from torch import Generator, Tensor

from gftkit.kernel.contracts import BrownianPath, Diffusion, Field, Integrator
from gftkit_verification.testbeds.problems.brownian import ScaledPath

Run = Callable[[Integrator, Field, Diffusion | None, Sequence[float], Tensor, BrownianPath | None], Iterator[Tensor]]
"""A solver's integration, with the solver itself in front."""


class AlteredIntegrator:
    """A library's solver with another integration or Brownian path, and the orders that it declares.

    Args:
        solver: the solver.
        run: its integration.
        path: given in place of the solver's own.
        more: added to every declared order.
    """

    def __init__(self, solver: Integrator, run: Run, path: BrownianPath | None = None, more: float = 0) -> None:
        self.solver, self.path = solver, path
        self._run = functools.partial(run, solver)
        orders = (solver.ode_order, solver.strong_order, solver.weak_order)
        self.ode_order, self.strong_order, self.weak_order = (None if p is None else p + more for p in orders)

    def brownian(self, x: Tensor, t_end: float, generator: Generator) -> BrownianPath:
        """The given path, or the solver's."""
        return self.solver.brownian(x, t_end, generator) if self.path is None else self.path

    def integrate(
        self,
        drift: Field,
        diffusion: Diffusion | None,
        times: Sequence[float],
        x: Tensor,
        brownian: BrownianPath | None,
    ) -> Iterator[Tensor]:
        """The states at ``times``."""
        return self._run(drift, diffusion, times, x, brownian)


def own_run(
    s: Integrator, b: Field, g: Diffusion | None, times: Sequence[float], x: Tensor, path: BrownianPath | None
) -> Iterator[Tensor]:
    """The solver's own integration."""
    return s.integrate(b, g, times, x, path)


def scaled_path(scale: Callable[[float, float], float]) -> Run:
    """The path's increments multiplied by scale(s, t)."""
    return lambda s, b, g, times, x, path: s.integrate(
        b, g, times, x, None if path is None else ScaledPath(path, scale)
    )


def changed_diffusion(change: Callable[[Diffusion], Diffusion]) -> Run:
    """Another diffusion."""
    return lambda s, b, g, times, x, path: s.integrate(b, None if g is None else change(g), times, x, path)


def _constant_slope(
    s: Integrator, b: Field, g: Diffusion | None, times: Sequence[float], x: Tensor, path: BrownianPath | None
) -> Iterator[Tensor]:
    """The slope of each interval's start all over it."""
    yield x
    for t, later in itertools.pairwise(times):
        slope = b(t, x)
        *_, x = s.integrate(lambda *_, slope=slope: slope, g, (t, later), x, path)
        yield x


SLIPS: Mapping[str, Run] = {
    "time held at 0": lambda s, b, g, times, x, path: s.integrate(
        lambda _, y: b(0.0, y), None if g is None else lambda _: g(0.0), times, x, path
    ),
    "last step dropped": lambda s, b, g, times, x, path: s.integrate(b, g, times[:-1], x, path),
    "half of the drift": lambda s, b, g, times, x, path: s.integrate(lambda t, y: b(t, y) / 2, g, times, x, path),
}
HIGHER_SLIPS: Mapping[str, Run] = {
    "slope of the step's start": _constant_slope,
    "step too long by h/10": lambda s, b, g, times, x, path: s.integrate(
        lambda t, y: b(t, y) * (1 + (times[1] - times[0]) / 10), g, times, x, path
    ),
}
NOISE_SLIPS: Mapping[str, Run] = {
    "noise scaled by h": scaled_path(lambda s, t: math.sqrt(t - s)),
    "no noise": scaled_path(lambda s, t: 0.0),  # noqa: ARG005
    "diffusion held at 0": changed_diffusion(lambda g: lambda _: g(0.0)),
    "squared diffusion": changed_diffusion(lambda g: lambda t: g(t) ** 2),
}
