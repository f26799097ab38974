"""A configuration from a file or a mapping: every default filled in, validated whole before anything starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

import torch

from gftkit.kernel.contracts import Schedule, StoppingRule
from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.options import check_known, plain
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.adapters import Adapters
from gftkit.recording.trackers import TRACKERS, Tracker
from gftkit.runs import lineage
from gftkit.runs.folder import RunFolder, is_run
from gftkit.runs.overrides import named, override
from gftkit.runs.schema import (
    DEFAULTS,
    DISTILL_KEYS,
    FINETUNE_KEYS,
    INHERITED,
    JUMPS,
    KEYS,
    Config,
    Evaluate,
    Kind,
    Objective,
    Train,
)
from gftkit.sampling.scheme import resolve_scheme
from gftkit.storage.documents import parse_section, read_yaml
from gftkit.theory import flow


class Resolution(NamedTuple):
    """A configuration with everything filled in, and what was opened and built to know that.

    Attributes:
        config: every default filled in, every path absolute.
        warnings: one sentence each.
        parent: the pretrained run that the configuration starts from, if it does.
        schedule: the component, built once: its `needs` add monitors to the configuration.
        stop: the stopping rule, likewise.
    """

    config: Config
    warnings: list[str]
    parent: RunFolder | None
    schedule: Schedule | None
    stop: StoppingRule | None


def resolve_config(
    source: Path | str | Mapping[str, Any],
    kind: Kind,
    registry: Registry,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> Resolution:
    """Resolve a configuration from a YAML file or a mapping.

    Args:
        source: the file, to whose folder relative paths refer; or a mapping.
        kind: what will be done with it.
        registry: the components it may name.
        overrides: settings as ``a.b=c``, which win over the file.
        folder: where the relative paths of a mapping start; by default in the working directory.

    Raises:
        ConfigError: for a key that is missing or has no valid value.
        UnknownNameError: for an unknown key, component or option.
    """
    if isinstance(source, Mapping):
        raw, base = dict(source), folder or Path.cwd()
    else:
        raw, base = read_yaml(Path(source)), Path(source).resolve().parent
    for setting in overrides:
        raw = override(raw, setting)
    _check_keys(raw, kind)
    raw, start = _start_of(raw, kind, registry, base)
    specs = _inherited_specs(raw, start.specs, registry, base)
    if "data" not in raw:
        raise ConfigError("data is missing: wanted e.g. `data: {name: digits}`.")
    adapters = parse_section(Adapters, named(raw["adapters"]), "adapters") if raw.get("adapters") is not None else None
    train = _with_defaults(parse_section(Train, raw.get("train", {}), "train"))
    finetune = kind == "finetune"
    config = Config(
        kind=kind,
        **specs,
        data=registry.resolve("dataset", raw["data"], "data", base),
        train=train,
        evaluate=resolve_evaluate(raw.get("evaluate", {}), train, registry, base),
        monitors=[registry.resolve("monitor", m, f"monitors[{i}]", base) for i, m in _list(raw, "monitors")],
        seed=_seed(raw.get("seed", 0)),
        pretrained=start.pretrained,
        schedule=registry.resolve("schedule", raw["schedule"], "schedule", base) if finetune else None,
        objective=parse_section(Objective, raw.get("objective", {}), "objective"),
        anchor=lineage.resolve_anchor(
            raw.get("anchor"),
            start.pretrained,
            drift=specs["drift"],
            adapted=adapters is not None,
            registry=registry,
            base=base,
        )
        if finetune
        else _teacher(start),
        track=_track(raw, base),
        adapters=adapters,
        stop=registry.resolve("stop", raw["stop"], "stop", base) if raw.get("stop") is not None else None,
    )
    _check_weight(config.objective.weight)
    _check_l2_sp(config)
    schedule: Schedule | None = None if config.schedule is None else registry.build("schedule", config.schedule)
    stop: StoppingRule | None = None if config.stop is None else registry.build("stop", config.stop)
    config = _with_needed(config, (schedule, stop), registry, base)
    return Resolution(config, _warnings(config, start.specs), start.parent, schedule, stop)


class _Start(NamedTuple):
    """What a configuration starts from.

    Attributes:
        pretrained: a run folder or weights file; None for new weights.
        parent: the run in that folder, where it is one.
        specs: the components that are inherited from there.
    """

    pretrained: Path | None = None
    parent: RunFolder | None = None
    specs: Mapping[str, Spec] = MappingProxyType({})


def _check_keys(raw: Mapping[str, Any], kind: Kind) -> None:
    """Refuse keys that this kind of run doesn't have."""
    known = {"finetune": FINETUNE_KEYS, "distill": DISTILL_KEYS}.get(kind, KEYS)
    tuning = [key for key in FINETUNE_KEYS if key not in KEYS and key in raw]
    if kind == "pretrain" and tuning:
        verb = "belongs" if len(tuning) == 1 else "belong"
        raise ConfigError(f"`{'` and `'.join(tuning)}` {verb} to a fine-tune: use `gft finetune`.")
    check_known(raw, known, "the configuration")


