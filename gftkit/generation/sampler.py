"""Samples of a finished run by index: the same index gives the same sample, however the work is divided."""

import itertools
from collections.abc import Callable, Mapping
from dataclasses import KW_ONLY, dataclass
from functools import cached_property
from typing import Any

import torch
from torch import Tensor

from gftkit.data import conditions
from gftkit.data.samples import Scaling
from gftkit.experiment.building import build_source, scheme_of
from gftkit.generation.blending import sampled_drift
from gftkit.generation.requested_conditions import conditions_at, parse_condition_request
from gftkit.generation.requested_retention import (
    RetentionRequest,
    describe_retention,
    parse_retention_request,
)
from gftkit.kernel.contracts import Drift, Integrator
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Spec
from gftkit.networks.flow_map import check_jumps, is_flow_map
from gftkit.networks.precision import PRECISIONS, Precision
from gftkit.runs.folder import RunFolder, Weights
from gftkit.runtime.environment import versions
from gftkit.sampling.integrate import drift_at, generate, grid_of
from gftkit.sampling.noise import BLOCK, ByBlock, draw_by_block
from gftkit.sampling.stochastic import check_unpaired
from gftkit.storage.tensors import digest

BATCH_SIZE = 512
"""Samples that are integrated at once."""


@dataclass(frozen=True)
class Request:
    """The samples that are requested of a run; see ``Run.samples``."""

    count: int
    seed: int = 0
    solver: Spec | None = None
    _: KW_ONLY
    label: int | None = None
    weights: Weights = "ema"
    guidance: float | None = None
    conditions: Mapping[str, Tensor] | None = None
    temperature: float | None = None
    retention: RetentionRequest | None = None
    precision: Precision = "float32"
    batch_size: int = BATCH_SIZE


