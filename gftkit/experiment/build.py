"""The components that a configuration names, built and checked against each other before any work is done.

Four stages, each giving one small object: data, networks, the parts of the loss, the measurement.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, NamedTuple

import torch
from torch import Tensor, nn

from gftkit.data import conditions
from gftkit.data.description import Facts
from gftkit.data.pairing import Pairs
from gftkit.data.samples import Samples, Source, VisitOrder
from gftkit.data.transport import check_no_partners
from gftkit.evaluation.evaluation import Evaluation
from gftkit.evaluation.metrics import Metrics, Scope, check_metrics
from gftkit.experiment.building import build_metrics, build_source, scheme_of
from gftkit.experiment.checks import (
    check_anchor,
    check_labels,
    check_same_path,
    check_student,
    inherit,
    scale_warnings,
)
from gftkit.experiment.networks import NetworkBuilder, Networks
from gftkit.experiment.probes import probe_networks
from gftkit.experiment.restore import training_data
from gftkit.kernel.contracts import Batch, Coupling, Monitor, Path, Schedule, StoppingRule, TimeLaw
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry
from gftkit.networks.flow_map import check_jumps
from gftkit.networks.guidance import check_guidance, with_guidance
from gftkit.runs.folder import RunFolder, is_run
from gftkit.runs.resolve import Resolution
from gftkit.runs.schema import Config
from gftkit.runtime.randomness import stream
from gftkit.sampling.scheme import Scheme
from gftkit.sampling.stochastic import check_unpaired
from gftkit.theory.temperature import check_schedule
from gftkit.theory.times import check_time_law
from gftkit.theory.weight import weight_of


@dataclass(frozen=True)
class Matching:
    """The parts of the loss of a step.

    Attributes:
        path: the conditional path.
        source: draws x0.
        pairs: of x0 and x1, by step.
        time: the law of t, on [0, 1].
        weight: w(t); None for 1.
        schedule: the temperature; None where there is none.
        stop: the rule that may end the run.
    """

    path: Path
    source: Source
    pairs: Pairs
    time: TimeLaw
    weight: Callable[[Tensor], Tensor] | None = None
    schedule: Schedule | None = None
    stop: StoppingRule | None = None


@dataclass(frozen=True)
class EvaluationPlan:
    """The measurements of a run, and the data that they use.

    Attributes:
        scheme: solver, steps and diffusion of the samples.
        metrics: measured along the run.
        final: measured before the first step and at the end; includes ``metrics``.
        monitors: they observe the run at every evaluation, by name.
        training: samples of the training data, scaled.
        reference: the data that samples are compared with, scaled.
        inherited: draws at most so many samples of the pretrained run's data; None without a pretrained run.
    """

    scheme: Scheme
    metrics: Metrics
    final: Metrics
    monitors: list[tuple[str, Monitor]]
    training: Batch
    reference: Batch
    inherited: Callable[[int], Batch] | None = None


@dataclass(frozen=True)
class Experiment:
    """The components of a run, and the data in the form that training and metrics use.

    Attributes:
        config: the configuration that names them.
        facts: of the data.
        networks: drift, anchor and adapters.
        matching: the parts of the loss.
        measurement: metrics and monitors, with their data.
        warnings: for the user, one sentence each.
    """

    config: Config
    facts: Facts
    networks: Networks
    matching: Matching
    measurement: EvaluationPlan
    warnings: list[str]

    def evaluation(self, drift: nn.Module, device: torch.device | str, history: Any = ()) -> Evaluation:
        """A drift under evaluation, on this experiment's reference data, guided as ``evaluate.guidance`` says."""
        measurement = self.measurement
        return Evaluation(
            with_guidance(drift, self.config.evaluate.guidance),
            self.matching.path,
            measurement.scheme,
            source=self.matching.source,
            reference=measurement.reference,
            count=self.config.evaluate.count,
            seed=self.config.seed,
            device=device,
            training=measurement.training,
            anchor=self.networks.anchor,
            history=history,
            held_out=self.config.evaluate.data is not None,
            inherited=measurement.inherited,
        )


