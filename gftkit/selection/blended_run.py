"""A finished fine-tune as its blends are compared: samples at any profile, and r*(t) on given data."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Generator, Tensor

from gftkit.data.samples import Samples, permuted_indices
from gftkit.estimation.jackknife import GROUPS
from gftkit.evaluation.evaluation import Evaluation
from gftkit.evaluation.retentions import Preference, preferred_retention
from gftkit.experiment.building import build_source, scheme_of
from gftkit.experiment.restore import samples_of
from gftkit.generation.blending import blends_of
from gftkit.kernel.contracts import Batch, Coupling, Profile, TimeLaw, TransportMap
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.networks.flow_map import check_jumps
from gftkit.runs.folder import RunFolder, Weights
from gftkit.runtime.randomness import stream
from gftkit.sampling.stochastic import check_unpaired
from gftkit.theory.retention_fit import RetentionFit, fit_retention
from gftkit.theory.weight import weight_of
from gftkit.training.state import draw_states, pair_targets

LEAST = 2 * GROUPS
"""Samples, and data, with which a standard error is good enough to choose by."""
PAIRS = 4096
"""Pairs on which r*(t) is measured, at least."""
EDGES = (0.0, 0.2, 0.4, 0.6, 0.7, 0.8, 0.9, 1.0)
"""Of the parts of flow time of r*(t)."""
AT_ONCE = 512
"""States at which the networks are evaluated together."""


@dataclass(frozen=True)
class Settings:
    """Settings of the measurements.

    Attributes:
        count: samples of each blend, at least ``LEAST``.
        points: training data, and held-out data, at most; at least ``LEAST``.
        steps: of the solver; None for those of the run's evaluations.
        seed: of everything drawn.
        weights: "ema" or "raw".
        device: where to evaluate the networks.

    Raises:
        ConfigError: for a number out of range.
    """

    count: int = 1000
    points: int = 2000
    steps: int | None = None
    seed: int = 0
    weights: Weights = "ema"
    device: torch.device | str = "cpu"

    def __post_init__(self) -> None:
        for name, least in (("count", LEAST), ("points", LEAST), ("steps", 1)):
            if (value := getattr(self, name)) is not None and value < least:
                raise ConfigError(f"{name}: wanted at least {least}, got {value}.")

    def generator(self, *names: str | int) -> Generator:
        """A generator for one purpose."""
        return stream(self.seed, "fit-profile", *names)


class BlendedRun:
    """A finished fine-tune, whose drift is blended with its anchor at many profiles; its weights are read once.

    Args:
        run: the fine-tune.
        settings: of the measurements.

    Attributes:
        weights: digest of the trained weights.
        anchor: hash of the anchor.

    Raises:
        ConfigError: for a run without an anchor, and a solver or guidance that it can't be sampled by.
        RunError: for a run that isn't finished, or whose anchor has changed.
    """

    def __init__(self, run: RunFolder, settings: Settings) -> None:
        config, registry = run.config, run.registry
        self.run, self.settings = run, settings
        if config.kind != "finetune":
            raise ConfigError(
                f"{run.folder} is no fine-tune, so it has no anchor to blend with, and no retention to fit. Fit a "
                f"profile to a fine-tune."
            )
        facts, guidance, spec = run.facts, config.evaluate.guidance, config.evaluate.solver
        if settings.steps is not None:
            spec = {**(spec or {}), "steps": settings.steps}
        self._scheme = scheme_of(config, spec, run.path, registry, guidance)
        check_unpaired(self._scheme.diffusion, paired=facts.paired)
        self._blends = blends_of(
            run,
            settings.weights,
            settings.device,
            noisy=self._scheme.diffusion is not None,
            guidance=guidance,
            guidance_key="evaluate.guidance",
        )
        check_jumps(self._scheme.solver, self._blends.at(0.0))
        self._source = build_source(run.spec("source"), facts.event_shape, registry)
        self.weights, self.anchor = self._blends.weights, self._blends.anchor.hash

    @cached_property
    def training(self) -> Samples:
        """The training data."""
        return samples_of(self.run, self.run.facts.event_shape)

    def starts(self, count: int) -> Tensor:
        """Source samples, (count, *event)."""
        return self._source(count, self.settings.generator("starts"))

    def preference(self) -> Preference:
        """The constant retention that the samples want, by the training data.

        Raises:
            DataError: for fewer than 4 training data.
        """
        settings = self.settings
        data = self.training.some(settings.points, settings.generator("training"))
        if len(data) < 4:
            raise DataError(f"data: wanted at least 4 training data to compare samples with, got {len(data)}.")
        return preferred_retention(
            lambda profile: self.evaluation(profile, data).samples().flatten(1).double(),
            data.x1.flatten(1).double(),
            settings.generator("groups"),
        )

    def evaluation(self, profile: Profile, reference: Batch) -> Evaluation:
        """A blend under evaluation; its source samples, noise and conditions are the same at every profile."""
        return Evaluation(
            self._blends.at(profile),
            self.run.path,
            self._scheme,
            source=self._source,
            reference=reference,
            count=self.settings.count,
            seed=self.settings.generator("samples").initial_seed(),
            device=self.settings.device,
        )

    @cached_property
    def _coupling(self) -> Coupling:
        run = self.run
        coupling: Coupling | TransportMap = run.registry.build("coupling", run.spec("coupling"))
        if isinstance(coupling, TransportMap):
            raise ConfigError(
                f"--data and --folds: coupling '{run.config.coupling['name']}' maps the source to the training data, "
                f"so other data have no pairs on which to measure r*(t). Leave the option out: the training "
                f"data choose."
            )
        return coupling

    @cached_property
    def _law(self) -> TimeLaw:
        """The law of t that the run was trained by: r*(t) has its weight."""
        law: TimeLaw = self.run.registry.build("time", self.run.config.objective.time, "objective.time")
        return law

    def check_pairs(self) -> None:
        """Refuse a run whose coupling pairs its training data only.

        Raises:
            ConfigError: with the reason.
        """
        _ = self._coupling

    def best_retentions(self, data: Batch, batches: int, edges: Sequence[float] = EDGES) -> RetentionFit:
        """r*(t) on pairs of data that the run wasn't trained on (theory, T21), without guidance.

        Every datum has as many pairs. The data are paired as in training, and then divided into batches by their
        datum, so that the errors over batches count the data and not the pairs.

        Args:
            data: scaled, in random order; the last few are left out where they don't fill a batch.
            batches: of equal size, at least 2.
            edges: of the parts of flow time.
        """
        run, train = self.run, self.run.config.train
        size = len(data) // batches * batches
        repeats = math.ceil(PAIRS / size)
        generator = self.settings.generator("pairs")
        order = permuted_indices(repeats * size, size, generator)
        parts = [
            self._evaluate(data[rows], generator)
            for rows in torch.split(order, train.pairing_batch or train.batch_size)
        ]
        by_batch = (order * batches // size).argsort(stable=True)
        t, drift, target, anchor = (torch.cat(column)[by_batch] for column in zip(*parts, strict=True))
        weight = weight_of(run.config.objective.weight)
        return fit_retention(
            drift, target, anchor, t, batches=batches, edges=edges, weight=None if weight is None else weight(t)
        )

    def _evaluate(self, targets: Batch, generator: Generator) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        """Times, trained drift, conditional drift and anchor at fresh pairs of data, on the CPU, in their order."""
        trained, anchor, run = self._blends.trained, self._blends.anchor, self.run
        paired = pair_targets(targets, drift=trained, source=self._source, coupling=self._coupling, generator=generator)
        pairs = draw_states(
            paired,
            drift=trained,
            path=run.path,
            law=self._law,
            generator=generator,
            device=self.settings.device,
        )
        columns = []
        with torch.no_grad():
            for rows in torch.split(torch.arange(len(targets), device=pairs.t.device), AT_ONCE):
                named = {name: values[rows] for name, values in pairs.conditions.items()}
                anchored = {name: named[name] for name in anchor.conditions}
                at = pairs.t[rows], pairs.x[rows]
                values = at[0], trained(*at, **named), pairs.target[rows], anchor(*at, **anchored)
                columns.append([value.cpu() for value in values])
        t, drift, target, anchor_values = (torch.cat(column) for column in zip(*columns, strict=True))
        return t, drift, target, anchor_values
