"""The methods that a study compares: changes of a fine-tune's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

from gftkit.generation.requested_retention import RetentionRequest
from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Config

L2_SP = 0.01
"""Strength of the method l2-sp."""

STOP = "copying"
"""The rule that ends the method plain-stop: that of the schedule adaptive."""

RANK = 32
"""Rank of the LoRA methods."""


@dataclass(frozen=True)
class Method:
    """A method of fine-tuning: its changes of the configuration that all methods share.

    Attributes:
        name: in the study's file, tables and folders.
        summary: a few words for tables.
        kind: "finetune", or "pretrain" for one without pretrained weights.
        settings: values by key, ``a.b``.
        replays: whether samples of the pretrained run are mixed in.
        retention: at which the runs of ``samples`` are blended with their anchors; None for a method that trains.
        samples: the method whose runs are sampled, instead of training.
    """

    name: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["finetune", "pretrain"] = "finetune"
    replays: bool = False
    retention: RetentionRequest | None = None
    samples: str | None = None


def built_in(registry: Registry) -> dict[str, Method]:
    """The built-in methods by name; every registered schedule is one of them."""
    plain = {"schedule": {"name": "zero"}}
    lora = {"adapters": {"name": "lora", "rank": RANK}}
    methods = [
        Method("scratch", "new weights, trained as long as the others", kind="pretrain"),
        Method("plain", "fine-tuning at temperature zero: flow matching from the pretrained weights", plain),
        Method("plain-stop", f"plain, ended by the rule {STOP}", {**plain, "stop": {"name": STOP}}),
        Method("l2-sp", "plain, the weights pulled to the pretrained ones", {**plain, "objective.l2_sp": L2_SP}),
        Method("replay", "plain, with as many samples of the pretrained model mixed in", plain, replays=True),
        Method("lora-plain", "plain, by LoRA", {**plain, **lora}),
    ]
    for name in registry.names("schedule"):
        if name == "zero":
            continue
        schedule = {"schedule": {"name": name}}
        methods.append(Method(name, f"Gradual Fine-Tuning, schedule {name}", schedule))
        methods.append(Method(f"lora-{name}", f"the same by LoRA, schedule {name}", {**schedule, **lora}))
    return {method.name: method for method in methods}


def define_method(name: str, based: str | None, settings: Mapping[str, Any], known: Mapping[str, Method]) -> Method:
    """Define a method of a study's file: a built-in one with more settings.

    Args:
        name: of the method. The name of a built-in method is only for changes of that method.
        based: the built-in method that it changes; by default that of its own name.
        settings: values by key.
        known: the built-in methods.

    Raises:
        ConfigError: for a built-in method's name on another method, a name that can't be a folder, and settings of
            keys that the study sets.
        UnknownNameError: for an unknown built-in method.
    """
    where = f"methods.{name}"
    _check_name(name, where)
    based = name if based is None else based
    if based not in known:
        raise unknown(f"method at {where}:", based, known)
    if name in known and based != name:
        raise ConfigError(
            f"{where}: '{name}' is a built-in method, and this one changes '{based}'. Choose another name."
        )
    for key in settings:
        check_setting(key, f"{where}.set")
    method = known[based]
    changes = ", ".join(f"{key} {value}" for key, value in settings.items())
    summary = f"{method.summary}; {changes}" if changes else method.summary
    return replace(method, name=name, summary=summary, settings={**method.settings, **settings})


def _check_name(name: str, where: str) -> None:
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise ConfigError(f"{where}: wanted a name of letters, digits, '-', '_' and '.', since it names a folder.")


def define_blend(name: str, sampled: str | None, retention: RetentionRequest, known: Mapping[str, Method]) -> Method:
    """Define a method that trains nothing: the runs of another one, sampled at a retention.

    Args:
        name: of the method; not one of those that are known.
        sampled: the name of the other method.
        retention: of the blend of a run and its anchor; already checked.
        known: every method that trains.

    Raises:
        ConfigError: for a name that is taken or can't be a folder, and runs without an anchor.
        UnknownNameError: for an unknown method.
    """
    where = f"methods.{name}"
    _check_name(name, where)
    if name in known:
        raise ConfigError(f"{where}: '{name}' is a built-in method. Choose another name for its runs at a retention.")
    if sampled is None or sampled not in known:
        raise unknown(f"method at {where}:", str(sampled), known, "It is the one whose runs are sampled.")
    method = known[sampled]
    if method.kind != "finetune":
        raise ConfigError(f"{where}: a retention blends a fine-tune with its anchor, and '{sampled}' has no anchor.")
    summary = f"{sampled}, sampled at the retention {retention}: two networks"
    return replace(method, name=name, summary=summary, retention=retention, samples=sampled)


OWNED = {
    "seed": "`seeds` of the groups",
    "data.seed": "`seeds` of the groups",
    "data.count": "`sizes` of the groups",
    "data.target.seed": "`seeds` of the groups",
    "data.target.count": "`sizes` of the groups",
    "data.source_seed": "`seeds` of the groups",
    "data.run": "`pretrained` or `pretrain`",
    "pretrained": "`pretrained` or `pretrain`",
}
"""The keys that a study sets in every cell, and the place in its file that they come from."""


def check_setting(key: str, where: str) -> None:
    """Refuse a key that the study sets itself, or one inside or around it.

    Raises:
        ConfigError: naming the place in the study's file where it is set.
    """
    if key == "data":
        raise ConfigError(
            f"{where}: `data` as a whole is set by the study. Change single options of it, such as `data.share` of "
            f"replay."
        )
    for owned, place in OWNED.items():
        if key == owned or key.startswith(f"{owned}."):
            raise ConfigError(f"{where}: `{key}` is set by the study, from {place}. Leave it out.")


def with_size_and_seed(config: Config, method: Method, size: int, seed: int) -> Config:
    """The configuration of one cell, with its number of samples and its seed.

    The same seed chooses the same samples and draws the same source, batches and times in every method. Of a finite set
    the samples of a smaller size are among those of a larger one.
    """
    part = {"count": size, "seed": seed}
    if method.replays:
        data = {**config.data, "target": {**config.data["target"], **part}, "source_seed": seed}
    else:
        data = {**config.data, **part}
    return replace(config, data=data, seed=seed)
