"""A run's configuration: one YAML file, validated whole before anything starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Annotated, Any, Literal, TypeVar

from pydantic import Field

from gftkit.adapters import Adapters
from gftkit.blocks import SHUFFLE_BUFFER
from gftkit.errors import ConfigError, unknown
from gftkit.files import parse_yaml, read_yaml
from gftkit.options import check_known, options_of
from gftkit.pairing import Within
from gftkit.registry import Registry, plain
from gftkit.sampling.scheme import resolve_scheme
from gftkit.tracking import TRACKERS, Tracker

Kind = Literal["pretrain", "finetune", "distill"]
Spec = dict[str, Any]
"""A component as a config writes it: ``{name: ..., **options}``."""

Count = Annotated[int, Field(gt=0)]
AnchorShare = Annotated[float, Field(gt=0, le=1)] | Literal["retention"]
Precision = Literal["float32", "bfloat16", "float16"]
Section = TypeVar("Section")


@dataclass(frozen=True)
class Train:
    """How to train.

    Args:
        steps: optimiser steps.
        batch_size: pairs in a step, over all devices together.
        learning_rate: the peak learning rate.
        optimizer: a torch.optim optimiser by name, or {name: ..., **its options}.
        warmup: steps over which the learning rate rises linearly to its peak.
        decay: how the learning rate falls after the warm-up: not at all, or to 0 at the last step.
        clip: the largest gradient norm; null for none.
        ema: decay of the exponential moving average of the weights; null for 1 - 10/steps within [0.9, 0.9999].
        pairing_batch: samples that the coupling pairs at once, a multiple of batch_size; null for batch_size.
        pairing: of several processes, pair over the batch of all of them, or within each one's share of it.
        workers: processes that read and pair ahead of the loop; null for 2 with a GPU, 0 without.
        accumulate: parts that a batch is evaluated in, one after another, to save memory.
        precision: of the networks' activations; weights, states and losses are always float32.
        gradient_checkpointing: keep no activations inside the network's blocks and compute them again for the gradient.
        channels_last: keep images and convolutions with the channel as the innermost dimension.
        compile: compile drift and anchor together by torch.compile.
        shuffle_buffer: samples that are shuffled together where the data are read block by block, such as shards.
        checkpoint_every: steps between checkpoints; null for a tenth of the run.
        keep_checkpoints: how many checkpoints stay.
        log_every: steps between lines of metrics.jsonl.
        condition_dropout: probability that a sample's conditions are left out in a step, for guidance at sampling.
    """

    steps: Count = 3000
    batch_size: Count = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: str | dict[str, Any] = "adam"
    warmup: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    pairing_batch: Count | None = None
    pairing: Within = "global"
    workers: Annotated[int, Field(ge=0)] | None = None
    accumulate: Count = 1
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    shuffle_buffer: Count = SHUFFLE_BUFFER
    checkpoint_every: Count | None = None
    keep_checkpoints: Count = 2
    log_every: Count = 10
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Objective:
    """What is minimised.

    Args:
        form: "blended" (one target between data and anchor) or "penalty" (two terms; its gradient is 1 + beta larger).
        weight: w(t) >= 0, a formula in t.
        anchor_share: share of each batch on which the anchor is evaluated, in (0, 1], or "retention": rho, so that a
            cool run costs little more than a plain one. Below 1 the gradient stays unbiased and becomes noisier.
        l2_sp: alpha of L2-SP, which adds (alpha/2) |w - w_start|^2 over all weights w to the loss, so that they are
            pulled to the pretrained ones; 0 for none. For fine-tunes without adapters.
    """

    form: Literal["blended", "penalty"] = "blended"
    weight: str = "1"
    anchor_share: AnchorShare = 1.0
    l2_sp: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Evaluate:
    """How a run is measured.

    Args:
        data: held-out samples, {name: ...}; null measures against the training data.
        every: steps between evaluations; null for a twentieth of the run.
        averaged: measure the averaged weights at every evaluation too, and not only at the end.
        count: samples to make, and at most so many to compare with.
        metrics: metrics by name, or {name: ..., **options}.
        ends: more of them, which are measured before the first step and of the averaged weights at the end only.
        solver: {name: ..., steps: ..., **options}; null for euler, or euler-maruyama on a stochastic path. With
            ``grid: {name: ...}`` the times of its steps are placed, and with ``diffusion: {name: ...}`` a velocity's
            flow is sampled stochastically.
        guidance: scale of classifier-free guidance; 1 for none. It wants train.condition_dropout.
    """

    data: Spec | None = None
    every: Count | None = None
    averaged: bool = False
    count: Count = 1000
    metrics: list[str | dict[str, Any]] | None = None
    ends: list[str | dict[str, Any]] = field(default_factory=list)
    solver: Spec | None = None
    guidance: Annotated[float, Field(ge=0)] = 1.0


@dataclass(frozen=True)
class Config:
    """A resolved configuration: every default filled in, every path absolute.

    Args:
        kind: "pretrain" or "finetune".
        drift: the network.
        data: the samples to learn.
        source: what is transported to the data.
        path: the conditional path.
        coupling: which source sample goes with which data sample.
        train: how to train.
        evaluate: how the run is measured.
        monitors: measurements beside the run.
        seed: of everything random.
        pretrained: a run folder or weights file; fine-tuning only, and null where the drift brings its weights.
        schedule: the temperature; fine-tuning only.
        stop: a rule that may end the run before its last step; null for none.
        anchor: which pretrained drift is held on to; fine-tuning only.
        adapters: what is trained in the place of all weights; fine-tuning only.
        objective: what is minimised.
        track: trackers that are told what is logged.
    """

    kind: Kind
    drift: Spec
    data: Spec
    source: Spec
    path: Spec
    coupling: Spec
    train: Train
    evaluate: Evaluate
    monitors: list[Spec]
    seed: int
    pretrained: Path | None
    schedule: Spec | None
    objective: Objective
    track: list[Spec]
    anchor: Spec | None = None
    adapters: Adapters | None = None
    stop: Spec | None = None

    @property
    def start(self) -> Path | None:
        """Where the weights come from that a run starts from: a run folder or a file; None for new weights."""
        return self.pretrained or self.drift.get("weights")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as config.yaml holds them; what doesn't apply is left out."""
        values = {key: value for key, value in asdict(self).items() if key != "kind" and value is not None}
        return plain(values)


