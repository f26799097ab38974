"""``gft inspect``: from a configuration to what was found out about its network, in words and as a block of YAML."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.experiment.building import build_source
from gftkit.inspection.hypotheses import Finding, estimate
from gftkit.inspection.ranking import BATCHES, FALSE_ALARM, Inspection, inspect
from gftkit.kernel.contracts import Estimate
from gftkit.kernel.contracts import Path as ConditionalPath
from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.options import check_known, plain
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.convention import PRESETS, Convention
from gftkit.networks.foreign import ForeignDrift
from gftkit.networks.foreign_weights import Candidate, fitting_in
from gftkit.networks.state import shortened
from gftkit.runs.overrides import override
from gftkit.runs.schema import DEFAULTS, FINETUNE_KEYS
from gftkit.storage.documents import read_yaml

SHOWN = 10
"""Hypotheses in the table."""

Rows = list[tuple[str, ...]]


def diagnose(
    config: Path | Mapping[str, Any] | None,
    registry: Registry,
    overrides: Sequence[str] = (),
    count: int = 2048,
    seed: int = 0,
    device: torch.device | str = "cpu",
    begin: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
    folder: Path | None = None,
) -> tuple[Inspection, dict[str, Any]]:
    """Inspect the network of a configuration.

    Args:
        config: a YAML file or a mapping, as of a fine-tune; it needs ``drift`` with weights and ``data``. Fields that
            its convention has are taken as known.
        registry: components.
        overrides: settings as ``a.b=c``.
        count: pairs to measure on.
        seed: of everything random.
        device: where the network is evaluated.
        begin: called with the number of steps to come.
        advance: called with the number of steps done.
        folder: where what was found is to be written; by default the configuration's.

    Returns:
        What was found, and the settings that it was found with: the drift without its convention, the path, the
        coupling and, if it is given, the source. Files are named as a configuration in ``folder`` names them.

    Raises:
        GftkitError: for bad input.
        InspectionError: where the network can't be called.
    """
    base = Path.cwd() if not isinstance(config, Path) else config.resolve().parent
    raw = dict(read_yaml(config)) if isinstance(config, Path) else dict(config or {})
    for setting in overrides:
        raw = override(raw, setting)
    check_known(raw, FINETUNE_KEYS, "the configuration")
    for key, example in (("drift", "{name: module, target: ..., weights: ...}"), ("data", "{name: arrays, file: ...}")):
        if not isinstance(raw.get(key), Mapping if key == "drift" else (Mapping, str)):
            raise ConfigError(f"{key} is missing: wanted `{key}: {example}`.")
    given = {"name": "module", **raw["drift"]}
    known = _known(given.get("convention"))
    given = {key: value for key, value in given.items() if key != "convention"}
    spec = registry.resolve("drift", {**given, "convention": {"preset": "gftkit"}}, "drift", base)
    chosen = {
        "path": raw.get("path", known.get("path") or DEFAULTS["path"]),
        "coupling": raw.get("coupling", DEFAULTS["coupling"]),
        "source": raw.get("source", DEFAULTS["source"]),
    }
    kinds = {"source": "dataset"}
    resolved = {key: registry.resolve(kinds.get(key, key), value, key, base) for key, value in chosen.items()}
    path_spec = resolved["path"]
    path: ConditionalPath = registry.build("path", path_spec)
    samples = Samples(registry.build("dataset", raw["data"], "data", base), "data")
    facts = Facts(samples.event_shape, samples.classes, samples.scaling.range, samples.condition_shapes)
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        network, found = _networks(spec, facts, path, registry)
    inspection = inspect(
        network,
        found,
        samples,
        facts,
        path,
        build_source(resolved["source"], facts.event_shape, registry),
        registry.build("coupling", resolved["coupling"]),
        {key: value for key, value in known.items() if key != "path"},
        plain(path_spec),
        count,
        seed,
        device,
        begin,
        advance,
    )
    folder = base if folder is None else folder.resolve()
    told = {key: value for key, value in chosen.items() if key != "source" or key in raw}
    settings = {key: _told(value, resolved[key], folder) for key, value in told.items()}
    return inspection, {"drift": _told(given, spec, folder), **settings}


def _told(given: Mapping[str, Any], resolved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A spec as it was given, with its files where they are: by name below a folder, or by their whole path.

    A place that is meant though it isn't given, such as that of a network's module, is told too.
    """
    found = dict(plain(given))
    for key, value in resolved.items():
        if isinstance(value, Path):
            whole = value.resolve()
            name = str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)
            if key in given or name != ".":
                found[key] = name
        elif isinstance(value, Mapping) and isinstance(given.get(key), Mapping):
            found[key] = _told(given[key], value, folder)
    return found


def _known(block: Any) -> dict[str, Any]:
    """The fields that a convention block fixes, those of its preset included."""
    if block is None:
        return {}
    if isinstance(block, str):
        block = {"preset": block}
    if not isinstance(block, Mapping):
        raise ConfigError(f"drift.convention: wanted a mapping, got {block!r}.")
    rest = {key: value for key, value in block.items() if key != "preset"}
    preset = block.get("preset")
    if preset is None:
        fields = rest
    elif preset in PRESETS:  # a preset means all its fields, the usual values of the others too
        fields = {**Convention.of(preset).to_dict(), **rest}
    else:
        raise unknown("preset of a convention:", preset, PRESETS)
    resolved = Convention.of(fields).to_dict()
    return {key: resolved[key] for key in fields}


