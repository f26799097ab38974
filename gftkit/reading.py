"""A configuration from a file or a mapping: every default filled in, validated whole before anything starts."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

from gftkit.adapters import Adapters
from gftkit.config import (
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
    Spec,
    Train,
    section,
    without_weights,
)
from gftkit.errors import ConfigError, unknown
from gftkit.files import parse_yaml, read_yaml
from gftkit.options import check_known
from gftkit.registry import Registry, plain
from gftkit.sampling.scheme import resolve_scheme
from gftkit.tracking import TRACKERS, Tracker


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
