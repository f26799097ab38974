"""A configuration from a file or a mapping: every default filled in, validated whole before anything starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any, NamedTuple

from gftkit.kernel.contracts import Schedule, StoppingRule
from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.options import check_known, plain
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.adapters import Adapters
from gftkit.recording.trackers import TRACKERS, Tracker
from gftkit.runs import lineage
from gftkit.runs.folder import RunFolder
from gftkit.runs.inheritance import Inheritance, inheritance_of, resolve_inherited, teacher_spec
from gftkit.runs.overrides import as_spec, override
from gftkit.runs.schema import (
    DISTILL_KEYS,
    FINETUNE_KEYS,
    KEYS,
    Config,
    Evaluate,
    Objective,
    RunKind,
    Train,
)
from gftkit.sampling.scheme import resolve_scheme
from gftkit.storage.documents import parse_section, read_yaml
from gftkit.theory import flow
from gftkit.theory.weight import check_weight


class Resolution(NamedTuple):
    """A configuration with everything filled in, and the run and components that were needed to fill it in.

    Attributes:
        config: every default filled in, every path absolute.
        warnings: one sentence each.
        parent: the pretrained run that the configuration starts from, if it does.
        schedule: the component, built once: its `needs` add monitors to the configuration.
        stop: the stopping rule, also built once.
    """

    config: Config
    warnings: list[str]
    parent: RunFolder | None
    schedule: Schedule | None
    stop: StoppingRule | None


def resolve_config(
    source: Path | str | Mapping[str, Any],
    kind: RunKind,
    registry: Registry,
    overrides: Sequence[str] = (),
    folder: Path | None = None,
) -> Resolution:
    """Resolve a configuration from a YAML file or a mapping.

    Args:
        source: the file, to whose folder relative paths refer; or a mapping.
        kind: "pretrain", "finetune" or "distill".
        registry: the components it may name.
        overrides: settings as ``a.b=c``, which win over the file.
        folder: where the relative paths of a mapping start; by default the working directory.

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
    raw, inherited = inheritance_of(raw, kind, registry, base)
    config = _resolve_sections(raw, kind, inherited, registry, base)
    if config.objective.weight.strip() != "1":  # the path is built for its t_end
        check_weight(config.objective.weight, flow.t_end(registry.build("path", config.path)))
    _check_l2_sp(config)
    schedule: Schedule | None = None if config.schedule is None else registry.build("schedule", config.schedule)
    stop: StoppingRule | None = None if config.stop is None else registry.build("stop", config.stop)
    config = _with_needed(config, (schedule, stop), registry, base)
    return Resolution(config, _warnings(config, inherited.specs), inherited.parent, schedule, stop)


def _resolve_sections(
    raw: Mapping[str, Any], kind: RunKind, inherited: Inheritance, registry: Registry, base: Path
) -> Config:
    """Every section and component of a configuration, each by itself."""
    specs = resolve_inherited(raw, inherited.specs, registry, base)
    if "data" not in raw:
        raise ConfigError("data is missing: wanted e.g. `data: {name: digits}`.")
    adapters = (
        parse_section(Adapters, as_spec(raw["adapters"]), "adapters") if raw.get("adapters") is not None else None
    )
    train = _with_defaults(parse_section(Train, raw.get("train", {}), "train"))
    finetune = kind == "finetune"
    if finetune:
        anchor: Spec | None = lineage.resolve_anchor(
            raw.get("anchor"),
            inherited.pretrained,
            drift=specs["drift"],
            adapted=adapters is not None,
            registry=registry,
            base=base,
        )
    else:
        anchor = teacher_spec(inherited)
    return Config(
        kind=kind,
        **specs,
        data=registry.resolve("dataset", raw["data"], "data", base),
        train=train,
        evaluate=resolve_evaluate(raw.get("evaluate", {}), train, registry, base),
        monitors=[registry.resolve("monitor", m, f"monitors[{i}]", base) for i, m in _list(raw, "monitors")],
        seed=_seed(raw.get("seed", 0)),
        pretrained=inherited.pretrained,
        schedule=registry.resolve("schedule", raw["schedule"], "schedule", base) if finetune else None,
        objective=resolve_objective(raw.get("objective", {}), registry, base),
        anchor=anchor,
        track=_resolve_trackers(raw, base),
        adapters=adapters,
        stop=registry.resolve("stop", raw["stop"], "stop", base) if raw.get("stop") is not None else None,
    )


def _check_keys(raw: Mapping[str, Any], kind: RunKind) -> None:
    """Refuse keys that this kind of run doesn't have."""
    known = {"finetune": FINETUNE_KEYS, "distill": DISTILL_KEYS}.get(kind, KEYS)
    tuning = [key for key in FINETUNE_KEYS if key not in KEYS and key in raw]
    if kind == "pretrain" and tuning:
        verb = "belongs" if len(tuning) == 1 else "belong"
        raise ConfigError(f"`{'` and `'.join(tuning)}` {verb} to a fine-tune: use `gft finetune`.")
    check_known(raw, known, "the configuration")