class _Data(NamedTuple):
    """The data sets of a run, their facts, and the pretrained run."""

    training: Samples
    reference: Samples
    facts: Facts
    parent: RunFolder | None


def build(config: Config | Resolution, registry: Registry) -> Experiment:
    """Build every component of a configuration.

    Args:
        config: resolved. Of a ``Resolution``, the run that it opened and the components that it built are used.
        registry: components.

    Raises:
        GftkitError: for components that don't fit, before anything is written.
    """
    resolution = config if isinstance(config, Resolution) else _resolution_of(config, registry)
    config = resolution.config
    training = Samples(registry.build("dataset", config.data, "data"), "data")
    parent = resolution.parent
    inherits = parent is not None and plain(parent.config.path) == plain(config.path)
    path: Path = parent.path if parent is not None and inherits else registry.build("path", config.path)
    law = _build_time_law(config, registry)
    coupling: Coupling = registry.build("coupling", config.coupling)
    source = build_source(config.source, training.event_shape, registry)
    guidance = config.evaluate.guidance
    scheme = scheme_of(config, config.evaluate.solver, path, registry, guidance, coupling)
    data = _build_data(config, training, parent, path, registry)
    networks, notes = _build_networks(config, data, path, coupling, scheme, registry)
    notes += _check_conditions(config, networks.drift, data)
    measurement = build_measurement(config, training, data.reference, scheme, registry, data.parent)
    facts = replace(data.facts, paired=measurement.training.x0 is not None)
    check_unpaired(scheme.diffusion, paired=facts.paired)
    probe_networks(config, networks, facts, measurement.training, path, registry)
    named = tuple(name for name in conditions.condition_names(networks.drift) if name != conditions.LABEL)
    check_no_partners(coupling, measurement.training, training.where)
    if not facts.paired:
        notes += conditions.check_coupling(coupling, config.coupling["name"], named)
    if config.schedule is not None and resolution.schedule is not None:
        notes += check_schedule(resolution.schedule, config.schedule["name"], config.train.steps)
        if networks.anchor is not None:
            check_anchor(networks.anchor, networks.drift, config, resolution.schedule)
    train = config.train
    assert train.pairing_batch is not None  # filled in where the configuration was resolved
    pairs = Pairs(
        VisitOrder(data.training, config.seed, train.shuffle_buffer),
        source=source,
        coupling=coupling,
        batch_size=train.batch_size,
        pairing_batch=train.pairing_batch,
        seed=config.seed,
        within_labels=conditions.LABEL in conditions.condition_names(networks.drift),
        conditions=named,
    )
    weight = weight_of(config.objective.weight)
    matching = Matching(path, source, pairs, law, weight, resolution.schedule, resolution.stop)
    notes += scale_warnings(config, measurement.training, data.training, data.parent)
    return Experiment(config, facts, networks, matching, measurement, notes)


def _resolution_of(config: Config, registry: Registry) -> Resolution:
    """The resolution of a configuration that is resolved already: its run opened, its schedule and stop built."""
    source = config.pretrained
    return Resolution(
        config,
        [],
        RunFolder.open(source, registry) if source is not None and is_run(source) else None,
        None if config.schedule is None else registry.build("schedule", config.schedule),
        None if config.stop is None else registry.build("stop", config.stop),
    )


def _build_data(config: Config, training: Samples, parent: RunFolder | None, path: Path, registry: Registry) -> _Data:
    """Build the held-out data, and check them and the training data against the pretrained run."""
    facts = Facts(training.event_shape, training.classes, training.scaling.range, training.condition_shapes)
    reference = training
    if config.evaluate.data is not None:
        held_out = registry.build("dataset", config.evaluate.data, "evaluate.data")
        reference = Samples(held_out, "evaluate.data", facts.event_shape, facts.condition_shapes)
    if parent is not None:
        facts = inherit(facts, parent)
        check_same_path(path, config, parent)
    return _Data(training, reference, facts, parent)


