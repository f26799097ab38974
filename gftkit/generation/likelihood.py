"""Densities of samples under a flow, by the change of variables along its ODE."""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.data import conditions
from gftkit.data.samples import Samples, Scaling
from gftkit.experiment.restore import trained_drift
from gftkit.kernel.contracts import Drift, Field, Integrator, Path, Solver, TimeGrid
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.kernel.registry import Spec
from gftkit.runs.folder import RunFolder, Weights
from gftkit.runtime.randomness import stream
from gftkit.sampling.integrate import Grid, bind_conditions, check_solver, grid_of, trajectory
from gftkit.sampling.noise import FromGenerator
from gftkit.sampling.scheme import build_scheme
from gftkit.theory import flow

LogDensity = Callable[[Tensor], Tensor]
"""log p0 of source samples: (batch, *event) -> (batch,)."""


@dataclass(frozen=True)
class Density:
    """What a flow says of samples.

    Attributes:
        log: log p_1, natural, (n,) of float64.
        stderr: standard error of each by the probes of the divergence, (n,); 0 where it is exact, nan for one probe.
        x0: where the flow brings them from, (n, *event).
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
        velocity: v, (batch, *event), made from x.
        x: (batch, *event), with its gradient recorded.
        probes: (batch, probes, *event).

    Returns:
        (batch, probes).

    Reference: Hutchinson (1990), Communications in Statistics 19; Grathwohl et al. (2019), FFJORD, section 3.1.1,
    arXiv:1810.01367.
    """
    found = []
    for probe in probes.unbind(1):
        (slope,) = torch.autograd.grad(velocity, x, probe, retain_graph=True)
        found.append((slope * probe).flatten(1).sum(1))
    return torch.stack(found, 1)


def rademacher(shape: tuple[int, ...], generator: Generator) -> Tensor:
    """Signs, -1 or 1 with equal probability."""
    return 2.0 * torch.randint(2, shape, generator=generator, device=generator.device) - 1


def backwards(drift: Drift, shape: tuple[int, ...], probes: Tensor | None, given: Mapping[str, Tensor]) -> Field:
    """The flow from data to source with the integral of the divergence: z = (x, -int div v) over s = 1 - t.

    Args:
        drift: v(t, x).
        shape: of one event.
        probes: of the divergence, or None for the exact one.
        given: conditions.
    """
    velocity_at, size = bind_conditions(drift, **given), math.prod(shape)

    def field(t: float, x: Tensor) -> Tensor:
        with torch.enable_grad():
            event = x[:, :size].reshape(-1, *shape).detach().requires_grad_()
            velocity = velocity_at(1 - t, event)
            found = divergence(velocity, event) if probes is None else hutchinson(velocity, event, probes)
        return torch.cat([-velocity.detach().flatten(1), -found.detach()], 1)

    return field


