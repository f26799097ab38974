"""Which anchor a fine-tune holds on to: as its configuration says, or refused where that could mean two drifts."""

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


def find_start(value: Any, drift: Any, key: str, base: Path) -> Path | None:
    """A run folder or weights file that a configuration names; None where the drift brings weights of its own.

    Args:
        value: what the configuration says.
        drift: the drift beside it, as the configuration writes it.
        key: where it stands, for errors.
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
            f"{key}: {value} and the drift's weights: {own} are two starts of one drift. Leave one of them out."
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
        spec: what the configuration says: a name, ``{name: ..., **options}``, or None.
        pretrained: where the fine-tune starts; None where its drift brings the weights.
        drift: the resolved spec of the fine-tune's own drift.
        adapted: whether adapters are trained.
        registry: components, for the ``drift`` of an external anchor.
        base: where relative paths start.

    Raises:
        ConfigError: for an anchor that is left out where it could mean two, or whose options have no valid value.
        UnknownNameError: for an unknown anchor or option.
    """
    if spec is None:
        if pretrained is not None and anchors(pretrained):
            raise ConfigError(_ambiguous(pretrained, drift, adapted, registry))
        spec = OFF if adapted else FROZEN
    given = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(given, Mapping) or not isinstance(given.get("name"), str):
        raise ConfigError(f"anchor: wanted {{name: ...}} with one of {', '.join(OPTIONS)}, got {spec!r}.")
    name = given["name"]
    if name not in OPTIONS:
        raise unknown("anchor", name, OPTIONS)
    check_known(given, (*OPTIONS[name], "name"), f"anchor '{name}'")
    if name == OFF and not adapted:
        raise ConfigError(
            f"anchor: {OFF} wants adapters, and all weights are trained. Give `adapters`, or use {FROZEN}."
        )
    if name != EXTERNAL:
        return {"name": name}
    own: Any = given.get("drift")
    path = find_start(given.get("pretrained"), own, "anchor.pretrained", base)
    if own is None:
        own = without_weights(
            RunFolder.open(path, registry).config.drift if path is not None and is_run(path) else drift
        )
    return {"name": name, "pretrained": path, "drift": registry.resolve("drift", own, "anchor.drift", base)}


def anchors(path: Path | None) -> tuple[str, ...]:
    """The hashes of the anchors of the fine-tunes that led to a run or weights file, oldest first; () for none."""
    if path is None:
        return ()
    path = path / MODEL if is_run(path) else path
    if path.suffix != ".safetensors" or not path.is_file():
        return ()
    notes = read_notes(path)
    known = notes.get("anchors", [notes["anchor"]] if notes.get("anchor") else [])
    return tuple(str(hashed) for hashed in known)


def made_of(spec: Mapping[str, Any], facts: Facts, registry: Registry) -> dict[str, Any]:
    """What determines a drift beside its weights, as plain values: its spec without files, and the event shape."""
    return {"drift": plain(registry.without_files("drift", spec)), "event_shape": list(facts.event_shape)}


def _ambiguous(pretrained: Path, drift: Mapping[str, Any], adapted: bool, registry: Registry) -> str:
    """Why an anchor must be named, with both drifts that it could be."""
    tensors, notes = read_tensors(pretrained / MODEL if is_run(pretrained) else pretrained)
    own = drift_hash(digest(tensors), made_of(drift, Facts.of(notes), registry)) if "event_shape" in notes else ""
    before, original = anchors(pretrained)[-1], "ORIGINAL"
    if is_run(pretrained):
        parent = RunFolder.open(pretrained, registry).config
        held = (parent.anchor or {}).get("pretrained") or parent.start
        original = str(held)
    return (
        f"anchor is missing, and {pretrained} is itself a fine-tune, so it could be either of two drifts. To hold on "
        f"to what this fine-tune starts from{f' (hash {short_hash(own)})' if own else ''}: "
        f"`anchor: {OFF if adapted else FROZEN}`. To hold on to "
        f"what that one held on to (hash {short_hash(before)}): `anchor: {{name: external, pretrained: {original}}}`. "
        f"With the first, what is retained of the original shrinks with every fine-tune (T18)."
    )
