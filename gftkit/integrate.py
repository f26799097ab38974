"""The integrator: the kernel owns the time grid, the loop and the noise; a solver owns one step."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit import flow
from gftkit.contracts import Diffusion, Drift, Field, Path, Solver
from gftkit.errors import ConfigError, DivergenceError


@dataclass(frozen=True)
class Grid:
    """The times of an integration from 0 to 1.

    Attributes:
        times: increasing, from 0 to ``path.t_end``.
        closing: the step from ``t_end`` to 1: "euler-maruyama", "mean" (x + (1 - t) b = E[x1|x_t] for the bridge), or
            None where ``t_end`` is 1.
    """

    times: tuple[float, ...]
    closing: str | None = None


def uniform_grid(path: Path, steps: int) -> Grid:
    """``steps`` equal steps on [0, t_end], and one closing step to 1 where t_end < 1 (theory, section 1).

    Raises:
        ConfigError: for steps < 1.
    """
    if steps < 1:
        raise ConfigError(f"steps: wanted at least 1, got {steps}.")
    end = flow.t_end(path)
    times = (*(end * k / steps for k in range(steps)), end)
    return Grid(times, None if end == 1 else getattr(path, "final_step", "euler-maruyama"))


def check_solver(solver: Solver, stochastic: bool) -> None:
    """Refuse a solver that doesn't solve this kind of equation.

    Raises:
        ConfigError: for an ODE solver on a stochastic flow, or an SDE-only solver on a deterministic one.
    """
    name = type(solver).__name__
    if stochastic and solver.strong_order is None and solver.weak_order is None:
        raise ConfigError(
            f"solver {name} solves ODEs only, and this path has noise (g > 0). Choose an SDE solver: euler-maruyama."
        )
    if not stochastic and solver.ode_order is None:
        raise ConfigError(f"solver {name} solves SDEs only, and this path has none (g = 0). Choose euler or heun.")


def bind(drift: Drift, **conditions: Tensor) -> Field:
    """A network as a solver sees it: time a number, conditions fixed."""

    def field(t: float, x: Tensor) -> Tensor:
        return drift(x.new_full((len(x),), t), x, **conditions)

    return field


def diffusion_of(path: Path) -> Diffusion:
    """A path's g as a solver sees it: a function of a number."""

    def g(t: float) -> float:
        return float(flow.diffusion(path, torch.tensor([t], dtype=torch.float64)))

    return g


def trajectory(
    field: Field, diffusion: Diffusion | None, solver: Solver, grid: Grid, x0: Tensor, generator: Generator | None
) -> Iterator[Tensor]:
    """The states at the grid's times, x0 first, then the state at 1 where there is a closing step.

    Args:
        field: the drift.
        diffusion: g, or None for an ODE.
        solver: takes the steps.
        grid: the times.
        x0: the start, (batch, *event).
        generator: draws the Brownian increments, on x0's device; not used for an ODE.

    Yields:
        (batch, *event) tensors; the memory needed doesn't grow with the number of steps.
    """
    g: Diffusion = diffusion or (lambda t: 0.0)  # noqa: ARG005

    def increment(h: float, x: Tensor) -> Tensor | None:
        if diffusion is None:
            return None
        return math.sqrt(h) * torch.randn(x.shape, generator=generator, device=x.device, dtype=x.dtype)

    x = x0
    yield x
    for t, later in itertools.pairwise(grid.times):
        h = later - t
        x = solver.step(field, g, t, h, x, increment(h, x))
        yield x
    if grid.closing is not None:
        t, h = grid.times[-1], 1 - grid.times[-1]
        dw = increment(h, x) if grid.closing == "euler-maruyama" else None
        x = x + h * field(t, x)
        yield x if dw is None else x + g(t) * dw


@torch.no_grad()
def generate(
    drift: Drift,
    path: Path,
    solver: Solver,
    steps: int,
    x0: Tensor,
    generator: Generator,
    conditions: Mapping[str, Tensor] | None = None,
    batch_size: int = 500,
    whole: bool = False,
    advance: Callable[[int], None] = lambda _: None,
) -> Tensor:
    """Samples x_1 from x_0, by ``steps`` solver steps along a path's flow, in batches.

    Args:
        drift: the network, on the generator's device.
        path: gives g and t_end.
        solver: takes the steps.
        steps: how many, before the closing step where there is one.
        x0: source samples, (n, *event), on the CPU.
        generator: draws the Brownian increments, on the device where the drift is evaluated.
        conditions: for a conditional drift, by name, (n, ...) each.
        batch_size: samples integrated at once.
        whole: keep every state.
        advance: called with the number of samples done in each batch.

    Returns:
        (n, *event) on the CPU; with ``whole`` (times, n, *event).

    Raises:
        ConfigError: where the solver doesn't solve this path's equation, or steps < 1.
        DivergenceError: where the result is not finite.
    """
    stochastic = flow.is_stochastic(path)
    check_solver(solver, stochastic)
    diffusion = diffusion_of(path) if stochastic else None
    grid = uniform_grid(path, steps)
    parts = []
    for first in range(0, len(x0), batch_size):
        chosen = slice(first, first + batch_size)
        given = {name: values[chosen].to(generator.device) for name, values in (conditions or {}).items()}
        start = x0[chosen].to(generator.device)
        states = trajectory(bind(drift, **given), diffusion, solver, grid, start, generator)
        if whole:
            parts.append(torch.stack([x.cpu() for x in states]))
        else:
            last = start
            for x in states:
                last = x
            parts.append(last.cpu())
        advance(len(start))
    made = torch.cat(parts, dim=1 if whole else 0)
    if not torch.isfinite(made).all():
        raise DivergenceError(f"sampling left the finite numbers within {steps} steps. Use more steps.")
    return made
