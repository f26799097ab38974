"""The start of a run: pretrained weights, and the settings that a fine-tune or distillation inherits with them."""

from collections.abc import Mapping
from dataclasses import asdict
from pathlib import Path
from types import MappingProxyType
from typing import Any, NamedTuple

from gftkit.kernel.errors import ConfigError
from gftkit.kernel.registry import Registry, Spec
from gftkit.runs import lineage
from gftkit.runs.folder import RunFolder, is_run
from gftkit.runs.schema import DEFAULTS, INHERITED, JUMPS, RunKind
from gftkit.theory import flow


class Inheritance(NamedTuple):
    """The weights that a configuration starts from, and the components that come with them.

    Attributes:
        pretrained: a run folder or weights file; None for new weights.
        parent: the run in that folder, where it is one.
        specs: the components that are inherited from there.
    """

    pretrained: Path | None = None
    parent: RunFolder | None = None
    specs: Mapping[str, Spec] = MappingProxyType({})


def inheritance_of(
    raw: dict[str, Any], kind: RunKind, registry: Registry, base: Path
) -> tuple[dict[str, Any], Inheritance]:
    """The configuration of a run, completed where it is a distillation, and its inheritance.

    Raises:
        ConfigError: for a start that is missing, or can't be fine-tuned or distilled.
    """
    if kind == "distill":
        return _from_teacher(raw, base, registry)
    if kind == "pretrain":
        return raw, Inheritance()
    pretrained = lineage.find_pretrained(raw.get("pretrained"), raw.get("drift"), "pretrained", base)
    inherited = Inheritance(pretrained)
    if pretrained is not None and is_run(pretrained):
        parent = RunFolder.open(pretrained, registry)
        if parent.config.kind == "distill":
            raise ConfigError(
                f"pretrained: {pretrained} is a distillation, and fine-tuning would break its flow map. Fine-tune its "
                f"teacher, {parent.config.pretrained}, and distil the result."
            )
        inherited = Inheritance(pretrained, parent, _specs_of(parent))
    if "schedule" not in raw:
        raise ConfigError("schedule is missing: wanted e.g. `schedule: {name: exponential}`, or zero for none.")
    return raw, inherited


def _specs_of(parent: RunFolder) -> dict[str, Spec]:
    """The components that a fine-tune or distillation inherits from its pretrained run."""
    return {key: parent.spec(key) for key in INHERITED}


def resolve_inherited(
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
                f"{key}: the pretrained run's {key} '{inherited[key]['name']}' is inherited as a whole: single options "
                f"of it can't be changed, got {dict(spec)!r}. Leave `{key}` out, or give the whole spec with its name."
            )
        kind = "dataset" if key == "source" else key
        specs[key] = registry.resolve(kind, spec, key, base)
    return specs


def _from_teacher(raw: dict[str, Any], base: Path, registry: Registry) -> tuple[dict[str, Any], Inheritance]:
    """The configuration of a distillation, completed by its teacher's, and its inheritance."""
    place = lineage.find_pretrained(raw.get("pretrained"), None, "pretrained", base)
    if place is None or not is_run(place):
        raise ConfigError(f"pretrained: wanted the folder of a finished run to distil, got the file {place}.")
    teacher = RunFolder.open(place, registry)
    if teacher.config.kind == "distill":
        raise ConfigError(f"pretrained: {place} is itself a distillation. Distil its teacher instead.")
    if flow.is_stochastic(teacher.path):
        raise ConfigError(
            f"pretrained: the flow of {place} is an SDE, so its end isn't a function of its start and there is no flow "
            f"map to learn. Distil a run on a path without noise."
        )
    specs = _specs_of(teacher)
    evaluate = raw.get("evaluate", {})
    if isinstance(evaluate, Mapping):
        # `every` follows the student's own number of steps, and under guidance a flow map can't jump.
        left_out = ("every", "guidance")
        inherited = {key: value for key, value in asdict(teacher.config.evaluate).items() if key not in left_out}
        evaluate = {**inherited, "solver": dict(JUMPS), **evaluate}
    drift: Any = raw.get("drift", {"name": "flow-map"})
    if isinstance(drift, Mapping) and drift.get("name") in registry.names("drift"):
        wraps = "drift" in registry.component("drift", drift["name"]).options
        drift = {"drift": specs["drift"], **drift} if wraps else drift
    completed = {**raw, "data": raw.get("data", teacher.config.data), "evaluate": evaluate, "drift": drift}
    return completed, Inheritance(place, teacher, specs)


def teacher_spec(inherited: Inheritance) -> Spec | None:
    """The anchor of a distillation; None for a pretraining."""
    if inherited.pretrained is None:
        return None
    return {"name": "external", "pretrained": inherited.pretrained, "drift": inherited.specs["drift"]}
