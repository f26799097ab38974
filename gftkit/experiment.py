"""Everything that a configuration names, built and checked against each other, before any work is done."""

from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path as FilePath
from typing import Any

import torch
from torch import Tensor, nn

from gftkit import conditions, flow, lineage
from gftkit.adapters import Adapted
from gftkit.anchor import AdaptersOffAnchor, Anchor, ExternalAnchor, FrozenAnchor, identity
from gftkit.building import adapt, build_drift, build_metrics, build_source, scheme_of
from gftkit.config import DEFAULTS, Config, Spec
from gftkit.contracts import Batch, Coupling, Monitor, Path, Schedule, StoppingRule
from gftkit.data import Order, Samples, Source
from gftkit.errors import ConfigError, DataError
from gftkit.evaluation import Evaluation, Metrics, Scope, check
from gftkit.facts import Facts
from gftkit.files import digest, load_weights
from gftkit.foreign import weights
from gftkit.foreign.drift import ForeignDrift, check_score
from gftkit.pairing import Pairs
from gftkit.randomness import stream
from gftkit.registry import Registry, plain
from gftkit.run import Run, is_run
from gftkit.sampling.flow_map import check_jumps, is_flow_map
from gftkit.sampling.guidance import check_guidance, guided
from gftkit.sampling.scheme import Scheme
from gftkit.sampling.stochastic import check_unpaired
from gftkit.temperature import check_schedule

LARGE = 20.0
"""Root mean square that passes without a warning in pretraining."""

FAR_OUTSIDE = 3.0
"""Largest value that passes without a warning for a drift trained on [-1, 1]."""


@dataclass(frozen=True)
class Experiment:
    """The components of a run, and the data in the form that the loop and the metrics use.

    ``anchors`` are the hashes of the anchors of the fine-tunes that led here, oldest first, this run's own last.
    ``adapted`` is the drift with its adapters, where it has any, and ``base`` the digest of the weights it starts from,
    where a resumed run needs them.
    """

    config: Config
    facts: Facts
    drift: nn.Module
    anchor: Anchor | None
    path: Path
    schedule: Schedule | None
    pairs: Pairs
    weight: Callable[[Tensor], Tensor] | None
    source: Source
    scheme: Scheme
    metrics: Metrics
    final: Metrics
    monitors: list[tuple[str, Monitor]]
    training: Batch
    reference: Batch
    warnings: list[str]
    anchors: tuple[str, ...] = ()
    adapted: Adapted | None = None
    base: str | None = None
    stop: StoppingRule | None = None
    inherited: Callable[[int], Batch] | None = None

    def evaluation(self, drift: nn.Module, device: torch.device | str, history: Any = ()) -> Evaluation:
        """A drift under evaluation, on this experiment's reference data, guided as ``evaluate.guidance`` says."""
        return Evaluation(
            guided(drift, self.config.evaluate.guidance),
            self.path,
            self.scheme,
            self.source,
            self.reference,
            self.config.evaluate.count,
            self.config.seed,
            device,
            self.training,
            self.anchor,
            history,
            held_out=self.config.evaluate.data is not None,
            inherited=self.inherited,
        )


