"""Log-densities of samples under a flow, by the change of variables along its ODE."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Drift, Field, Integrator, Path, Solver, TimeGrid
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.runtime.randomness import stream
from gftkit.sampling.integrate import Grid, bind_conditions, check_solver, grid_of, trajectory
from gftkit.sampling.noise import FromGenerator
from gftkit.theory import flow

LogDensity = Callable[[Tensor], Tensor]
"""log p0 of source samples: (batch, *event) -> (batch,)."""


@dataclass(frozen=True)
class Density:
    """Log-densities of samples under a flow.

    Attributes:
        log: log p_1, natural, (n,) of float64.
        stderr: standard error of each by the probes of the divergence, (n,); 0 where it is exact, nan for one probe.
        x0: the source samples that the flow carries to them, (n, *event).
    """

    log: Tensor
    stderr: Tensor
    x0: Tensor


def divergence(velocity: Tensor, x: Tensor) -> Tensor:
    """div v = sum_i dv_i/dx_i, exact, by d backward passes. (batch, *event) twice -> (batch, 1)."""
    total = torch.zeros(len(x), dtype=x.dtype, device=x.device)
    for index, part in enumerate(velocity.flatten(1).unbind(1)):
        (slope,) = torch.autograd.grad(part.sum(), x, retain_graph=True)
        total = total + slope.flatten(1)[:, index]
    return total[:, None]


def hutchinson(velocity: Tensor, x: Tensor, probes: Tensor) -> Tensor:
    """Unbiased estimates e^T (dv/dx) e of div v, for probes e of mean 0 and covariance I.

    With Rademacher probes the variance is 2 |S|^2 - 2 sum_i S_ii^2, S the symmetric part of dv/dx: none from the
    diagonal.

    Args:
        velocity: v, (batch, *event), computed from x.
        x: (batch, *event), with its gradient recorded.
        probes: (batch, probes, *event).

    Returns:
        (batch, probes).

    Reference: Hutchinson (1990), Communications in Statistics 19; Grathwohl et al. (2019), FFJORD, section 3.1.1,
    arXiv:1810.01367.
    """
    estimates = []
    for probe in probes.unbind(1):
        (slope,) = torch.autograd.grad(velocity, x, probe, retain_graph=True)
        estimates.append((slope * probe).flatten(1).sum(1))
    return torch.stack(estimates, 1)


def rademacher(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Draw signs, -1 or 1 with equal probability."""
    return 2.0 * torch.randint(2, shape, generator=generator, device=generator.device) - 1


def backwards(drift: Drift, shape: tuple[int, ...], probes: Tensor | None, conditions: Mapping[str, Tensor]) -> Field:
    """The flow from data to source with the integral of the divergence: z = (x, -int div v) over s = 1 - t.

    Args:
        drift: v(t, x).
        shape: of one event.
        probes: of the divergence, or None for the exact one.
        conditions: of the samples, by name.
    """
    velocity_at, size = bind_conditions(drift, **conditions), math.prod(shape)

    def field(t: float, x: Tensor) -> Tensor:
        with torch.enable_grad():  # the solver runs without: only the divergence needs gradients
            event = x[:, :size].reshape(-1, *shape).detach().requires_grad_()
            velocity = velocity_at(1 - t, event)
            change = divergence(velocity, event) if probes is None else hutchinson(velocity, event, probes)
        return torch.cat([-velocity.detach().flatten(1), -change.detach()], 1)

    return field


