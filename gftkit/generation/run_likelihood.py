"""Log-likelihoods of held-out data under a finished run."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from gftkit.data import conditions
from gftkit.data.samples import Samples, Scaling
from gftkit.generation.blending import sampled_drift
from gftkit.generation.likelihood import LogDensity, bits_per_dimension, log_density
from gftkit.generation.requested_retention import RetentionRequest, parse_retention_request
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.registry import Spec
from gftkit.runs.folder import RunFolder, Weights
from gftkit.runtime.randomness import stream
from gftkit.sampling.scheme import build_scheme


@dataclass(frozen=True)
class Likelihood:
    """Log-likelihoods of held-out data under a run, in the data's own values.

    Attributes:
        bits: for each dimension, (n,).
        log: natural log-densities, (n,).
        stderr: of each, by the probes of the divergence.
        dimension: d.
        probes: their number; 0 for the exact divergence.
    """

    bits: Tensor
    log: Tensor
    stderr: Tensor
    dimension: int
    probes: int

    def to_dict(self) -> dict[str, float]:
        """Means over samples, each with its standard error, and the part of it that is due to the probes."""
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
"""Dimensions up to which the divergence is exact by default."""
PROBES = 8


def likelihood(  # noqa: PLR0913
    run: RunFolder,
    data: Spec | None = None,
    *,
    count: int | None = None,
    solver: Spec | None = None,
    probes: int | None = None,
    quantum: float | None = None,
    seed: int = 0,
    weights: Weights = "ema",
    retention: RetentionRequest | None = None,
    device: torch.device | str = "cpu",
    advance: Callable[[int], None] = lambda _: None,
) -> Likelihood:
    """Log-likelihoods of data under the ODE of a finished run.

    Args:
        run: the run.
        data: samples, {name: ...}; by default the run's held-out data, or its training data where nothing is held out.
        count: number of samples; by default that of the run's evaluations.
        solver: {name, steps, grid, ...}; by default rk4 of 20 steps.
        probes: of the divergence, 0 for exact; by default exact up to d = 64, and 8 beyond.
        quantum: the step of data that are whole multiples of it; uniform noise of that width is added.
        seed: of the subset of the data, the probes and the noise.
        weights: "ema" or "raw".
        retention: of a blend with the anchor, whose ODE is measured; see ``gftkit.Run.samples``.
        device: where the drift is evaluated.
        advance: called with the number of samples done in each batch.

    Raises:
        ConfigError: for a flow with noise, a source of unknown density, data of other values than the run's, a blend
            that isn't one (see ``sampled_drift``), or a value out of range.
    """
    config, facts = run.config, run.facts
    _check_options(count, quantum)
    requested = parse_retention_request(retention, run.registry)
    path = run.path
    scheme = build_scheme(solver or {"name": "rk4"}, path, run.registry)
    if scheme.diffusion is not None:
        raise ConfigError("likelihood: densities are those of the ODE, and solver.diffusion adds noise. Leave it out.")
    source = _source_density(run)
    drift = sampled_drift(run, requested, weights, device).drift
    x1, batch = _data(run, data, count or config.evaluate.count, quantum, seed)
    size = math.prod(facts.event_shape)
    probes = (0 if size <= EXACT_UP_TO else PROBES) if probes is None else probes
    density = log_density(
        drift,
        path,
        scheme.solver,
        scheme.steps,
        x1,
        source,
        probes=probes,
        seed=seed,
        conditions=conditions.conditions_of(drift, batch),
        device=device,
        advance=advance,
        spacing=scheme.spacing,
    )
    # Drifts work on values scaled to [-1, 1]: the density in the data's own values is smaller by the factor of that.
    stretched = 0.0 if facts.range is None else size * math.log((facts.range[1] - facts.range[0]) / 2)
    bits = bits_per_dimension(density.log, facts.event_shape, facts.range, quantum)
    return Likelihood(bits, density.log - stretched, density.stderr, size, probes)


def _check_options(count: int | None, quantum: float | None) -> None:
    """Refuse values out of range."""
    if count is not None and count < 1:
        raise ConfigError(f"count: wanted at least 1, got {count}.")
    if quantum is not None and not 0 < quantum < math.inf:
        raise ConfigError(f"quantum: wanted a positive step of the data's values, got {quantum}.")


def _source_density(run: RunFolder) -> LogDensity:
    """The log-density of a run's source."""
    spec = run.spec("source")
    source = run.registry.build("dataset", spec, "source", event_shape=run.facts.event_shape)
    if not callable(getattr(source, "log_density", None)):
        raise ConfigError(
            f"likelihood: the density of the source '{spec['name']}' isn't known (it has no log_density). Use a run "
            f"whose source has one, such as gaussian."
        )
    density: LogDensity = source.log_density
    return density


def _data(run: RunFolder, data: Spec | None, count: int, quantum: float | None, seed: int) -> tuple[Tensor, Batch]:
    """Samples to measure, scaled as in training and with noise where there is a quantum; and their batch."""
    facts, spec = run.facts, data or run.config.evaluate.data or run.config.data
    dataset = run.registry.build("dataset", spec, "data")
    samples = Samples(dataset, "data", facts.event_shape, facts.condition_shapes)
    batch = samples.some(count, stream(seed, "likelihood"))
    scaling = Scaling(facts.range)
    x1 = scaling.scale(_own_values(samples, batch.x1, facts.range))
    if quantum is not None:
        x1 = scaling.scale(scaling.unscale(x1) + quantum * torch.rand(x1.shape, generator=stream(seed, "quantum")))
    return x1, batch


def _own_values(samples: Samples, x: Tensor, span: tuple[float, float] | None) -> Tensor:
    """Samples in their data set's own values; refused where these aren't the values of the run's data."""
    own = samples.scaling.range
    if own is not None and own != span:
        raise ConfigError(
            f"likelihood: the data's values lie in {own}, and those of the run's data "
            f"{'have no range' if span is None else f'in {span}'}: densities of different values can't be compared. "
            f"Convert the data to the run's values, for example as `arrays`."
        )
    values = samples.scaling.unscale(x)
    low, high = float(values.min()), float(values.max())
    if span is not None and (low < 2 * span[0] - span[1] or high > 2 * span[1] - span[0]):
        raise ConfigError(
            f"likelihood: got values from {low:g} to {high:g}, and the run's data lie in {span}. Give data in the "
            f"run's values, as `gft sample` writes them."
        )
    return values