def build(config: Config, registry: Registry) -> Experiment:
    """Build every component of a configuration.

    Raises:
        GftkitError: naming what doesn't fit, before anything is written.
    """
    data = Samples(registry.build("dataset", config.data, "data"), "data")
    facts = Facts(data.event_shape, data.classes, data.scaling.range, data.condition_shapes)
    path: Path = registry.build("path", config.path)
    coupling: Coupling = registry.build("coupling", config.coupling)
    source = build_source(config.source, facts.event_shape, registry)
    scheme = scheme_of(config, config.evaluate.solver, path, registry, config.evaluate.guidance)
    reference = data
    if config.evaluate.data is not None:
        reference = Samples(
            registry.build("dataset", config.evaluate.data, "evaluate.data"),
            "evaluate.data",
            facts.event_shape,
            facts.condition_shapes,
        )
    parent = None
    if config.pretrained is not None and is_run(config.pretrained):
        parent = Run.open(config.pretrained, registry)
        facts = _inherit(facts, parent)
        _check_same_path(path, config, parent)
    torch.manual_seed(config.seed)
    drift, notes = _drift(config.drift, config.pretrained, parent, facts, path, config, registry)
    anchor: Anchor | None = None
    anchors: tuple[str, ...] = ()
    adapted, base = None, None
    _check_student(drift, config)
    check_jumps(scheme.solver, guided(drift, config.evaluate.guidance))
    if config.kind != "pretrain":
        anchor, more = anchor_of(config, drift, facts, path, registry)
        notes += more
        if config.adapters is not None or config.objective.l2_sp > 0:
            base = digest(drift.state_dict())
        if config.adapters is not None:
            off = identity(drift.state_dict(), lineage.made_of(config.drift, facts, registry))
            adapted = adapt(drift, config, facts)
            anchor = anchor or AdaptersOffAnchor(adapted, off)
        assert anchor is not None
        anchors = (*lineage.anchors(config.pretrained), anchor.hash)
    used = conditions.names(drift)
    if conditions.LABEL in used:
        for each in (data, reference):
            _check_labels(each, facts)
    if extra := [name for name in facts.condition_shapes if name not in used]:
        raise ConfigError(
            f"data: the drift '{config.drift['name']}' isn't given the condition {', '.join(map(repr, extra))}, which "
            f"the data bring. Name it in the drift's `conditions`, or leave it out of the data's."
        )
    if config.train.condition_dropout > 0:
        conditions.check_null(drift, config.drift["name"], "train.condition_dropout")
    if parent is not None and parent.config.train.condition_dropout > 0 and config.train.condition_dropout == 0:
        notes = [
            *notes,
            f"train.condition_dropout is 0, and the pretrained run's was {parent.config.train.condition_dropout:g}: "
            f"the drift without conditions isn't fine-tuned, and samples can't be guided.",
        ]
    check_guidance(config.evaluate.guidance, drift, config.train.condition_dropout, "evaluate.guidance")
    named = tuple(name for name in used if name != conditions.LABEL)
    monitors = [registry.build("monitor", spec, f"monitors[{index}]") for index, spec in enumerate(config.monitors)]
    training = data.some(config.evaluate.count, stream(config.seed, "training"))
    facts = replace(facts, paired=training.x0 is not None)
    check_unpaired(scheme.diffusion, facts.paired)
    if not facts.paired:
        notes = [*notes, *conditions.check_coupling(coupling, config.coupling["name"], named)]
    train = config.train
    assert train.pairing_batch is not None
    schedule: Schedule | None = None
    if config.schedule is not None:
        schedule = registry.build("schedule", config.schedule)
        notes = [*notes, *check_schedule(schedule, config.schedule["name"], train.steps)]
    (metrics, final), held_out = build_metrics(config.evaluate, registry), config.evaluate.data is not None
    compared = reference.some(config.evaluate.count, stream(config.seed, "reference"))
    known = len(compared), len(training), held_out, facts.event_shape, parent is not None
    check(final, Scope(config.evaluate.count, *known))
    return Experiment(
        config=config,
        facts=facts,
        drift=drift,
        anchor=anchor,
        path=path,
        schedule=schedule,
        pairs=Pairs(
            Order(data, config.seed, train.shuffle_buffer),
            source,
            coupling,
            train.batch_size,
            train.pairing_batch,
            config.seed,
            within_labels=conditions.LABEL in used,
            conditions=named,
        ),
        weight=_weight(config.objective.weight),
        source=source,
        scheme=scheme,
        metrics=metrics,
        final=final,
        monitors=[(spec["name"], made) for spec, made in zip(config.monitors, monitors, strict=True)],
        training=training,
        reference=compared,
        warnings=[*notes, *_scale_warnings(config, training, data, parent)],
        anchors=anchors,
        adapted=adapted,
        base=base,
        stop=None if config.stop is None else registry.build("stop", config.stop),
        inherited=None if parent is None else parent.training_data,
    )


def _weight(text: str) -> Callable[[Tensor], Tensor] | None:
    """The objective's weight as a function of t; None for one, which costs nothing."""
    if text.strip() == "1":
        return None
    from gftkit import expression

    return expression.function(expression.parse(text))