def log_density(
    drift: Drift,
    path: Path,
    solver: Solver | Integrator,
    steps: int,
    x1: Tensor,
    source: LogDensity,
    probes: int = 0,
    seed: int = 0,
    given: Mapping[str, Tensor] | None = None,
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
        steps: how many.
        x1: samples, (n, *event), on the CPU.
        source: log p_0.
        probes: of Hutchinson's estimate; 0 for the exact divergence, which costs d backward passes an evaluation.
        seed: of the probes, which depend on it and on the sample's index.
        given: conditions of a conditional drift, by name, (n, ...) each.
        device: where the drift is evaluated.
        batch_size: samples at once.
        advance: called with the number of samples done in each batch.
        spacing: places the times of the steps.

    Raises:
        ConfigError: for a path with noise, whose drift is not the velocity of an ODE with its marginals, one that stops
            before t = 1, an SDE solver, or a negative number of probes.
        DivergenceError: where the result is not finite.
    """
    if probes < 0:
        raise ConfigError(f"probes: wanted 0 (exact) or more, got {probes}.")
    if flow.is_stochastic(path):
        raise ConfigError(
            "likelihood: this flow has noise (g > 0), and the velocity of an ODE with its marginals isn't known. "
            "Densities are computed for flows without noise."
        )
    if flow.t_end(path) != 1:
        raise ConfigError(f"likelihood: this path stops at t = {flow.t_end(path):g}, and densities are those at t = 1.")
    check_solver(solver, stochastic=False)
    times = grid_of(path, steps, spacing).times
    grid = Grid(tuple(1 - t for t in reversed(times)))
    shape, size = tuple(x1.shape[1:]), math.prod(x1.shape[1:])
    logs, errors, starts = [], [], []
    for first in range(0, len(x1), batch_size):
        chosen = slice(first, first + batch_size)
        x = x1[chosen].to(device)
        signs = _probes(probes, seed, first, x) if probes else None
        here = {name: values[chosen].to(device) for name, values in (given or {}).items()}
        z = torch.cat([x.flatten(1), x.new_zeros(len(x), max(probes, 1))], 1)
        with torch.no_grad():
            field = backwards(drift, shape, signs, here)
            for state in trajectory(field, None, solver, grid, z, FromGenerator(torch.Generator(device))):
                z = state
        x0, change = z[:, :size].reshape(-1, *shape).cpu(), z[:, size:].double().cpu()
        logs.append(source(x0).double() + change.mean(1))
        errors.append(_error_of_probes(change) if probes else torch.zeros(len(x0)))
        starts.append(x0)
        advance(len(x0))
    found = Density(torch.cat(logs), torch.cat(errors).double(), torch.cat(starts))
    if not torch.isfinite(found.log).all():
        lost = int((~torch.isfinite(found.log)).sum())
        raise DivergenceError(f"{lost} of {len(x1)} log-densities are not finite. Use more steps, or another solver.")
    return found


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
        span: (low, high) of the data's values, which [-1, 1] stands for; None where they aren't scaled.
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


@dataclass(frozen=True)
class Likelihood:
    """The densities of held-out data under a run, in the data's own values.

    Attributes:
        bits: for each dimension, (n,).
        log: natural log-densities, (n,).
        stderr: of each, by the probes of the divergence.
        dimension: d.
        probes: how many; 0 for the exact divergence.
    """

    bits: Tensor
    log: Tensor
    stderr: Tensor
    dimension: int
    probes: int

    def to_dict(self) -> dict[str, float]:
        """Means over samples, each with its standard error, and the part of it that the probes make."""
        n = len(self.log)

        def spread(values: Tensor) -> float:
            return float(values.std() / math.sqrt(n)) if n > 1 else math.nan

        return {
            "bits_per_dim": float(self.bits.mean()),
            "bits_per_dim_stderr": spread(self.bits),
            "log_likelihood": float(self.log.mean()),
            "log_likelihood_stderr": spread(self.log),
            "log_likelihood_stderr_of_probes": float(self.stderr.square().sum().sqrt() / n),
            "count": n,
            "probes": self.probes,
        }


EXACT_UP_TO = 64
"""Dimensions up to which the divergence is exact unless probes are asked for."""
PROBES = 8


def likelihood(
    run: RunFolder,
    data: Spec | None = None,
    count: int | None = None,
    solver: Spec | None = None,
    probes: int | None = None,
    quantum: float | None = None,
    seed: int = 0,
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda _: None,
) -> Likelihood:
    """The densities of data under the ODE of a finished run.

    Args:
        run: the run.
        data: samples, {name: ...}; by default its held-out ones, or those it was trained on where there are none.
        count: how many; by default as the run is evaluated.
        solver: {name, steps, grid, ...}; by default rk4 of 20 steps.
        probes: of the divergence, 0 for exact; by default exact up to d = 64, and 8 beyond.
        quantum: the step of data that are whole multiples of it; uniform noise of that width is added.
        seed: of the samples that are chosen, the probes and the noise.
        weights: "ema" or "raw".
        device: where the drift is evaluated.
        advance: called with the number of samples done in each batch.

    Raises:
        ConfigError: for a flow with noise, a source of unknown density, data of other values than the run's, or a value
            out of range.
    """
    config, registry = run.config, run.registry
    facts = run.facts
    if count is not None and count < 1:
        raise ConfigError(f"count: wanted at least 1, got {count}.")
    if quantum is not None and not 0 < quantum < math.inf:
        raise ConfigError(f"quantum: wanted a positive step of the data's values, got {quantum}.")
    path = run.path
    scheme = build_scheme(solver or {"name": "rk4"}, path, registry)
    if scheme.diffusion is not None:
        raise ConfigError("likelihood: densities are those of the ODE, and solver.diffusion adds noise. Leave it out.")
    source = registry.build("dataset", run.spec("source"), "source", event_shape=facts.event_shape)
    if not callable(getattr(source, "log_density", None)):
        raise ConfigError(
            f"likelihood: source '{config.source['name']}' tells no density (it has no log_density). Densities are "
            f"computed for sources that do, such as gaussian."
        )
    spec = data or config.evaluate.data or config.data
    samples = Samples(registry.build("dataset", spec, "data"), "data", facts.event_shape, facts.condition_shapes)
    batch = samples.some(count or config.evaluate.count, stream(seed, "likelihood"))
    size = math.prod(facts.event_shape)
    scaling = Scaling(facts.range)
    x1 = scaling.scale(_own_values(samples, batch.x1, facts.range))
    if quantum is not None:
        x1 = scaling.scale(scaling.unscale(x1) + quantum * torch.rand(x1.shape, generator=stream(seed, "quantum")))
    chosen = (0 if size <= EXACT_UP_TO else PROBES) if probes is None else probes
    drift, _ = trained_drift(run, weights, device)
    found = log_density(
        drift,
        path,
        scheme.solver,
        scheme.steps,
        x1,
        source.log_density,
        chosen,
        seed,
        conditions.conditions_of(drift, batch),
        device,
        advance=advance,
        spacing=scheme.spacing,
    )
    stretched = 0.0 if facts.range is None else size * math.log((facts.range[1] - facts.range[0]) / 2)
    bits = bits_per_dimension(found.log, facts.event_shape, facts.range, quantum)
    return Likelihood(bits, found.log - stretched, found.stderr, size, chosen)


def _own_values(samples: Samples, x: Tensor, span: tuple[float, float] | None) -> Tensor:
    """Samples in their data set's own values, which must be those of the run's data."""
    theirs = samples.scaling.range
    if theirs is not None and theirs != span:
        raise ConfigError(
            f"likelihood: the data's values lie in {theirs}, and those of the run's data "
            f"{'have no range' if span is None else f'in {span}'}: the two aren't densities of the same values. "
            f"Give data of the run's values, say as `arrays`."
        )
    values = samples.scaling.unscale(x)
    low, high = float(values.min()), float(values.max())
    if span is not None and (low < 2 * span[0] - span[1] or high > 2 * span[1] - span[0]):
        raise ConfigError(
            f"likelihood: values from {low:g} to {high:g}, and the run's data lie in {span}. Give data in those "
            f"values, as `gft sample` writes them."
        )
    return values