def _start_of(raw: dict[str, Any], kind: Kind, registry: Registry, base: Path) -> tuple[dict[str, Any], _Start]:
    """The configuration with what a distillation leaves out filled in, and what it starts from."""
    if kind == "distill":
        return _from_teacher(raw, base, registry)
    if kind == "pretrain":
        return raw, _Start()
    pretrained = lineage.find_start(raw.get("pretrained"), raw.get("drift"), "pretrained", base)
    start = _Start(pretrained)
    if pretrained is not None and is_run(pretrained):
        parent = RunFolder.open(pretrained, registry)
        if parent.config.kind == "distill":
            raise ConfigError(
                f"pretrained: {pretrained} is a distillation, whose flow map a fine-tune would spoil. Fine-tune "
                f"the run that it was made from, {parent.config.pretrained}, and distil the new one."
            )
        start = _Start(pretrained, parent, _specs_of(parent))
    if "schedule" not in raw:
        raise ConfigError("schedule is missing: wanted e.g. `schedule: {name: exponential}`, or zero for none.")
    return raw, start


def _specs_of(parent: RunFolder) -> dict[str, Spec]:
    """The components that a fine-tune or distillation inherits from its pretrained run."""
    return {key: parent.spec(key) for key in INHERITED}


def _inherited_specs(
    raw: Mapping[str, Any], inherited: Mapping[str, Spec], registry: Registry, base: Path
) -> dict[str, Spec]:
    """The resolved specs of drift, source, path and coupling: the configuration's, the parent's, or the default."""
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
        kind = "dataset" if key == "source" else key
        specs[key] = registry.resolve(kind, spec, key, base)
    return specs


def _with_needed(config: Config, listeners: Iterable[object], registry: Registry, base: Path) -> Config:
    """The configuration with the monitors that its schedule and its stopping rule listen to."""
    present = [spec["name"] for spec in config.monitors]
    needed = list(dict.fromkeys(name for listener in listeners for name in getattr(listener, "needs", ())))
    for name in needed:
        if present.count(name) > 1:
            raise ConfigError(f"monitors: '{name}' stands twice, and one of them is listened to. Keep that one.")
    missing = [name for name in needed if name not in present]
    return replace(
        config, monitors=[*config.monitors, *(registry.resolve("monitor", m, "monitors", base) for m in missing)]
    )


def _from_teacher(raw: dict[str, Any], base: Path, registry: Registry) -> tuple[dict[str, Any], _Start]:
    """The configuration of a distillation with what it leaves out taken from its teacher, and the teacher."""
    place = lineage.find_start(raw.get("pretrained"), None, "pretrained", base)
    if place is None or not is_run(place):
        raise ConfigError(f"pretrained: wanted the folder of a finished run to distil, and {place} is a file.")
    teacher = RunFolder.open(place, registry)
    if teacher.config.kind == "distill":
        raise ConfigError(f"pretrained: {place} is itself a distillation. Distil the run that it was made from.")
    if flow.is_stochastic(teacher.path):
        raise ConfigError(
            f"pretrained: the flow of {place} is an SDE, which carries a state to a law and not to a state: it has no "
            f"flow map. Distil a run on a path without noise."
        )
    specs = _specs_of(teacher)
    evaluate = raw.get("evaluate", {})
    if isinstance(evaluate, Mapping):
        left_out = ("every", "guidance")
        inherited = {key: value for key, value in asdict(teacher.config.evaluate).items() if key not in left_out}
        evaluate = {**inherited, "solver": dict(JUMPS), **evaluate}
    drift: Any = raw.get("drift", {"name": "flow-map"})
    if isinstance(drift, Mapping) and drift.get("name") in registry.names("drift"):
        wraps = "drift" in registry.component("drift", drift["name"]).options
        drift = {"drift": specs["drift"], **drift} if wraps else drift
    completed = {**raw, "data": raw.get("data", teacher.config.data), "evaluate": evaluate, "drift": drift}
    return completed, _Start(place, teacher, specs)


def _teacher(start: _Start) -> Spec | None:
    """The anchor of a distillation; None for a pretraining."""
    if start.pretrained is None:
        return None
    return {"name": "external", "pretrained": start.pretrained, "drift": start.specs["drift"]}


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
        raw = {**raw, **{key: named(raw[key]) for key in ("data", "solver") if key in raw}}
    found = parse_section(Evaluate, raw, "evaluate")

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
        where, spec = f"track[{index}]", named(given)
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
    return parse_section(TRACKERS[spec["name"]], {key: value for key, value in spec.items() if key != "name"}, where)


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
    from gftkit.theory import expression  # loads sympy, which few runs need

    try:
        values = expression.compile_formula(expression.parse_formula(weight))(
            torch.linspace(0.001, 0.999, 999, dtype=torch.float64)
        )
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


def _warnings(config: Config, inherited: Mapping[str, Spec]) -> list[str]:
    found = []
    for key in ("coupling", "source"):
        if key not in inherited:
            continue
        if plain(inherited[key]) != plain(getattr(config, key)):
            found.append(
                f"{key} '{getattr(config, key)['name']}' differs from the pretrained run's "
                f"'{inherited[key]['name']}': the anchor and the target then differ even where the data agree (T10)."
            )
    return found