def starting(config: Config, facts: Facts, registry: Registry) -> nn.Module:
    """The drift of a configuration with the weights that it starts from."""
    source = config.pretrained
    parent = Run.open(source, registry) if source is not None and is_run(source) else None
    path: Path = registry.build("path", config.path)
    return _drift(config.drift, source, parent, facts, path, config, registry)[0]


def _drift(
    spec: Spec,
    source: FilePath | None,
    parent: Run | None,
    facts: Facts,
    path: Path,
    config: Config,
    registry: Registry,
) -> tuple[nn.Module, list[str]]:
    """A network with the weights that it starts from (a run's, a file's, its own, new ones), and what to tell of it."""
    drift = build_drift(spec, facts, registry, path)
    notes = [*getattr(drift, "notes", ())]
    if parent is not None:
        student = is_flow_map(drift) and parent.config.kind != "distill"
        load_weights(drift.get_submodule("drift") if student else drift, parent.weights()[0], parent.folder)
    elif source is not None:
        notes += weights.load(drift, source)
    if isinstance(drift, ForeignDrift):
        _check_convention(drift, spec, path, config, registry)
    return drift, notes


def anchor_of(
    config: Config, drift: nn.Module, facts: Facts, path: Path, registry: Registry
) -> tuple[Anchor | None, list[str]]:
    """The anchor of a fine-tune, None for adapters-off, and what to tell of it; ``drift`` as it starts."""
    spec = config.anchor or {}
    if spec["name"] == lineage.OFF:
        return None, []
    if spec["name"] == lineage.FROZEN:
        return FrozenAnchor(drift, lineage.made_of(config.drift, facts, registry)), []
    source = None if spec["pretrained"] is None else FilePath(spec["pretrained"])
    parent = None
    if source is not None and is_run(source):
        parent = Run.open(source, registry)
        _check_same_path(path, config, parent, "anchor.pretrained")
        before = parent.weights()[1]
        if before.event_shape != facts.event_shape:
            raise ConfigError(
                f"anchor.pretrained: wanted a drift for samples of shape {facts.event_shape}, and {source} was "
                f"trained on {before.event_shape}. Choose another anchor."
            )
        facts = before
    other, notes = _drift(spec["drift"], source, parent, facts, path, config, registry)
    lacking = sorted(set(conditions.names(other)) - set(conditions.names(drift)))
    if lacking:
        raise ConfigError(
            f"anchor: its drift is given {', '.join(lacking)}, and the drift that is trained isn't. "
            f"Choose an anchor without, or a conditional drift."
        )
    return ExternalAnchor(other, lineage.made_of(spec["drift"], facts, registry)), notes


def _scale_warnings(config: Config, training: Batch, data: Samples, parent: Run | None) -> list[str]:
    """A warning where data that aren't scaled go to a drift that was trained on [-1, 1], and lie far outside.

    Also where a new drift would have to learn values far from size 1.
    """
    if config.kind == "pretrain":
        size = float(training.x1.double().square().mean().sqrt())
        if size <= LARGE:
            return []
        return [
            f"data: values of size {size:.3g} (root mean square), and drifts are made for size 1: the loss starts near "
            f"{size**2:.1g}, and training is slow or fails. Bring the values to [-1, 1] or to variance 1 first: those "
            f"of images in 0 to 255, say, by x / 127.5 - 1."
        ]
    if parent is None or parent.weights()[1].range is None or data.scaling.range is not None:
        return []
    largest = float(training.x1.abs().max())
    if largest <= FAR_OUTSIDE:
        return []
    return [
        f"data: the pretrained drift knows values in [-1, 1], and these go to {largest:.4g}; data without a range are "
        f"never rescaled. Bring them to [-1, 1] yourself."
    ]


