"""The methods that a study compares: changes of a fine-tune's configuration."""

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Literal

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
    """What a method changes in the configuration that all of them share.

    Attributes:
        name: it goes by.
        summary: what it is, in a few words.
        kind: "finetune", or "pretrain" for one without pretrained weights.
        settings: values by their keys, ``a.b``.
        replays: whether samples of the pretrained run are mixed in.
    """

    name: str
    summary: str
    settings: Mapping[str, Any] = field(default_factory=dict)
    kind: Literal["finetune", "pretrain"] = "finetune"
    replays: bool = False


def built_in(registry: Registry) -> dict[str, Method]:
    """The methods out of the box, by name: one for each schedule that is registered among them."""
    plain = {"schedule": {"name": "zero"}}
    lora = {"adapters": {"name": "lora", "rank": RANK}}
    found = [
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
        found.append(Method(name, f"Gradual Fine-Tuning, schedule {name}", schedule))
        found.append(Method(f"lora-{name}", f"the same by LoRA, schedule {name}", {**schedule, **lora}))
    return {method.name: method for method in found}


def defined(name: str, based: str | None, settings: Mapping[str, Any], known: Mapping[str, Method]) -> Method:
    """A method of the user's own: a built-in one with more settings.

    Args:
        name: it goes by. That of a built-in method may be given that method's settings only.
        based: the built-in method that it changes; by default that of its own name.
        settings: values by their keys.
        known: the built-in methods.

    Raises:
        ConfigError: for a built-in method's name on something else, a name that makes no folder, and settings of what
            belongs to the study.
        UnknownNameError: for an unknown built-in method.
    """
    where = f"methods.{name}"
    if not name or not all(letter.isalnum() or letter in "-_." for letter in name) or name.startswith("."):
        raise ConfigError(f"{where}: wanted a name of letters, digits, '-', '_' and '.', which makes a folder.")
    based = name if based is None else based
    if based not in known:
        raise unknown(f"method at {where}:", based, known)
    if name in known and based != name:
        raise ConfigError(
            f"{where}: '{name}' is a built-in method, and this is another one, '{based}' changed. Choose another name."
        )
    for key in settings:
        check_setting(key, f"{where}.set")
    method = known[based]
    shown = ", ".join(f"{key} {value}" for key, value in settings.items())
    summary = f"{method.summary}; {shown}" if shown else method.summary
    return replace(method, name=name, summary=summary, settings={**method.settings, **settings})


OWNED = {
    "seed": "`seeds` of the groups",
    "data.seed": "`seeds` of the groups",
    "data.count": "`sizes` of the groups",
    "data.target.seed": "`seeds` of the groups",
    "data.target.count": "`sizes` of the groups",
    "data.source_seed": "`seeds` of the groups",
    "data.run": "`pretrained` or `pretrain`",
    "pretrained": "`pretrained` or `pretrain`",
    "coupling": "`couplings` of the groups",
}
"""What a study itself sets in every cell, and where it is said."""


def check_setting(key: str, where: str) -> None:
    """Refuse a key that the study sets itself, or one inside or around it that would undo that.

    Raises:
        ConfigError: naming the place where it is said.
    """
    if key == "data":
        raise ConfigError(f"{where}: data is the study's. Change single options of it, such as `data.share` of replay.")
    for owned, place in OWNED.items():
        if key == owned or key.startswith(f"{owned}."):
            raise ConfigError(f"{where}: `{key}` is set by the study, from {place}. Leave it out.")


def stamped(config: Config, method: Method, size: int, seed: int) -> Config:
    """The configuration of one cell: so many samples, this seed.

    The same seed chooses the same samples and draws the same source, batches and times in every method. Of a finite set
    the samples of a smaller size are among those of a larger one.
    """
    part = {"count": size, "seed": seed}
    if method.replays:
        data = {**config.data, "target": {**config.data["target"], **part}, "source_seed": seed}
    else:
        data = {**config.data, **part}
    return replace(config, data=data, seed=seed)