def log_density(  # noqa: PLR0913
    drift: Drift,
    path: Path,
    solver: Solver | Integrator,
    steps: int,
    x1: Tensor,
    source: LogDensity,
    *,
    probes: int = 0,
    seed: int = 0,
    conditions: Mapping[str, Tensor] | None = None,
    device: torch.device | str = "cpu",
    batch_size: int = 250,
    advance: Callable[[int], None] = lambda _: None,
    spacing: TimeGrid | None = None,
) -> Density:
    """log p_1(x) = log p_0(x_0) - int_0^1 div v(t, x_t) dt along the ODE through x.

    The error of the solver is in it: take twice the steps to see how large it is.

    Args:
        drift: the velocity v, on ``device``, in evaluation mode.
        path: that it was trained on, without noise.
        solver: of ODEs.
        steps: number of its steps.
        x1: samples, (n, *event), on the CPU.
        source: log p_0.
        probes: of Hutchinson's estimate; 0 for the exact divergence, which costs d backward passes an evaluation.
        seed: of the probes, which depend on it and on the sample's index.
        conditions: of a conditional drift, by name, (n, ...) each.
        device: where the drift is evaluated.
        batch_size: samples at once.
        advance: called with the number of samples done in each batch.
        spacing: places the times of the steps.

    Raises:
        ConfigError: for a path with noise, whose drift is not the velocity of an ODE with its marginals, one that stops
            before t = 1, an SDE solver, or a negative number of probes.
        DivergenceError: where the result is not finite.
    """
    _check_flow(path, solver, probes)
    # The sampler's steps in reverse: s = 1 - t runs from the data to the source.
    grid = Grid(tuple(1 - t for t in reversed(grid_of(path, steps, spacing).times)))
    logs, errors, starts = [], [], []
    for first in range(0, len(x1), batch_size):
        batch = slice(first, first + batch_size)
        x = x1[batch].to(device)
        signs = _probes(probes, seed, first, x) if probes else None
        named = {name: values[batch].to(device) for name, values in (conditions or {}).items()}
        x0, change = _carry_back(drift, solver, grid, x, signs, named)
        logs.append(source(x0).double() + change.mean(1))
        errors.append(_error_of_probes(change) if probes else torch.zeros(len(x0)))
        starts.append(x0)
        advance(len(x0))
    density = Density(torch.cat(logs), torch.cat(errors).double(), torch.cat(starts))
    if not torch.isfinite(density.log).all():
        lost = int((~torch.isfinite(density.log)).sum())
        raise DivergenceError(f"{lost} of {len(x1)} log-densities are not finite. Use more steps, or another solver.")
    return density


def _check_flow(path: Path, solver: Solver | Integrator, probes: int) -> None:
    """Refuse a flow whose densities aren't those of an ODE up to t = 1."""
    if probes < 0:
        raise ConfigError(f"probes: wanted 0 (exact) or more, got {probes}.")
    if flow.is_stochastic(path):
        raise ConfigError(
            "likelihood: this flow has noise (g > 0), and the velocity of an ODE with its marginals isn't known. "
            "Use a run on a path without noise."
        )
    if flow.t_end(path) != 1:
        raise ConfigError(
            f"likelihood: this path ends at t = {flow.t_end(path):g}, and densities are computed at t = 1. Use a run "
            f"on a path that reaches it."
        )
    check_solver(solver, stochastic=False)


def _carry_back(
    drift: Drift,
    solver: Solver | Integrator,
    grid: Grid,
    x: Tensor,
    probes: Tensor | None,
    conditions: Mapping[str, Tensor],
) -> tuple[Tensor, Tensor]:
    """Carry a batch from data to source: x_0, and -int div v dt by each probe, (batch, probes) of float64."""
    shape, size = tuple(x.shape[1:]), math.prod(x.shape[1:])
    z = torch.cat([x.flatten(1), x.new_zeros(len(x), 1 if probes is None else probes.shape[1])], 1)
    with torch.no_grad():
        field = backwards(drift, shape, probes, conditions)
        for state in trajectory(field, None, solver, grid, z, FromGenerator(torch.Generator(x.device))):
            z = state
    return z[:, :size].reshape(-1, *shape).cpu(), z[:, size:].double().cpu()


def _error_of_probes(change: Tensor) -> Tensor:
    """Standard error of each row's mean; of one probe it isn't known."""
    count = change.shape[1]
    return torch.full((len(change),), math.nan) if count == 1 else change.std(1) / math.sqrt(count)


def _probes(count: int, seed: int, first: int, x: Tensor) -> Tensor:
    """Signs of each sample, by its index: (batch, count, *event)."""
    return torch.stack(
        [rademacher((count, *x.shape[1:]), stream(seed, "probes", first + i)).to(x) for i in range(len(x))]
    )


def bits_per_dimension(
    log: Tensor, shape: tuple[int, ...], span: tuple[float, float] | None, quantum: float | None = None
) -> Tensor:
    """Bits for each value of an event, in the data's own units: -log2 p(y)/d with y the unscaled sample.

    Args:
        log: natural log-densities of scaled events, (n,).
        shape: of one event.
        span: (low, high) of the data's values, which are scaled to [-1, 1]; None where they aren't scaled.
        quantum: the step of data that are whole multiples of it, such as 1 for 0, 1, ..., 255, to which uniform noise
            of that width was added: then the bits bound those of the discrete values from above.

    Reference: Theis, van den Oord, Bethge (2016), section 3.1, arXiv:1511.01844.

    Example:
        >>> bits_per_dimension(torch.tensor([-math.log(16)]), (2,), (0.0, 2.0))
        tensor([2.])
    """
    size = math.prod(shape)
    stretched = 0.0 if span is None else size * math.log((span[1] - span[0]) / 2)
    finer = 0.0 if quantum is None else size * math.log(quantum)
    return -(log - stretched + finer) / (size * math.log(2))