def _inherit(facts: Facts, parent: Run) -> Facts:
    """The data's facts, with as many classes as the pretrained drift knows."""
    before = parent.weights()[1]
    if before.event_shape != facts.event_shape:
        raise DataError(
            f"data: wanted samples of shape {before.event_shape}, as the pretrained run {parent.folder} has, got "
            f"{facts.event_shape}. Resize or crop them (image sets take `size`)."
        )
    changed = [
        f"'{name}' of shape {shape}, got {facts.condition_shapes.get(name, 'none')}"
        for name, shape in before.condition_shapes.items()
        if facts.condition_shapes.get(name) != shape
    ]
    if changed:
        raise DataError(
            f"data: wanted the conditions that the pretrained run {parent.folder} has: {'; '.join(changed)}. "
            f"Give every sample these conditions."
        )
    return replace(facts, classes=before.classes or facts.classes)


def _check_labels(samples: Samples, facts: Facts) -> None:
    """Refuse data whose labels a conditional drift can't use; of a part of a data set only its own labels count.

    Raises:
        DataError: for data without labels, or with a label beyond the classes that the drift was made for.
    """
    labels = getattr(samples.data, "labels", None)
    wanted = samples.classes if labels is None else int(labels.max()) + 1
    if wanted is None:
        raise DataError(
            f"{samples.where}: the drift is conditional and the data have no labels. Give labels, or another drift."
        )
    if facts.classes is not None and wanted > facts.classes:
        raise DataError(
            f"{samples.where}: labels up to {wanted - 1}, and the drift knows {facts.classes} classes. Choose those "
            f"with `classes`, or train a drift on all of them."
        )


def _check_same_path(path: Path, config: Config, parent: Run, key: str = "pretrained") -> None:
    """Refuse a path or diffusion that differs from the anchor's: the blend of two such drifts means nothing.

    Raises:
        ConfigError: with the reason.
    """
    differs = _differences(path, parent.registry.build("path", parent.config.path))
    if differs:
        raise ConfigError(
            f"path: {config.path} differs from the {key} run's {parent.config.path} in {', '.join(differs)}. "
            f"Its anchor is the drift of another process, and a blend of the two would end in neither law. "
            f"Leave `path` out to inherit it, or pretrain on this path."
        )


def _differences(path: Path, other: Path) -> list[str]:
    """What two paths differ in."""
    t = torch.linspace(0.01, 0.99, 99, dtype=torch.float64)
    one, two = ((*p.coefficients(t), flow.diffusion(p, t)) for p in (path, other))
    names = ("sigma", "alpha", "gamma", "diffusion g")
    return [name for name, a, b in zip(names, one, two, strict=True) if not torch.allclose(a, b)]


def _check_student(drift: nn.Module, config: Config) -> None:
    """Refuse a network that a distillation can't train, and a flow map anywhere else.

    Raises:
        ConfigError: with the reason.
    """
    if config.kind != "distill":
        if is_flow_map(drift):
            raise ConfigError(
                f"drift: '{config.drift['name']}' is a flow map, which only `gft distill` trains. Pretrain or "
                f"fine-tune the network that it wraps, then distil that run."
            )
        return
    if not is_flow_map(drift):
        raise ConfigError(
            f"drift: a distillation wants a flow map, and '{config.drift['name']}' isn't told the end of a jump. Leave "
            f"`drift` out, or give {{name: flow-map}}."
        )


def _check_convention(drift: ForeignDrift, spec: Spec, path: Path, config: Config, registry: Registry) -> None:
    """Refuse a network whose convention contradicts the run.

    Raises:
        ConfigError: for another path than the network's, or a score that doesn't tell the velocity here.
    """
    named = drift.convention.path
    trained = (
        [("drift.convention.path", named, registry.build("path", named, "drift.convention.path"))] if named else []
    )
    if "path" in spec:
        trained.append(("drift.path", spec["path"], drift.path))
    for where, of, other in trained:
        differs = _differences(path, other)
        if differs:
            raise ConfigError(
                f"{where}: the network was trained on {of}, and the run's path {config.path} differs in "
                f"{', '.join(differs)}. Give the run the network's path, or correct the convention."
            )
    coupling: Coupling = registry.build("coupling", config.coupling)
    usual = registry.resolve("dataset", DEFAULTS["source"], "source")
    check_score(drift.convention, getattr(coupling, "independent", False), plain(config.source) == plain(usual))