KEYS = (
    *("drift", "source", "path", "coupling", "data", "train", "evaluate", "monitors", "track", "seed", "objective"),
    "stop",
)
FINETUNE_KEYS = (*KEYS, "pretrained", "schedule", "anchor", "adapters")
DISTILL_KEYS = (*(key for key in KEYS if key not in ("monitors", "objective", "stop")), "pretrained")
JUMPS: Mapping[str, Any] = {"name": "flow-map", "steps": 2}
"""How a student is sampled where nobody says how."""
INHERITED = ("drift", "source", "path", "coupling")
DEFAULTS: Mapping[str, Spec] = {
    "source": {"name": "gaussian"},
    "path": {"name": "linear"},
    "coupling": {"name": "independent"},
}


def read(
    source: Path | str | Mapping[str, Any],
    kind: Kind,
    registry: Registry,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> tuple[Config, list[str]]:
    """A configuration from a YAML file or a mapping, resolved, with what the user should know.

    Args:
        source: the file, to whose folder relative paths refer; or a mapping.
        kind: what will be done with it.
        registry: the components it may name.
        overrides: settings as ``a.b=c``, which win over the file.
        folder: where the relative paths of a mapping start; by default in the working directory.

    Returns:
        The configuration and warnings, one sentence each.

    Raises:
        ConfigError: for a key that is missing or has no valid value.
        UnknownNameError: for an unknown key, component or option.
    """
    from gftkit import lineage
    from gftkit.run import Run, is_run

    if isinstance(source, Mapping):
        raw, base = dict(source), folder or Path.cwd()
    else:
        raw, base = read_yaml(Path(source)), Path(source).resolve().parent
    for setting in overrides:
        raw = override(raw, setting)
    known = {"finetune": FINETUNE_KEYS, "distill": DISTILL_KEYS}.get(kind, KEYS)
    tuning = [key for key in FINETUNE_KEYS if key not in KEYS and key in raw]
    if kind == "pretrain" and tuning:
        verb = "belongs" if len(tuning) == 1 else "belong"
        raise ConfigError(f"`{'` and `'.join(tuning)}` {verb} to a fine-tune: use `gft finetune`.")
    check_known(raw, known, "the configuration")

    inherited: dict[str, Any] = {}
    pretrained: Path | None = None
    if kind == "distill":
        pretrained, raw, inherited = _of_teacher(raw, base, registry)
    elif kind == "finetune":
        pretrained = lineage.found(raw.get("pretrained"), raw.get("drift"), "pretrained", base)
        if pretrained is not None and is_run(pretrained):
            parent = Run.open(pretrained, registry).config
            if parent.kind == "distill":
                raise ConfigError(
                    f"pretrained: {pretrained} is a distillation, whose flow map a fine-tune would spoil. Fine-tune "
                    f"the run that it was made from, {parent.pretrained}, and distil the new one."
                )
            inherited = {key: getattr(parent, key) for key in INHERITED}
            inherited["drift"] = without_weights(inherited["drift"])
        if "schedule" not in raw:
            raise ConfigError("schedule is missing: wanted e.g. `schedule: {name: exponential}`, or zero for none.")
    specs: dict[str, Spec] = {}
    for key in INHERITED:
        spec = raw.get(key, inherited.get(key, DEFAULTS.get(key)))
        if spec is None:
            raise ConfigError("drift is missing: wanted e.g. `drift: {name: mlp, width: 512}`.")
        if key in inherited and isinstance(spec, Mapping) and "name" not in spec:
            raise ConfigError(
                f"{key}: the pretrained run's {key} '{inherited[key]['name']}' is inherited whole, and single options "
                f"of it can't be changed, got {dict(spec)!r}. Leave `{key}` out, or give it whole, with its name."
            )
        specs[key] = registry.resolve("dataset" if key == "source" else key, spec, key, base)
    if "data" not in raw:
        raise ConfigError("data is missing: wanted e.g. `data: {name: digits}`.")
    adapters = section(Adapters, _spec(raw["adapters"]), "adapters") if raw.get("adapters") is not None else None
    train = section(Train, raw.get("train", {}), "train")
    train = _with_defaults(train)
    config = Config(
        kind=kind,
        **specs,
        data=registry.resolve("dataset", raw["data"], "data", base),
        train=train,
        evaluate=resolve_evaluate(raw.get("evaluate", {}), train, registry, base),
        monitors=[registry.resolve("monitor", m, f"monitors[{i}]", base) for i, m in _list(raw, "monitors")],
        seed=_seed(raw.get("seed", 0)),
        pretrained=pretrained,
        schedule=registry.resolve("schedule", raw["schedule"], "schedule", base) if kind == "finetune" else None,
        objective=section(Objective, raw.get("objective", {}), "objective"),
        anchor=lineage.resolve(raw.get("anchor"), pretrained, specs["drift"], adapters is not None, registry, base)
        if kind == "finetune"
        else _teacher(pretrained, inherited),
        track=_track(raw, base),
        adapters=adapters,
        stop=registry.resolve("stop", raw["stop"], "stop", base) if raw.get("stop") is not None else None,
    )
    _check_weight(config.objective.weight)
    _check_l2_sp(config)
    return _with_needed(config, registry, base), _warnings(config, inherited, registry)


def _with_needed(config: Config, registry: Registry, base: Path) -> Config:
    """The configuration with the monitors that its schedule and its stopping rule listen to."""
    from gftkit.feedback import needed

    there = [spec["name"] for spec in config.monitors]
    wanted = needed(config.schedule, config.stop, registry)
    for name in wanted:
        if there.count(name) > 1:
            raise ConfigError(f"monitors: '{name}' stands twice, and one of them is listened to. Keep that one.")
    missing = [name for name in wanted if name not in there]
    return replace(
        config, monitors=[*config.monitors, *(registry.resolve("monitor", m, "monitors", base) for m in missing)]
    )


def _of_teacher(raw: dict[str, Any], base: Path, registry: Registry) -> tuple[Path, dict[str, Any], dict[str, Any]]:
    """The run to distil, the configuration with what it leaves out taken from there, and that run's components."""
    from gftkit import flow, lineage
    from gftkit.run import Run, is_run

    found = lineage.found(raw.get("pretrained"), None, "pretrained", base)
    if found is None or not is_run(found):
        raise ConfigError(f"pretrained: wanted the folder of a finished run to distil, and {found} is a file.")
    run = Run.open(found, registry)
    if run.config.kind == "distill":
        raise ConfigError(f"pretrained: {found} is itself a distillation. Distil the run that it was made from.")
    if flow.is_stochastic(registry.build("path", run.config.path)):
        raise ConfigError(
            f"pretrained: the flow of {found} is an SDE, which carries a state to a law and not to a state: it has no "
            f"flow map. Distil a run on a path without noise."
        )
    inherited = {key: getattr(run.config, key) for key in INHERITED}
    inherited["drift"] = without_weights(inherited["drift"])
    usual = {key: value for key, value in asdict(run.config.evaluate).items() if key not in ("every", "guidance")}
    given = raw.get("evaluate", {})
    drift: Any = raw.get("drift", {"name": "flow-map"})
    if isinstance(drift, Mapping) and drift.get("name") in registry.names("drift"):
        wraps = "drift" in registry.component("drift", drift["name"]).options
        drift = {"drift": inherited["drift"], **drift} if wraps else drift
    changed = {
        **raw,
        "data": raw.get("data", run.config.data),
        "evaluate": {**usual, "solver": dict(JUMPS), **given} if isinstance(given, Mapping) else given,
        "drift": drift,
    }
    return found, changed, inherited


def _teacher(pretrained: Path | None, inherited: Mapping[str, Any]) -> Spec | None:
    """The anchor of a distillation; None for a pretraining."""
    if pretrained is None:
        return None
    return {"name": "external", "pretrained": pretrained, "drift": inherited["drift"]}


def without_weights(drift: Mapping[str, Any]) -> Spec:
    """The drift of a config, where its weights come from elsewhere: the file that it first started from isn't read."""
    return {**drift, "weights": None} if "weights" in drift else dict(drift)


def section(cls: type[Section], values: Any, where: str) -> Section:
    """A section of the config as its dataclass, with every value checked.

    Raises:
        ConfigError: for a value of the wrong type or out of range, or a key that is missing.
        UnknownNameError: for an unknown key, with the nearest.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: wanted a mapping, got {values!r}.")
    known = options_of(cls, where)
    check_known(values, known, where)
    for name, option in known.items():
        if option.required and name not in values:
            raise ConfigError(f"{where}: {name} is missing: {option.help} Wanted {option.type_text}.")
    return cls(**{key: known[key].validate(value, f"{where}.{key}") for key, value in values.items()})


def override(raw: dict[str, Any], setting: str) -> dict[str, Any]:
    """``raw`` with one ``a.b=c`` put in.

    Raises:
        ConfigError: where it isn't of that form, or a.b lies inside something that isn't a mapping.
    """
    path, equals, text = setting.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise ConfigError(f"--set {setting}: wanted a.b=c, e.g. --set train.steps=100.")
    return put(raw, path.strip(), parse_yaml(text, f"--set {setting}"), f"--set {setting}")


def put(raw: Mapping[str, Any], path: str, value: Any, where: str) -> dict[str, Any]:
    """``raw`` with a value at ``a.b``.

    Args:
        raw: a configuration as it is written.
        path: the keys that lead there, joined by dots.
        value: to put there.
        where: where that was said, for errors.

    Raises:
        ConfigError: where a.b lies inside something that isn't a mapping.
    """
    keys = path.split(".")
    changed = dict(raw)
    inner = changed
    for depth, key in enumerate(keys[:-1], 1):
        below = _spec(inner.get(key, {}))
        if not isinstance(below, Mapping):
            raise ConfigError(f"{where}: {'.'.join(keys[:depth])} is {below!r}, not a mapping.")
        inner[key] = inner = dict(below)
    inner[keys[-1]] = value
    return changed


def _with_defaults(train: Train) -> Train:
    """The section with what depends on other keys filled in."""
    pairing_batch = train.pairing_batch or train.batch_size
    if pairing_batch % train.batch_size:
        raise ConfigError(
            f"train.pairing_batch: wanted a multiple of batch_size ({train.batch_size}), got {pairing_batch}."
        )
    return replace(
        train,
        ema=min(max(1 - 10 / train.steps, 0.9), 0.9999) if train.ema is None else train.ema,
        pairing_batch=pairing_batch,
        checkpoint_every=train.checkpoint_every or max(1, train.steps // 10),
    )


def resolve_evaluate(raw: Any, train: Train, registry: Registry, base: Path) -> Evaluate:
    """The section ``evaluate`` with every component checked and every default filled in."""
    if isinstance(raw, Mapping):
        raw = {**raw, **{key: _spec(raw[key]) for key in ("data", "solver") if key in raw}}
    found = section(Evaluate, raw, "evaluate")

    def metrics(key: str, given: Iterable[Any]) -> list[Any]:
        return [registry.resolve("metric", m, f"evaluate.{key}[{i}]", base) for i, m in enumerate(given)]

    solver = found.solver
    if solver is not None:
        solver = resolve_scheme(solver, registry, "evaluate.solver", base)
    return replace(
        found,
        data=None if found.data is None else registry.resolve("dataset", found.data, "evaluate.data", base),
        every=found.every or max(1, train.steps // 20),
        metrics=metrics("metrics", ["energy"] if found.metrics is None else found.metrics),
        ends=metrics("ends", found.ends),
        solver=solver,
    )


def _track(raw: Mapping[str, Any], base: Path) -> list[Spec]:
    """The trackers, each with every option checked and filled in."""
    found: list[Spec] = []
    for index, given in _list(raw, "track"):
        where, spec = f"track[{index}]", _spec(given)
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise ConfigError(f"{where}: wanted the name of a tracker, or {{name: ...}} with options, got {given!r}.")
        name = spec["name"]
        if name not in TRACKERS:
            raise unknown(f"tracker at {where}:", name, TRACKERS)
        if name in [other["name"] for other in found]:
            raise ConfigError(f"{where}: '{name}' stands twice. Keep one of them.")
        options = asdict(tracker(spec, where))
        found.append({"name": name} | {key: base / v if isinstance(v, Path) else v for key, v in options.items()})
    return found


def tracker(spec: Mapping[str, Any], where: str) -> Tracker:
    """The options of a tracker from ``{name: ..., **options}``."""
    return section(TRACKERS[spec["name"]], {key: value for key, value in spec.items() if key != "name"}, where)


"""Solver steps where nobody says how many."""


def _spec(value: Any) -> Any:
    """A bare name stands for a component without options."""
    return {"name": value} if isinstance(value, str) else value


def _list(raw: Mapping[str, Any], key: str) -> list[tuple[int, Any]]:
    found = raw.get(key, [])
    if not isinstance(found, list):
        raise ConfigError(f"{key}: wanted a list, got {found!r}.")
    return list(enumerate(found))


def _seed(value: Any) -> int:
    if not (type(value) is int and 0 <= value < 2**63):
        raise ConfigError(f"seed: wanted int, >= 0, got {value!r}.")
    return value


def _check_weight(weight: str) -> None:
    if weight.strip() == "1":
        return
    import torch

    from gftkit import expression

    try:
        values = expression.function(expression.parse(weight))(torch.linspace(0.001, 0.999, 999, dtype=torch.float64))
    except ValueError as error:
        raise ConfigError(f"objective.weight: {error}") from None
    if not (torch.isfinite(values).all() and (values >= 0).all() and values.any()):
        raise ConfigError(
            f"objective.weight: '{weight}' must be finite and >= 0 for t in (0, 1), and not 0 everywhere."
        )


def _check_l2_sp(config: Config) -> None:
    """Refuse a pull to the pretrained weights where none are trained."""
    if config.objective.l2_sp == 0:
        return
    if config.kind != "finetune":
        raise ConfigError("objective.l2_sp: pulls a fine-tune to its pretrained weights. Leave it out here.")
    if config.adapters is not None:
        raise ConfigError(
            "objective.l2_sp: pulls all weights to the pretrained ones, and adapters leave those as they are. Leave "
            "one of the two out."
        )


def _warnings(config: Config, inherited: Mapping[str, Any], registry: Registry) -> list[str]:
    found = []
    for key, kind in (("coupling", "coupling"), ("source", "dataset")):
        if key not in inherited:
            continue
        before = registry.resolve(kind, inherited[key], key)  # with defaults of options that it has been given since
        if plain(before) != plain(getattr(config, key)):
            found.append(
                f"{key} '{getattr(config, key)['name']}' differs from the pretrained run's "
                f"'{inherited[key]['name']}': the anchor and the target then differ even where the data agree (T10)."
            )
    return found
