"""``gft inspect``: from a configuration to the convention of its network, in words and as a block of YAML."""

import math
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
import yaml

from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.experiment.building import build_source
from gftkit.inspection.hypotheses import Finding
from gftkit.inspection.hypotheses import estimate as batch_estimate
from gftkit.inspection.ranking import BATCHES, FALSE_ALARM, Inspection, inspect
from gftkit.kernel.contracts import Estimate, TransportMap
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
    *,
    seed: int = 0,
    device: torch.device | str = "cpu",
    begin: Callable[[int], None] = lambda _: None,
    advance: Callable[[int], None] = lambda _: None,
    folder: Path | None = None,
) -> tuple[Inspection, dict[str, Any]]:
    """Inspect the network of a configuration.

    Args:
        config: a YAML file or a mapping, with ``drift``, its weights, and ``data``. Fields of its convention are known.
        registry: components.
        overrides: settings as ``a.b=c``.
        count: pairs to measure on.
        seed: of everything random.
        device: where the network is evaluated.
        begin: called with the number of steps to come.
        advance: called with the number of steps done.
        folder: of the configuration that the returned components are for; by default that of ``config``.

    Returns:
        The inspection, and the inspected components, the drift without its convention.

    Raises:
        GftkitError: for bad input, and a network that can't be called.
    """
    base = config.resolve().parent if isinstance(config, Path) else Path.cwd()
    raw = _read(config, overrides)
    known = _known_fields(raw["drift"].pop("convention", None), base)
    written = {"drift": raw["drift"], **_components(raw, known.pop("path", None))}
    resolved = _resolve(written, registry, base)
    path: ConditionalPath = registry.build("path", resolved["path"])
    coupling = registry.build("coupling", resolved["coupling"])
    if isinstance(coupling, TransportMap):
        raise ConfigError(
            f"coupling: '{resolved['coupling']['name']}' is fitted before a run, which gft inspect doesn't. Inspect "
            f"with `--set coupling.name=independent`, or optimal-transport."
        )
    samples = Samples(registry.build("dataset", raw["data"], "data", base), "data")
    facts = Facts(samples.event_shape, samples.classes, samples.scaling.range, samples.condition_shapes)
    network, candidates = _networks(resolved["drift"], facts, path, registry, seed)
    inspection = inspect(
        network,
        candidates,
        samples,
        facts,
        path=path,
        source=build_source(resolved["source"], facts.event_shape, registry),
        coupling=coupling,
        fixed=known,
        path_spec=plain(resolved["path"]),
        count=count,
        seed=seed,
        device=device,
        begin=begin,
        advance=advance,
    )
    folder = (folder or base).resolve()
    return inspection, {
        key: _relocated(spec, resolved[key], folder) for key, spec in written.items() if key != "source" or key in raw
    }


def _components(raw: Mapping[str, Any], known_path: Any) -> dict[str, Any]:
    """Path, coupling and source of a configuration, by default those of a fine-tune, or the convention's path."""
    specs = {
        "path": raw.get("path", known_path or DEFAULTS["path"]),
        "coupling": raw.get("coupling", DEFAULTS["coupling"]),
        "source": raw.get("source", DEFAULTS["source"]),
    }
    return {key: {"name": spec} if isinstance(spec, str) else spec for key, spec in specs.items()}


def _resolve(written: Mapping[str, Any], registry: Registry, base: Path) -> dict[str, Spec]:
    """The resolved specs; the drift's has a neutral convention in place of the unknown one."""
    specs = {**written, "drift": {**written["drift"], "convention": {"preset": "gftkit"}}}
    return {
        key: registry.resolve("dataset" if key == "source" else key, spec, key, base) for key, spec in specs.items()
    }


