"""The integrator: gftkit owns the time grid, the loop and the noise; a solver owns one step, or a library all."""

import itertools
import math
from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Diffusion, Drift, Field, Integrator, Path, Solver, TimeGrid
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.networks.flow_map import check_jumps
from gftkit.sampling.noise import BLOCK, FromGenerator, Noise
from gftkit.theory import flow


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


def grid_of(path: Path, steps: int, spacing: TimeGrid | None = None) -> Grid:
    """``steps`` steps on [0, t_end], and one closing step to 1 where t_end < 1 (theory, section 1).

    Args:
        path: gives ``t_end``.
        steps: how many.
        spacing: places the times; by default they are equally far apart.

    Raises:
        ConfigError: for steps < 1, and times that don't increase from 0 to 1.
    """
    if steps < 1:
        raise ConfigError(f"steps: wanted at least 1, got {steps}.")
    shares = [k / steps for k in range(steps + 1)] if spacing is None else _check_times(spacing, steps)
    end = flow.t_end(path)
    # The last one is t_end itself and no product, which round-off could put beyond it, where the drift is singular.
    times = (*(end * share for share in shares[:-1]), end)
    return Grid(times, None if end == 1 else getattr(path, "final_step", "euler-maruyama"))


def _check_times(spacing: TimeGrid, steps: int) -> list[float]:
    name = type(spacing).__name__
    try:
        times = [float(time) for time in spacing.times(steps)]
    except ValueError as error:
        raise ConfigError(f"grid {name}: {error}") from error
    if len(times) != steps + 1:
        raise ConfigError(f"grid {name}: wanted {steps + 1} times for {steps} steps, got {len(times)}.")
    if times[0] != 0 or times[-1] != 1:
        raise ConfigError(f"grid {name}: wanted times from 0 to 1, got {times[0]:g} to {times[-1]:g}.")
    for k, (t, later) in enumerate(itertools.pairwise(times)):
        if not t < later:  # nan too
            raise ConfigError(f"grid {name}: wanted times that increase, got {t:g} and then {later:g} (step {k + 1}).")
    return times


def check_solver(solver: Solver | Integrator, *, stochastic: bool) -> None:
    """Refuse a solver that doesn't solve this kind of equation.

    Raises:
        ConfigError: for an ODE solver on a stochastic flow, or an SDE-only solver on a deterministic one.
    """
    name = type(solver).__name__
    if stochastic and solver.strong_order is None and solver.weak_order is None:
        raise ConfigError(
            f"solver {name} solves ODEs only, and this flow has noise (g > 0). Choose an SDE solver: euler-maruyama."
        )
    if not stochastic and solver.ode_order is None:
        raise ConfigError(f"solver {name} solves SDEs only, and this flow is an ODE (g = 0). Choose euler or heun.")


def drift_at(drift: Drift, t: float) -> Drift:
    """The drift for calls whose samples share the time t: its ``at_time(t)``, or where it has none the very drift.

    So a blend knows the time as a number, and leaves its anchor out without waiting for the device.
    """
    at_time: Callable[[float], Drift] | None = getattr(drift, "at_time", None)
    return drift if at_time is None else at_time(t)


def bind_conditions(drift: Drift, **conditions: Tensor) -> Field:
    """A network as a solver sees it: time a number, conditions fixed; of a flow map with the end of the jump."""

    def field(t: float, x: Tensor, end: float | None = None) -> Tensor:
        start, drift_now = x.new_full(x.shape[:1], t), drift_at(drift, t)
        if end is None:
            return drift_now(start, x, **conditions)
        return drift_now(start, x, **conditions, end=x.new_full(x.shape[:1], end))

    return field


def diffusion_of(path: Path, times: Sequence[float] = ()) -> Diffusion:
    """A path's g as a solver sees it: a function of a number, known beforehand at ``times``.

    Raises:
        ConfigError: where g is negative or not finite at one of them.
    """
    # At all times at once, because solvers ask for one at a time, and a call of torch costs more than its numbers.
    scales = flow.diffusion(path, torch.tensor(times, dtype=torch.float64)).tolist()
    for t, scale in zip(times, scales, strict=True):
        if not 0 <= scale < math.inf:
            raise ConfigError(f"diffusion: wanted g(t) >= 0 and finite, got {scale:g} at t = {t:g}.")
    known = dict(zip(times, scales, strict=True))

    def g(t: float) -> float:
        if t in known:
            return known[t]
        return float(flow.diffusion(path, torch.tensor([t], dtype=torch.float64)))

    return g