class CountedDrift:
    """A drift that counts the samples at which it is evaluated.

    Args:
        drift: the drift.
    """

    def __init__(self, drift: Drift) -> None:
        self._drift, self.evaluated = drift, 0
        self.conditions, self.null = conditions.condition_names(drift), conditions.condition_nulls(drift)
        self.jumps = is_flow_map(drift)

    def __call__(self, t: Tensor, x: Tensor, **named: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        self.evaluated += len(x)
        return self._drift(t, x, **named)

    def at_time(self, t: float) -> Drift:
        """The drift for samples that share the time t, counted too."""
        drift = drift_at(self._drift, t)

        def counted(t: Tensor, x: Tensor, **named: Tensor) -> Tensor:
            self.evaluated += len(x)
            return drift(t, x, **named)

        return counted


class RunSampler:
    """The samples 0 to ``count - 1`` of a run, any range of them at any time.

    Args:
        run: a finished run.
        request: the samples.
        device: where to evaluate the drift.

    Attributes:
        count: their number.
        facts: of the run's data.
        size: samples in a batch: ``batch_size``, rounded down to whole blocks of 64 where it is more.
        integrated: number of samples made so far; a library's solver makes whole blocks.

    Raises:
        ConfigError: for a count, batch size, label, retention, temperature or precision out of range, conditions that
            don't fit the drift, guidance that the run wasn't trained for, a blend that isn't one (see
            ``sampled_drift``), or a solver that doesn't solve this flow.
        RunError: for a run that isn't finished, or has no anchor to blend with.
    """

    def __init__(self, run: RunFolder, request: Request, device: torch.device | str = "cpu") -> None:
        for name in ("count", "batch_size"):
            if getattr(request, name) < 1:
                raise ConfigError(f"{name}: wanted at least 1, got {getattr(request, name)}.")
        if request.precision not in PRECISIONS:
            raise ConfigError(f"precision: wanted {', '.join(PRECISIONS)}, got '{request.precision}'.")
        config, registry = run.config, run.registry
        self._retention = parse_retention_request(request.retention, registry, request.temperature)
        self.facts = run.facts
        self.count, self._seed, self._device = request.count, request.seed, torch.device(device)
        self._path = run.path
        spec = request.solver or config.evaluate.solver
        scale = config.evaluate.guidance if request.guidance is None else request.guidance
        self._scheme = scheme_of(config, spec, self._path, registry, scale)
        check_unpaired(self._scheme.diffusion, paired=self.facts.paired)
        self.size = request.batch_size if request.batch_size < BLOCK else request.batch_size // BLOCK * BLOCK
        self._by_block = isinstance(self._scheme.solver, Integrator)
        if self._by_block and self.size < BLOCK:
            raise ConfigError(
                f"batch_size: wanted at least {BLOCK}, got {request.batch_size}: a library's solver integrates that "
                f"many samples together, and a smaller batch would change them. Choose a larger batch, or one of "
                f"gftkit's own solvers."
            )
        sampled = sampled_drift(
            run,
            self._retention,
            request.weights,
            self._device,
            noisy=self._scheme.diffusion is not None,
            precision=request.precision,
            guidance=scale,
        )
        drift = sampled.drift
        self._drift = CountedDrift(drift)
        check_jumps(self._scheme.solver, self._drift)
        self.integrated = 0
        self._rows = parse_condition_request(
            drift, request.conditions, request.label, self.facts.classes, self.facts.condition_shapes
        )
        self._source = build_source(run.spec("source"), self.facts.event_shape, registry)
        self._run, self._request, self._spec, self._scale, self._sampled = run, request, spec, scale, sampled

    @cached_property
    def identity(self) -> dict[str, Any]:
        """Plain values that determine the samples; weights, times, conditions and profiles by their digests."""
        config, request = self._run.config, self._request
        grid = grid_of(self._path, self._scheme.steps, self._scheme.spacing).times
        # Most solvers evaluate at the times of their steps and in the middle: there too profiles must be the same.
        stages = [*grid, *((t + later) / 2 for t, later in itertools.pairwise(grid))]
        return {
            "gftkit": versions()["gftkit"],  # another version may sample differently
            "weights": self.weights_digest,
            "flow": plain({"drift": config.drift, "path": config.path, "source": config.source}),
            "solver": {**plain(self._spec or {}), "times": digest({"times": torch.tensor(grid)})},
            "count": request.count,
            "seed": request.seed,
            "conditions": digest(self._rows),
            "guidance": self._scale,
            "retention": describe_retention(self._retention, stages),
            "anchor": self._sampled.anchor,
            "precision": request.precision,
            "device": self._device.type,  # CPU and CUDA draw different numbers
        }

    @property
    def weights_digest(self) -> str:
        """The digest of the trained weights."""
        return self._sampled.weights

    @property
    def retention(self) -> float | str:
        """The retention of the blend; where it depends on flow time, a short hash of its values."""
        return describe_retention(self._retention)

    def warnings(self) -> list[str]:
        """Warnings of a time grid that was fitted to another flow, or for another solver."""
        fitted_on = getattr(self._scheme.spacing, "fitted_on", {})
        solver = str(self._spec["name"] if self._spec else "euler")
        warnings = []
        if "hash" in fitted_on and fitted_on["hash"] != self.weights_digest:
            warnings.append(f"the time grid was fitted to other weights than these, those of {fitted_on.get('run')}.")
        if "hash" in fitted_on and (fitted_at := fitted_on.get("retention", 0.0)) != self.retention:
            warnings.append(f"the time grid was fitted at retention {fitted_at}, and this is {self.retention}.")
        if "solver" in fitted_on and fitted_on["solver"] != solver:
            warnings.append(f"the time grid was fitted for {fitted_on['solver']}, and the solver is {solver}.")
        return warnings

    @property
    def evaluated(self) -> int:
        """Number of states at which the drift was evaluated so far; a guided or blended one counts once."""
        return self._drift.evaluated

    @property
    def evaluations(self) -> float:
        """Drift evaluations for a sample, on average over those made so far."""
        return self.evaluated / max(self.integrated, 1)

    def conditions(self, first: int, count: int) -> dict[str, Tensor]:
        """The conditions of samples ``first`` to ``first + count - 1``, (count, ...) each."""
        return conditions_at(self._rows, first, count)

    def part(self, first: int, count: int, advance: Callable[[int], None] = lambda _: None) -> Tensor:
        """Samples ``first`` to ``first + count - 1`` in the data's own values, (count, *event).

        Args:
            first: a multiple of 64.
            count: number of samples.
            advance: called with the number of samples done in each batch.

        Raises:
            DivergenceError: where a sample is not finite.
        """
        return self._integrate(first, count, advance, whole=False)

    def sources(self, first: int, count: int) -> Tensor:
        """The source samples that samples ``first`` to ``first + count - 1`` come from, in the data's own values."""
        return Scaling(self.facts.range).unscale(self.starts(first, count))

    def starts(self, first: int, count: int) -> Tensor:
        """The same source samples, scaled as in training: the drift's states at t = 0."""
        return draw_by_block(self._source, self._seed, first, count)

    @property
    def drift(self) -> Drift:
        """The drift that is integrated, guided or blended as requested, before a diffusion adds to it."""
        return self._drift

    def states(self, count: int) -> Tensor:
        """The states of the first samples at all times, from the source on, (times, count, *event)."""
        return self._integrate(0, min(count, self.count), whole=True)

    def samples(self, advance: Callable[[int], None] = lambda _: None) -> tuple[Tensor, dict[str, Tensor]]:
        """All samples, (count, *event), and the conditions of each."""
        return self.part(0, self.count, advance), self.conditions(0, self.count)

    def _integrate(
        self, first: int, count: int, advance: Callable[[int], None] = lambda _: None, *, whole: bool = False
    ) -> Tensor:
        def counted(done: int) -> None:
            self.integrated += done
            advance(done)

        # The steps of a library's solver depend on all samples of a block, so that whole blocks are integrated.
        integrated = -(-count // BLOCK) * BLOCK if self._by_block else count
        samples = generate(
            *self._scheme.equation(self._drift, self._path),
            solver=self._scheme.solver,
            steps=self._scheme.steps,
            x0=self.starts(first, integrated),
            # By index and not by batch: any part, on any process, has the noise of the whole.
            noise=ByBlock(self._seed, self._device, first),
            conditions=self.conditions(first, integrated),
            batch_size=self.size,
            whole=whole,
            advance=counted,
            spacing=self._scheme.spacing,
        )
        return Scaling(self.facts.range).unscale(samples[:, :count] if whole else samples[:count])