def _read(config: Path | Mapping[str, Any] | None, overrides: Sequence[str]) -> dict[str, Any]:
    """The configuration of an inspection, with a drift and data at least."""
    raw = dict(read_yaml(config)) if isinstance(config, Path) else dict(config or {})
    for setting in overrides:
        raw = override(raw, setting)
    check_known(raw, FINETUNE_KEYS, "the configuration")
    for key, example in (("drift", "{name: module, target: ..., weights: ...}"), ("data", "{name: arrays, file: ...}")):
        if not isinstance(raw.get(key), Mapping if key == "drift" else (Mapping, str)):
            raise ConfigError(f"{key} is missing: wanted `{key}: {example}`.")
    return {**raw, "drift": {"name": "module", **raw["drift"]}}


def _relocated(written: Mapping[str, Any], resolved: Mapping[str, Any], folder: Path) -> dict[str, Any]:
    """A spec as it was written, with its files as a configuration in a folder names them.

    A file below the folder is named relative to it, and others by their absolute path. A path that isn't written and
    that the component fills in, such as that of a network's module, is named too.
    """
    spec = dict(plain(written))
    for key, value in resolved.items():
        if isinstance(value, Path):
            whole = value.resolve()
            name = str(whole.relative_to(folder) if whole.is_relative_to(folder) else whole)
            if key in written or name != ".":
                spec[key] = name
        elif isinstance(value, Mapping) and isinstance(written.get(key), Mapping):
            spec[key] = _relocated(written[key], value, folder)
    return spec


def _known_fields(block: Any, base: Path) -> dict[str, Any]:
    """The fields that a convention block fixes, including those of its preset but the time's.

    Networks of one library differ in how they take their time, so a preset's direction and scale are tried like others.
    Files of constants and nulls are relative to ``base``.
    """
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
    elif preset in PRESETS:  # a preset fixes all other fields, also those with default values
        whole = Convention.of(preset).to_dict()
        fields = {**{key: value for key, value in whole.items() if key not in ("time", "time_scale")}, **rest}
    else:
        raise unknown("preset of a convention:", preset, PRESETS)
    resolved = Convention.of(fields).with_files(base).to_dict()
    return {key: resolved[key] for key in fields}


def _networks(
    spec: Spec, facts: Facts, path: ConditionalPath, registry: Registry, seed: int
) -> tuple[torch.nn.Module, list[Candidate]]:
    """The network with new weights, and its candidate weights."""
    supplied: dict[str, Any] = {"event_shape": facts.event_shape, "classes": facts.classes, "path": path}
    weights = spec["weights"]
    # The new weights are measured too, as the untrained network: they depend on the seed only.
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        fresh = registry.build("drift", {**spec, "weights": None}, **supplied)
        if not isinstance(fresh, ForeignDrift):
            raise ConfigError(
                f"drift: wanted {{name: module, ...}}, whose convention is unknown; '{spec['name']}' has a convention "
                f"of its own."
            )
        if weights is None:
            raise ConfigError("drift.weights is missing: wanted a weights file to inspect, or a folder of diffusers.")
        if Path(weights).is_dir():
            loaded = registry.build("drift", spec, **supplied)
            return fresh.network, [Candidate("", loaded.network.state_dict())]
    return fresh.network, fitting_in(Path(weights), fresh.network.state_dict(), spec["key"])


def block(finding: Finding, settings: Mapping[str, Any]) -> dict[str, Any]:
    """The settings of an inspection, with the weights and the whole convention of a hypothesis."""
    drift = {key: value for key, value in settings["drift"].items() if key != "key"}
    convention = {k: v for k, v in finding.hypothesis.convention.to_dict().items() if v is not None}
    return {**settings, "drift": {**drift, **_key(finding), "convention": convention}}


def _key(finding: Finding) -> dict[str, str]:
    """The option that selects the weights of a hypothesis in their file."""
    return {"key": finding.hypothesis.weights} if finding.hypothesis.weights else {}


def as_yaml(values: Mapping[str, Any]) -> str:
    """A block of YAML."""
    return yaml.safe_dump(dict(values), sort_keys=False, default_flow_style=None, width=110)


HEAD = ["weights", "call", "time", "predicts", "range", "denoising error", "flow matching loss", "slope"]