def trajectory(
    field: Field, diffusion: Diffusion | None, solver: Solver | Integrator, grid: Grid, x0: Tensor, noise: Noise
) -> Iterator[Tensor]:
    """The states at the grid's times, x0 first, then the state at 1 where there is a closing step.

    Args:
        field: the drift.
        diffusion: g, or None for an ODE.
        solver: takes the steps.
        grid: the times.
        x0: the start, (batch, *event).
        noise: draws the Brownian increments; not used for an ODE.

    Yields:
        (batch, *event) tensors; the memory needed doesn't grow with the number of steps.
    """
    g: Diffusion = diffusion or (lambda t: 0.0)  # noqa: ARG005

    def increment(h: float, x: Tensor) -> Tensor | None:
        return None if diffusion is None else math.sqrt(h) * noise.normal(x)

    x = x0
    if isinstance(solver, Integrator):
        brownian = None if diffusion is None else solver.brownian(x0, grid.times[-1], noise.generator())
        for x in solver.integrate(field, diffusion, grid.times, x0, brownian):
            yield x
    else:
        yield x
        for t, later in itertools.pairwise(grid.times):
            h = later - t
            x = solver.step(field, g, t, h, x, increment(h, x))
            yield x
    if grid.closing is not None:
        # One Euler step whatever the solver: methods of higher order evaluate the drift at 1, where it is singular.
        t, h = grid.times[-1], 1 - grid.times[-1]
        dw = increment(h, x) if grid.closing == "euler-maruyama" else None
        x = x + h * field(t, x)
        yield x if dw is None else x + g(t) * dw


@torch.no_grad()
def generate(  # noqa: PLR0913
    drift: Drift,
    path: Path,
    solver: Solver | Integrator,
    steps: int,
    x0: Tensor,
    noise: Noise | Generator,
    *,
    conditions: Mapping[str, Tensor] | None = None,
    batch_size: int = 500,
    whole: bool = False,
    advance: Callable[[int], None] = lambda _: None,
    spacing: TimeGrid | None = None,
) -> Tensor:
    """Samples x_1 from x_0, by ``steps`` solver steps along a path's flow, in batches.

    Args:
        drift: the network, on the noise's device.
        path: gives g and t_end.
        solver: takes the steps.
        steps: how many, before the closing step where there is one. Of an adaptive solver: the times it must meet.
        x0: source samples, (n, *event), on the CPU.
        noise: draws the Brownian increments, on the device where the drift is evaluated; or a generator to draw by.
        conditions: for a conditional drift, by name, (n, ...) each.
        batch_size: samples integrated at once. A library's solver is given blocks of 64 at most: what is the same for
            all samples of a call, such as an adaptive step, then doesn't depend on the batch.
        whole: keep every state.
        advance: called with the number of samples done in each batch.
        spacing: places the times; by default they are equally far apart.

    Returns:
        (n, *event) on the CPU; with ``whole`` (times, n, *event).

    Raises:
        ConfigError: where the solver doesn't solve this path's equation, or jumps and the drift is no flow map, or for
            a grid that isn't one.
        DivergenceError: where the result is not finite, naming the step.
    """
    noise = FromGenerator(noise) if isinstance(noise, Generator) else noise
    stochastic = flow.is_stochastic(path)
    check_solver(solver, stochastic=stochastic)
    check_jumps(solver, drift)
    grid = grid_of(path, steps, spacing)
    diffusion = diffusion_of(path, grid.times) if stochastic else None
    if isinstance(solver, Integrator):
        batch_size = min(batch_size, BLOCK)
    parts = []
    for first in range(0, len(x0), batch_size):
        rows = slice(first, first + batch_size)
        start = x0[rows].to(noise.device)
        bound = {name: values[rows].to(noise.device) for name, values in (conditions or {}).items()}
        states = partial(trajectory, bind_conditions(drift, **bound), diffusion, solver, grid, x0=start, noise=noise)
        begin = partial(noise.begin, first, len(start)) if stochastic else None
        parts.append(_integrate(states, begin, grid, whole=whole))
        advance(len(start))
    return torch.cat(parts, dim=1 if whole else 0)


def _integrate(
    states: Callable[[], Iterator[Tensor]], begin: Callable[[], None] | None, grid: Grid, *, whole: bool
) -> Tensor:
    """The last state of one batch, or all of them, on the CPU.

    Args:
        states: starts the integration.
        begin: puts the noise back to the start of the batch; None without noise.
        grid: the times, for the message.
        whole: keep every state.

    Raises:
        DivergenceError: where the result is not finite, naming the step.
    """
    if begin is not None:
        begin()
    if whole:
        result = torch.stack([x.cpu() for x in states()])
    else:
        (last,) = deque(states(), maxlen=1)  # one state at a time, so that memory doesn't grow with the steps
        result = last.cpu()
    if not torch.isfinite(result).all():
        # Only now is the batch integrated once more to name the step: a check of every state on the way would make
        # the host wait for a GPU at every step of every batch.
        if begin is not None:
            begin()
        raise DivergenceError(_describe_failure(states(), grid))
    return result


def _describe_failure(states: Iterator[Tensor], grid: Grid) -> str:
    """Say at which step the states, integrated once more, stop being finite."""
    for k, x in enumerate(states):
        lost = ~torch.isfinite(x).flatten(1).all(1)
        if lost.any():
            what = f"{int(lost.sum())} of {len(x)} samples are not finite"
            if k == 0:
                return f"{what} in the source. Check the source of the run."
            t = grid.times[k - 1]
            return (
                f"{what} after step {k} of {len(grid.times) - 1 + (grid.closing is not None)}, which starts at t = "
                f"{t:.4g}. Use more steps, or another solver. If the drift itself isn't finite, neither helps."
            )
    return (
        "the samples are not finite, and those of a second integration are: the drift isn't a function of its inputs. "
        "Check the network for randomness."
    )