def _build_time_law(config: Config, registry: Registry) -> TimeLaw:
    """The law of t, checked."""
    law: TimeLaw = registry.build("time", config.objective.time, "objective.time")
    check_time_law(law, f"objective.time ('{config.objective.time['name']}')")
    return law


def _build_networks(
    config: Config, data: _Data, path: Path, coupling: Coupling, scheme: Scheme, registry: Registry
) -> tuple[Networks, list[str]]:
    """The networks of a run, and notes for the user about them."""
    # New weights are drawn from torch's global generator, which the caller forks: those of a seed don't depend on
    # what was built before.
    torch.manual_seed(config.seed)
    builder = NetworkBuilder(config, registry, path, coupling)
    start = builder.starting_drift(data.facts, data.parent)
    check_student(start.drift, config)
    check_jumps(scheme.solver, with_guidance(start.drift, config.evaluate.guidance))
    if config.kind == "pretrain":
        return Networks(start.drift), [*start.notes]
    networks, notes = builder.tuned_networks(start, data.facts, data.parent)
    return networks, [*start.notes, *notes]


def _check_conditions(config: Config, drift: nn.Module, data: _Data) -> list[str]:
    """Refuse data whose conditions the drift can't use; a note for the user where dropping them ends.

    Raises:
        DataError: for labels that are missing, or beyond the drift's classes.
        ConfigError: for conditions that the drift doesn't take, or can't do without.
    """
    used = conditions.condition_names(drift)
    if conditions.LABEL in used:
        for samples in (data.training, data.reference):
            check_labels(samples, data.facts)
    if extra := [name for name in data.facts.condition_shapes if name not in used]:
        raise ConfigError(
            f"data: the drift '{config.drift['name']}' doesn't take the condition {', '.join(map(repr, extra))} of the "
            f"data. Name it in the drift's `conditions`, or leave it out of the data's."
        )
    dropout, guidance = config.train.condition_dropout, config.evaluate.guidance
    if dropout > 0:
        conditions.check_null(drift, config.drift["name"], "train.condition_dropout")
    check_guidance(guidance, drift, dropout, "evaluate.guidance")
    before = 0.0 if data.parent is None else data.parent.config.train.condition_dropout
    if before == 0 or dropout > 0:
        return []
    return [
        f"train.condition_dropout is 0, and the pretrained run's was {before:g}: the drift without conditions isn't "
        f"fine-tuned, so samples can't be guided. Set train.condition_dropout to guide them."
    ]


def build_measurement(
    config: Config,
    training: Samples,
    reference: Samples,
    scheme: Scheme,
    registry: Registry,
    parent: RunFolder | None,
) -> EvaluationPlan:
    """Build the metrics and monitors of a configuration, and draw the data that they use.

    Args:
        config: the configuration.
        training: the data that the run is trained on.
        reference: the data that samples are compared with.
        scheme: solver, steps and diffusion of the samples.
        registry: components.
        parent: the pretrained run, where there is one.

    Raises:
        ConfigError: for a metric that can't measure this.
    """
    places: Sequence[tuple[str, Any]] = [(f"monitors[{index}]", spec) for index, spec in enumerate(config.monitors)]
    monitors = [(spec["name"], registry.build("monitor", spec, place)) for place, spec in places]
    count = config.evaluate.count
    trained = training.some(count, stream(config.seed, "training"))
    metrics, final = build_metrics(config.evaluate, registry)
    compared = reference.some(count, stream(config.seed, "reference"))
    held_out = config.evaluate.data is not None
    # A metric refuses here, and not after hours of training, when it is first measured.
    check_metrics(final, Scope(count, len(compared), len(trained), held_out, training.event_shape, parent is not None))
    inherited = None if parent is None else partial(training_data, parent)
    return EvaluationPlan(
        scheme=scheme,
        metrics=metrics,
        final=final,
        monitors=monitors,
        training=trained,
        reference=compared,
        inherited=inherited,
    )