def _networks(
    spec: Spec, facts: Facts, path: ConditionalPath, registry: Registry
) -> tuple[torch.nn.Module, list[Candidate]]:
    """The network as new, and the weights that it may have."""
    supplied: dict[str, Any] = {"event_shape": facts.event_shape, "classes": facts.classes, "path": path}
    fresh = registry.build("drift", {**spec, "weights": None}, **supplied)
    if not isinstance(fresh, ForeignDrift):
        raise ConfigError(
            f"drift: wanted {{name: module, ...}}, whose convention is open; '{spec['name']}' has its own."
        )
    weights = spec["weights"]
    if weights is None:
        raise ConfigError("drift.weights is missing: wanted a weights file to inspect, or a folder of diffusers.")
    if Path(weights).is_dir():
        loaded = registry.build("drift", spec, **supplied)
        return fresh.network, [Candidate("", loaded.network.state_dict())]
    return fresh.network, fitting_in(Path(weights), fresh.network.state_dict(), spec["key"])


def block(found: Finding, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an inspection, whose drift has the weights and the whole convention of a hypothesis."""
    drift = {key: value for key, value in settings["drift"].items() if key != "key"}
    convention = {k: v for k, v in found.hypothesis.convention.to_dict().items() if v is not None}
    return {**settings, "drift": {**drift, **_key(found), "convention": convention}}


def _key(found: Finding) -> dict[str, str]:
    """The option that chooses the weights of a hypothesis in their file."""
    return {"key": found.hypothesis.weights} if found.hypothesis.weights else {}


def as_yaml(values: Mapping[str, Any]) -> str:
    """A block of YAML."""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=110)


HEAD = ["weights", "call", "time", "predicts", "range", "denoising error", "flow matching loss", "slope"]


def rows(inspection: Inspection) -> Rows:
    """The table of hypotheses, the best first, then what needs no network."""
    shown = [_row(found) for found in inspection.findings[:SHOWN]]
    for name, value in sorted(inspection.baselines.items(), key=lambda item: item[1].value):
        shown.append((f"({name})", "", "", "", "", _number(value), "", ""))
    return shown


def _row(found: Finding) -> tuple[str, ...]:
    convention = found.hypothesis.convention
    time = "t" if convention.time == "forward" else "1 - t"
    if convention.time_scale != 1:
        time = f"{convention.time_scale:g} {time if time == 't' else f'({time})'}"
    low, high = convention.range
    span = "" if (low, high) == (-1, 1) else f"[{low:g}, {high:g}]{' of the state' * (convention.rescales == 'state')}"
    return (
        found.hypothesis.weights or "(the file's)",
        convention.call,
        time,
        ("-" if convention.sign < 0 else "") + convention.predicts,
        span,
        _number(estimate(found.denoising)),
        _number(estimate(found.loss)),
        _number(found.slope),
    )


def _number(found: Estimate) -> str:
    return f"{found.value:.4g} ± {found.stderr:.2g}"


def conclusion(inspection: Inspection, settings: Mapping[str, Any]) -> str:
    """The verdict in words, with the block or blocks to choose from."""
    test = (
        f"paired t-test of denoising errors over {BATCHES} batches, {inspection.samples} pairs, false-alarm rate "
        f"{FALSE_ALARM:g}"
    )
    if inspection.verdict == "none":
        return (
            f"No hypothesis fits: the best has a denoising error of {inspection.best.score:.4g}, which isn't clearly "
            f"better than what needs no trained network ({_baselines(inspection)}). The weights are untrained, of "
            f"other data, or of a convention that wasn't tried."
        )
    notes = "".join(f"\n# {note}" for note in inspection.notes)
    same = [f"{_word(each.weights)}{each.convention.differing()}" for each in inspection.best.same]
    notes += f"\n# The same function on these data:{shortened([f'# {line}' for line in same])}" if same else ""
    if inspection.verdict == "close call":
        listed = [inspection.best, *inspection.rivals]
        lines = "".join(f"\n{number}. {_in_short(found)}" for number, found in enumerate(listed, 1))
        cure = (
            "Measure on more pairs (--count), or fix what you know by --set drift.convention.FIELD=VALUE or --set "
            "drift.key=KEY."
        )
        if all(found.hypothesis.convention == inspection.best.hypothesis.convention for found in listed):
            choices = " or ".join(f"`key: {found.hypothesis.weights}`" for found in listed)
            cure = (
                f"Only the weights are open, so one line under `drift` decides: {choices} (--set drift.key=KEY). More "
                f"pairs (--count) may tell them apart too."
            )
        return (
            f"Close call: these {len(listed)} hypotheses aren't told apart ({test}). Nothing was chosen. {cure}"
            f"{lines}{notes}"
        )
    found = as_yaml(block(inspection.best, settings))
    return f"Told from every other hypothesis by a {test}:\n\n{found}{notes}".rstrip()


def _in_short(found: Finding) -> str:
    """What sets a hypothesis apart, on one line of YAML."""
    values = {**_key(found), "convention": found.hypothesis.convention.differing()}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=math.inf).strip()


def _word(weights: str) -> str:
    return f"{weights}: " if weights else ""


def _baselines(inspection: Inspection) -> str:
    ordered = sorted(inspection.baselines.items(), key=lambda item: item[1].value)
    return ", ".join(f"{name}: {value.value:.4g}" for name, value in ordered)
