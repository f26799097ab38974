"""The sections of a study's file, and checks of them."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Annotated, Any

from pydantic import Field

from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.options import check_known
from gftkit.kernel.registry import Registry
from gftkit.study.methods import OWNED, Method

Names = Annotated[list[str], Field(min_length=1)]
Sizes = Annotated[list[Annotated[int, Field(gt=0)]], Field(min_length=1)]
Seeds = Annotated[list[Annotated[int, Field(ge=0, lt=2**31)]], Field(min_length=1)]

BASE = ("data", "train", "evaluate", "objective", "monitors", "track", "drift", "source", "path", "anchor")
"""Keys of a configuration that a study's cells may share."""


@dataclass(frozen=True)
class Group:
    """Cells of a study: every method with every coupling, size and seed. A cell of several groups counts once.

    Args:
        methods: built-in methods, or methods defined in ``methods``.
        sizes: numbers of training samples.
        seeds: of subset, order, source, times and noise, which are the same in every method.
        couplings: by name; null for the pretrained run's.
    """

    methods: Names
    sizes: Sizes
    seeds: Seeds
    couplings: Names | None = None


@dataclass(frozen=True)
class Definition:
    """A new method: a built-in one with other settings, or another one's runs at a retention.

    Args:
        method: the built-in method; null for that of the same name.
        set: values by keys of the configuration, such as {train.steps: 7500}.
        retention: train nothing: measure the runs of `method`, blended with their anchors at this retention, a number
            or a profile. Then `method` may be any other method of the groups.
    """

    method: str | None = None
    set: dict[str, Any] | None = None
    retention: float | str | dict[str, Any] | None = None


@dataclass(frozen=True)
class Study:
    """A comparison of methods.

    Args:
        metric: the judged metric, by the name of its values; lower is better.
        groups: cells, a list of {methods, couplings, sizes, seeds}.
        base: the configuration that every cell shares: data without `count` and `seed`, train, evaluate, and other
            keys of a fine-tune.
        pretrained: the run folder that every cell starts from.
        pretrain: instead of that, the configuration of a pretraining that is run first, or its file. If it has no
            coupling, one is run for each coupling of the groups.
        pretrain_per_seed: pretrain again for each seed of the groups, with that seed, so that intervals cover the
            pretraining, too.
        methods: new methods, {NAME: {method: BUILT-IN, set: {A.B: VALUE}}}.
        baseline: the method that the others are compared with, cell by cell.
        title: of the report.
    """

    metric: str
    groups: Annotated[list[dict[str, Any]], Field(min_length=1)]
    base: dict[str, Any]
    pretrained: str | None = None
    pretrain: str | dict[str, Any] | None = None
    pretrain_per_seed: bool = False
    methods: dict[str, dict[str, Any]] | None = None
    baseline: str = "plain"
    title: str | None = None


def check_group(group: Group, where: str, methods: Mapping[str, Method], registry: Registry) -> None:
    """Refuse a group with an unknown method or coupling, or with a value twice."""
    for method in group.methods:
        if method not in methods:
            raise unknown(f"method at {where}:", method, methods, "Define new methods in `methods`.")
    for coupling in group.couplings or ():
        registry.component("coupling", coupling, f"{where}.couplings")
    for key in ("methods", "sizes", "seeds", "couplings"):
        values = getattr(group, key) or []
        twice = [value for value in values if values.count(value) > 1]
        if twice:
            raise ConfigError(f"{where}.{key}: {twice[0]} occurs twice. Remove one of them.")


def check_base(base: Mapping[str, Any]) -> None:
    """Refuse a base with keys that the study sets, or that are methods."""
    for key in base:
        if key in OWNED:
            raise ConfigError(f"base: `{key}` is set by the study, from {OWNED[key]}. Leave it out.")
    for key, method in (("schedule", "a schedule"), ("adapters", "LoRA")):
        if key in base:
            raise ConfigError(
                f"base: `{key}` can't be shared: {method} is a method. Name it in the groups, or define it in "
                f"`methods`."
            )
    check_known(base, BASE, "base")
    data = base.get("data")
    if data is None:
        raise ConfigError("base.data is missing: wanted e.g. `data: {name: digits, split: train}`.")
    for key in ("count", "seed") if isinstance(data, Mapping) else ():
        if key in data:
            raise ConfigError(f"base.data: `{key}` is set by the study, from {OWNED[f'data.{key}']}. Leave it out.")