def rows(inspection: Inspection) -> Rows:
    """The table of hypotheses, the best first, then the baselines."""
    table = [_row(finding) for finding in inspection.findings[:SHOWN]]
    for name, value in sorted(inspection.baselines.items(), key=lambda item: item[1].value):
        table.append((f"({name})", "", "", "", "", _number(value), "", ""))
    return table


def _row(finding: Finding) -> tuple[str, ...]:
    convention = finding.hypothesis.convention
    time = "t" if convention.time == "forward" else "1 - t"
    if convention.time_scale != 1:
        time = f"{convention.time_scale:g} {time if time == 't' else f'({time})'}"
    low, high = convention.range
    span = "" if (low, high) == (-1, 1) else f"[{low:g}, {high:g}]{' of the state' * (convention.rescales == 'state')}"
    return (
        finding.hypothesis.weights or "(the file's)",
        convention.call,
        time,
        ("-" if convention.sign < 0 else "") + convention.predicts,
        span,
        _number(batch_estimate(finding.denoising)),
        _number(batch_estimate(finding.loss)),
        _number(finding.slope),
    )


def _number(estimate: Estimate) -> str:
    return f"{estimate.value:.4g} ± {estimate.stderr:.2g}"


def conclusion(inspection: Inspection, settings: Mapping[str, Any]) -> str:
    """The verdict in words, with the block or blocks to choose from."""
    test = (
        f"paired t-test of denoising errors over {BATCHES} batches, {inspection.samples} pairs, false-alarm rate "
        f"{FALSE_ALARM:g}"
    )
    if inspection.verdict == "none":
        return (
            f"No hypothesis fits: the lowest denoising error, {inspection.best.score:.4g}, isn't clearly below the "
            f"baselines, which need no trained network ({_baselines(inspection)}). The weights are untrained, belong "
            f"to other data, or use a convention that wasn't tried.{''.join(f' {note}' for note in inspection.notes)}"
        )
    notes = "".join(f"\n# {note}" for note in inspection.notes)
    same = [f"{_word(each.weights)}{each.convention.differing()}" for each in inspection.best.same]
    notes += f"\n# The same function on these data:{shortened([f'# {line}' for line in same])}" if same else ""
    if inspection.verdict == "close call":
        listed = [inspection.best, *inspection.rivals]
        lines = "".join(f"\n{number}. {_brief(finding)}" for number, finding in enumerate(listed, 1))
        cure = (
            "Measure on more pairs (--count), or fix what is known by --set drift.convention.FIELD=VALUE or --set "
            "drift.key=KEY."
        )
        if all(finding.hypothesis.convention == inspection.best.hypothesis.convention for finding in listed):
            choices = " or ".join(f"`key: {finding.hypothesis.weights}`" for finding in listed)
            cure = (
                f"They differ in the weights only, so one line under `drift` decides: {choices} (--set drift.key=KEY). "
                f"More pairs (--count) may decide too."
            )
        return (
            f"Close call: the differences between these {len(listed)} hypotheses aren't significant ({test}), so none "
            f"is chosen. {cure}{lines}{notes}"
        )
    best = as_yaml(block(inspection.best, settings))
    if len(inspection.findings) == 1:
        # Fields that aren't given have several hypotheses, so the time is given, and has alternatives.
        return (
            f"It fits. Every field is given, so only other directions and scales of time were measured. Leave out "
            f"those to be compared.\n\n{best}{notes}"
        ).rstrip()
    return f"Significantly better than every other hypothesis, by a {test}:\n\n{best}{notes}".rstrip()


def _brief(finding: Finding) -> str:
    """The distinguishing fields of a hypothesis, on one line of YAML."""
    values = {**_key(finding), "convention": finding.hypothesis.convention.differing()}
    return yaml.safe_dump(values, sort_keys=False, default_flow_style=True, width=math.inf).strip()


def _word(weights: str) -> str:
    return f"{weights}: " if weights else ""


def _baselines(inspection: Inspection) -> str:
    ordered = sorted(inspection.baselines.items(), key=lambda item: item[1].value)
    return ", ".join(f"{name}: {value.value:.4g}" for name, value in ordered)