def _with_needed(config: Config, listeners: Iterable[object], registry: Registry, base: Path) -> Config:
    """The configuration, with the monitors added that its schedule and its stopping rule listen to."""
    # Into the configuration, and so into config.yaml: a resumed run, and a verdict, build the same monitors.
    present = [spec["name"] for spec in config.monitors]
    needed = list(dict.fromkeys(name for listener in listeners for name in getattr(listener, "needs", ())))
    for name in needed:
        if present.count(name) > 1:
            raise ConfigError(
                f"monitors: '{name}' occurs twice, and the schedule or stopping rule listens to one. Remove one."
            )
    missing = [name for name in needed if name not in present]
    return replace(
        config, monitors=[*config.monitors, *(registry.resolve("monitor", m, "monitors", base) for m in missing)]
    )


def _with_defaults(train: Train) -> Train:
    """The section, with the defaults filled in that depend on other keys."""
    pairing_batch = train.pairing_batch or train.batch_size
    if pairing_batch % train.batch_size:
        raise ConfigError(
            f"train.pairing_batch: wanted a multiple of batch_size ({train.batch_size}), got {pairing_batch}."
        )
    return replace(
        train,
        # An average over about the last tenth of a run.
        ema=min(max(1 - 10 / train.steps, 0.9), 0.9999) if train.ema is None else train.ema,
        pairing_batch=pairing_batch,
        checkpoint_every=train.checkpoint_every or max(1, train.steps // 10),
    )


def resolve_evaluate(raw: Any, train: Train, registry: Registry, base: Path) -> Evaluate:
    """The section ``evaluate`` with every component checked and every default filled in."""
    if isinstance(raw, Mapping):
        raw = {**raw, **{key: as_spec(raw[key]) for key in ("data", "solver") if key in raw}}
    evaluate = parse_section(Evaluate, raw, "evaluate")

    def metrics(key: str, specs: Iterable[Any]) -> list[Any]:
        return [registry.resolve("metric", m, f"evaluate.{key}[{i}]", base) for i, m in enumerate(specs)]

    solver = evaluate.solver
    if solver is not None:
        solver = resolve_scheme(solver, registry, "evaluate.solver", base)
    return replace(
        evaluate,
        data=None if evaluate.data is None else registry.resolve("dataset", evaluate.data, "evaluate.data", base),
        every=evaluate.every or max(1, train.steps // 20),
        metrics=metrics("metrics", ["energy"] if evaluate.metrics is None else evaluate.metrics),
        ends=metrics("ends", evaluate.ends),
        solver=solver,
    )


def resolve_objective(raw: Any, registry: Registry, base: Path) -> Objective:
    """The section ``objective`` with its law of t checked and its options filled in."""
    if isinstance(raw, Mapping) and "time" in raw:
        raw = {**raw, "time": as_spec(raw["time"])}
    objective = parse_section(Objective, raw, "objective")
    return replace(objective, time=registry.resolve("time", objective.time, "objective.time", base))


def _resolve_trackers(raw: Mapping[str, Any], base: Path) -> list[Spec]:
    """The trackers, each with every option checked and filled in."""
    trackers: list[Spec] = []
    for index, written in _list(raw, "track"):
        where, spec = f"track[{index}]", as_spec(written)
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise ConfigError(f"{where}: wanted the name of a tracker, or {{name: ...}} with options, got {written!r}.")
        name = spec["name"]
        if name not in TRACKERS:
            raise unknown(f"tracker at {where}:", name, TRACKERS)
        if name in [other["name"] for other in trackers]:
            raise ConfigError(f"{where}: '{name}' occurs twice. Remove one of them.")
        options = asdict(tracker_options(spec, where))
        trackers.append({"name": name} | {key: base / v if isinstance(v, Path) else v for key, v in options.items()})
    return trackers


def tracker_options(spec: Mapping[str, Any], where: str) -> Tracker:
    """The options of a tracker from ``{name: ..., **options}``."""
    return parse_section(TRACKERS[spec["name"]], {key: value for key, value in spec.items() if key != "name"}, where)


def _list(raw: Mapping[str, Any], key: str) -> list[tuple[int, Any]]:
    values = raw.get(key, [])
    if not isinstance(values, list):
        raise ConfigError(f"{key}: wanted a list, got {values!r}.")
    return list(enumerate(values))


def _seed(value: Any) -> int:
    if not (type(value) is int and 0 <= value < 2**63):
        raise ConfigError(f"seed: wanted int, >= 0, got {value!r}.")
    return value


def _check_l2_sp(config: Config) -> None:
    """Refuse a pull towards the pretrained weights where they aren't trained."""
    if config.objective.l2_sp == 0:
        return
    if config.kind != "finetune":
        raise ConfigError(
            "objective.l2_sp: only a fine-tune has pretrained weights to be pulled towards. Leave it out."
        )
    if config.adapters is not None:
        raise ConfigError(
            "objective.l2_sp: pulls all weights towards the pretrained ones, which adapters leave unchanged. Leave "
            "`objective.l2_sp` or `adapters` out."
        )


def _warnings(config: Config, inherited: Mapping[str, Spec]) -> list[str]:
    warnings = []
    for key in ("coupling", "source"):
        if key not in inherited:
            continue
        if plain(inherited[key]) != plain(getattr(config, key)):
            warnings.append(
                f"{key} '{getattr(config, key)['name']}' differs from the pretrained run's "
                f"'{inherited[key]['name']}': the anchor and the target then differ even where the data agree (T10)."
            )
    return warnings
