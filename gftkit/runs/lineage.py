"""The anchor of a fine-tune, as its configuration says, and the anchors of the fine-tunes before it."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from gftkit.data.description import Facts
from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.options import check_known, plain
from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import drift_hash, short_hash
from gftkit.runs.folder import MODEL, RunFolder, is_run
from gftkit.runs.schema import without_weights
from gftkit.storage.tensors import digest, read_notes, read_tensors

FROZEN, OFF, EXTERNAL = "frozen", "adapters-off", "external"
OPTIONS = {FROZEN: (), OFF: (), EXTERNAL: ("pretrained", "drift")}
"""The anchors that a configuration may name, and their options."""


def find_pretrained(value: Any, drift: Any, key: str, base: Path) -> Path | None:
    """A run folder or weights file that a configuration names; None where the drift brings weights of its own.

    Args:
        value: from the configuration.
        drift: the drift of the same configuration, as it is written there.
        key: of that value, for errors.
        base: where relative paths start.

    Raises:
        ConfigError: where there is none, or two.
    """
    own = drift.get("weights") if isinstance(drift, Mapping) else None
    if value is None and own is not None:
        return None
    if not isinstance(value, str):
        raise ConfigError(
            f"{key} is missing: wanted a run folder or a weights file to start from, or a drift with `weights`."
        )
    if own is not None:
        raise ConfigError(
            f"{key}: got {value}, and the drift has `weights: {own}` of its own: it can start from one of them only. "
            f"Leave the other out."
        )
    path = base / value
    if not is_run(path) and not path.is_file():
        raise ConfigError(
            f"{key}: {path} is neither a run folder nor a weights file (relative paths start at the config's folder)."
        )
    return path


def resolve_anchor(
    spec: Any,
    pretrained: Path | None,
    *,
    drift: Mapping[str, Any],
    adapted: bool,
    registry: Registry,
    base: Path,
) -> dict[str, Any]:
    """The spec of a fine-tune's anchor with every default filled in.

    Args:
        spec: from the configuration: a name, ``{name: ..., **options}``, or None.
        pretrained: where the fine-tune starts; None where its drift brings the weights.
        drift: the resolved spec of the fine-tune's own drift.
        adapted: whether adapters are trained.
        registry: components, for the ``drift`` of an external anchor.
        base: where relative paths start.

    Raises:
        ConfigError: for a missing anchor that could be either of two drifts, or an option without a valid value.
        UnknownNameError: for an unknown anchor or option.
    """
    # The default is clear only for the first fine-tune of a chain: later it could be the original drift or the start.
    if spec is None:
        if pretrained is not None and anchor_hashes(pretrained):
            raise ConfigError(_ambiguity(pretrained, drift, adapted=adapted, registry=registry))
        spec = OFF if adapted else FROZEN
    named = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(named, Mapping) or not isinstance(named.get("name"), str):
        raise ConfigError(f"anchor: wanted {{name: ...}} with one of {', '.join(OPTIONS)}, got {spec!r}.")
    name = named["name"]
    if name not in OPTIONS:
        raise unknown("anchor", name, OPTIONS)
    check_known(named, (*OPTIONS[name], "name"), f"anchor '{name}'")
    if name == OFF and not adapted:
        raise ConfigError(
            f"anchor: {OFF} requires adapters, and this fine-tune trains all weights. Set `adapters`, or use {FROZEN}."
        )
    if name != EXTERNAL:
        return {"name": name}
    anchor_drift: Any = named.get("drift")
    path = find_pretrained(named.get("pretrained"), anchor_drift, "anchor.pretrained", base)
    if anchor_drift is None:
        anchor_drift = without_weights(
            RunFolder.open(path, registry).config.drift if path is not None and is_run(path) else drift
        )
    return {"name": name, "pretrained": path, "drift": registry.resolve("drift", anchor_drift, "anchor.drift", base)}


def anchor_hashes(path: Path | None) -> tuple[str, ...]:
    """Hashes of the anchors of the fine-tunes that led to a run or weights file, oldest first; () for none."""
    if path is None:
        return ()
    path = path / MODEL if is_run(path) else path
    if path.suffix != ".safetensors" or not path.is_file():
        return ()
    notes = read_notes(path)
    return tuple(str(anchor_hash) for anchor_hash in notes.get("anchors", []))


def describe_drift(spec: Mapping[str, Any], facts: Facts, registry: Registry) -> dict[str, Any]:
    """Plain values that determine a drift together with its weights: its spec without files, and the event shape."""
    return {"drift": plain(without_files(registry, "drift", spec)), "event_shape": list(facts.event_shape)}


def _ambiguity(pretrained: Path, drift: Mapping[str, Any], *, adapted: bool, registry: Registry) -> str:
    """The message for a missing anchor that could be either of two drifts, with the cure for both."""
    tensors, notes = read_tensors(pretrained / MODEL if is_run(pretrained) else pretrained)
    known = "event_shape" in notes and "adapter" not in notes  # of a run without its base, the file has no weights
    own = drift_hash(digest(tensors), describe_drift(drift, Facts.of(notes), registry)) if known else ""
    before, original = anchor_hashes(pretrained)[-1], "ORIGINAL"
    if is_run(pretrained):
        parent = RunFolder.open(pretrained, registry).config
        original = str((parent.anchor or {}).get("pretrained") or parent.start)
    return (
        f"anchor is missing, and {pretrained} is itself a fine-tune, so the anchor could be either of two drifts. "
        f"For the drift that this fine-tune starts from{f' (hash {short_hash(own)})' if own else ''}: "
        f"`anchor: {OFF if adapted else FROZEN}`. For the anchor of that fine-tune (hash {short_hash(before)}): "
        f"`anchor: {{name: external, pretrained: {original}}}`. With the first, the retention of the original drift "
        f"shrinks with every fine-tune (T18)."
    )


def without_files(registry: Registry, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
    """A resolved ``spec`` without the options that name files, nested components included: what it is anywhere."""
    known = registry.options(registry.component(kind, spec["name"]))
    return {
        key: without_files(registry, known[key].kind or "", value)
        if key in known and known[key].kind and isinstance(value, Mapping)
        else value
        for key, value in spec.items()
        if key not in known or not known[key].is_file
    }
