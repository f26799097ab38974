"""The convention of a network: how it is called, what its time and values mean, and what it predicts."""

import keyword
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields, replace
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gftkit.kernel.errors import ConfigError, unknown
from gftkit.kernel.options import check_known, plain
from gftkit.kernel.registry import Spec
from gftkit.storage.documents import parse_section
from gftkit.storage.written_tensors import is_written_tensor, read_written_tensor, resolve_written_tensor

Positive = Annotated[float, Field(gt=0)]

END_MARGINS: Mapping[str, float] = {"noise": 0.05, "score": 0.05, "data": 0.02}
"""How near to its singular end a prediction is converted: noise and score at t = 0, data at t = 1.

There a network's error is divided by alpha, or sigma. What the margins cost and spare is in ``docs/guide/networks.md``.
"""

LINEAR: Spec = {"name": "linear"}

_DIFFUSERS: Mapping[str, Any] = {"time": "reversed", "time_scale": 1000.0, "output": "sample", "path": LINEAR}
_UNSCALED: Mapping[str, Any] = {**_DIFFUSERS, "time_scale": 1.0}
_TEXT = "hidden_states=x, timestep=t, encoder_hidden_states=prompt"

PRESETS: Mapping[str, Mapping[str, Any]] = {
    "gftkit": {"call": "t, x", "predicts": "drift"},
    "torchcfm": {"call": "t, x", "path": LINEAR},
    "flow-matching": {"call": "x=x, t=t", "path": LINEAR},
    "flow-matching-unet": {"call": "x, t", "constants": {"extra": {}}, "path": LINEAR},
    "sit": {"call": "x, t, label", "path": LINEAR},
    "lampe": {"call": "theta=x, x=observation, t=t", "time": "reversed", "path": LINEAR},
    "diffusers": {"call": "x, t", **_DIFFUSERS},
    "unet-condition": {"call": "sample=x, timestep=t, encoder_hidden_states=prompt", **_DIFFUSERS},
    "dit": {"call": "hidden_states=x, timestep=t, class_labels=label", "drop_channels": True, **_DIFFUSERS},
    "sd3": {"call": f"{_TEXT}, pooled_projections=pooled", **_DIFFUSERS},
    "wan": {"call": _TEXT, **_DIFFUSERS},
    "sana": {"call": f"{_TEXT}, encoder_attention_mask=mask", "drop_channels": True, **_DIFFUSERS},
    "hunyuan-video": {
        "call": f"{_TEXT}, encoder_attention_mask=mask, pooled_projections=pooled",
        "types": {"mask": "int64"},
        **_DIFFUSERS,
    },
    "flux": {"call": f"{_TEXT}, pooled_projections=pooled", **_UNSCALED},
    "qwen-image": {"call": f"{_TEXT}, encoder_hidden_states_mask=mask", "types": {"mask": "bool"}, **_UNSCALED},
    "aura-flow": {"call": _TEXT, **_UNSCALED},
    "lumina2": {
        "call": f"{_TEXT}, encoder_attention_mask=mask",
        "types": {"mask": "int64"},
        "output": "sample",
        "path": LINEAR,
    },
}
"""Conventions by name: what each field is where it isn't ``Convention``'s default.

Those of a class of diffusers are what its pipeline gives the network, and does with its output.
"""

DIFFUSERS_TIMES: Mapping[str, tuple[str, str, float]] = {
    "FluxTransformer2DModel": ("flux", "reversed", 1.0),
    "Flux2Transformer2DModel": ("", "reversed", 1.0),
    "ChromaTransformer2DModel": ("", "reversed", 1.0),
    "QwenImageTransformer2DModel": ("qwen-image", "reversed", 1.0),
    "AuraFlowTransformer2DModel": ("aura-flow", "reversed", 1.0),
    "Lumina2Transformer2DModel": ("lumina2", "forward", 1.0),
    "LuminaNextDiT2DModel": ("", "forward", 1.0),
    "SD3Transformer2DModel": ("sd3", "reversed", 1000.0),
    "WanTransformer3DModel": ("wan", "reversed", 1000.0),
    "SanaTransformer2DModel": ("sana", "reversed", 1000.0),
    "HunyuanVideoTransformer3DModel": ("hunyuan-video", "reversed", 1000.0),
}
"""By class of diffusers: its preset, or "", and the direction and scale of the time that its pipeline gives it."""

Arguments = tuple[tuple[str | None, tuple[str, ...]], ...]
"""Of a call: (keyword or None, what is given); several values are given side by side, as one."""

_COMMA = re.compile(r",(?![^(]*\))")
_PART = re.compile(r"(?:(?P<name>\w+)\s*=\s*)?(?:(?P<what>\w+)|cat\((?P<several>[^(),]*(?:,[^(),]*)+)\))")


@dataclass(frozen=True)
class Convention:
    """The relation of a network f to gftkit's drift b(t, x), t = 0 the source and t = 1 the data.

    Time: the network is given scale * tau, with tau = t (forward) or tau = 1 - t (reversed). Prediction: with
    p = sign * f, a velocity or drift is dx/dtau in the network's own time of unit length, whatever its scale, so that
    b = (dtau/dt) p: p forward, -p reversed. Noise, data and score don't depend on the direction of time. With
    x = sigma e + alpha d they are p = E[e | x], p = E[d | x] and p = grad log density(x).

    Values: the network knows data as a d + c with a = latent_scale (high - low)/2 and
    c = latent_scale ((high + low)/2 - latent_shift), where gftkit knows d, in [-1, 1] if the data have a range. Of
    ``rescales: data`` the source e stays as it is, so that a d + c at tau has the same share of noise as d at another
    t; of ``rescales: state`` the whole state is known as a x + c, the source as well.

    Args:
        call: the arguments in order: ``t``, ``x`` and names of conditions, each by position or as ``name=what``; where
            samples are vectors, ``cat(x, t)`` is one argument, both side by side in the order given.
        constants: further keyword arguments, the same at every call. {tensor: numbers} or {file: FILE, key: of the
            file} is a tensor, with dtype, shape that it is expanded to, and per_sample: true to repeat it for each
            sample of a batch.
        types: by condition, "bool", "int64" or "float32", where the network needs another type than float32.
        time: "forward" (the source at 0) or "reversed" (the source at 1).
        time_scale: what the network is given at the end of its time, such as 1000.
        time_shape: shape of the time: "batch" (batch,), "column" (batch, 1), "event" (batch, 1, ..., 1) or "scalar" ().
        integer_time: the network is given the nearest integer, as int64.
        predicts: what the network's output is.
        sign: 1, or -1 where the network's output is minus that.
        path: the path that it was trained on, {name: ...}; null for the path of the run.
        range: (low, high) of the data as the network knows them, where gftkit has [-1, 1].
        latent_scale: the factor that data are multiplied by, after the shift.
        latent_shift: what is subtracted from data.
        rescales: what range, scale and shift apply to: the "data", or the "state" with its source.
        output: which part is the prediction: a name or a number for an attribute or an item; null for the whole.
        drop_channels: keep as many channels of the output as the state has, the first ones: the rest is a variance.
        margin: how near to the end of t where it is 0/0 a noise, score or data is converted to a velocity, in (0, 0.5);
            nearer than that, the network is evaluated at the margin. null for 0.05, or 0.02 for data.
        null: by condition, what stands for "not given": a number, such as {label: 1000}, or a tensor as in constants,
            of the condition's shape, such as {prompt: {file: empty.safetensors}}; see Guidance.

    Raises:
        ConfigError: for a call that can't be read or has no x, a range that isn't one, a null or type of another
            condition, or a constant that the call has as well.
    """

    call: str = "t, x"
    constants: dict[str, Any] | None = None
    types: dict[str, Literal["bool", "int64", "float32"]] | None = None
    time: Literal["forward", "reversed"] = "forward"
    time_scale: Positive = 1.0
    time_shape: Literal["batch", "column", "event", "scalar"] = "batch"
    integer_time: bool = False
    predicts: Literal["velocity", "drift", "noise", "data", "score"] = "velocity"
    sign: Literal[1, -1] = 1
    path: dict[str, Any] | None = None
    range: tuple[float, float] = (-1.0, 1.0)
    latent_scale: Positive = 1.0
    latent_shift: float = 0.0
    rescales: Literal["data", "state"] = "data"
    output: str | int | None = None
    drop_channels: bool = False
    margin: Annotated[float, Field(gt=0, lt=0.5)] | None = None
    null: dict[str, float | dict[str, Any]] | None = None

    def __post_init__(self) -> None:
        parse_call(self.call)
        if not self.range[0] < self.range[1]:
            raise ConfigError(f"convention.range: wanted [low, high] with low < high, got {list(self.range)}.")
        check_known(self.null or {}, self.conditions, "convention.null")
        check_known(self.types or {}, self.conditions, "convention.types")
        twice = {name for name, _ in self.arguments} & set(self.constants or {})
        if twice:
            raise ConfigError(
                f"convention.constants: the call has the argument '{min(map(str, twice))}' already. Leave it out of "
                f"one of them."
            )

    @classmethod
    def of(cls, values: "Mapping[str, Any] | str | Convention") -> "Convention":
        """A convention from a block of a config: a preset by name, or fields over those of ``preset``.

        Raises:
            UnknownNameError: for an unknown preset or field, with the nearest.
            ConfigError: for a value of the wrong type or out of range.

        Example:
            >>> convention = Convention.of({"preset": "diffusers", "predicts": "noise"})
            >>> convention.time, convention.time_scale, convention.predicts
            ('reversed', 1000.0, 'noise')
        """
        if isinstance(values, Convention):
            return values
        block = {"preset": values} if isinstance(values, str) else dict(values)
        name = block.pop("preset", None)
        if name is not None and name not in PRESETS:
            raise unknown("preset of a convention:", name, PRESETS)
        return parse_section(cls, {**PRESETS.get(name or "", {}), **block}, "convention")

    def with_files(self, folder: Path) -> "Convention":
        """The convention with the contents of the files that its constants and nulls name, relative to a folder.

        Raises:
            GftkitError: for a file that can't be read, or numbers that aren't a tensor.
        """

        def complete(field: str, values: Mapping[str, Any] | None) -> dict[str, Any] | None:
            if values is None:
                return None
            return {
                name: resolve_written_tensor(value, folder, f"convention.{field}.{name}")
                if is_written_tensor(value)
                else value
                for name, value in values.items()
            }

        constants, null = complete("constants", self.constants), complete("null", self.null)
        return replace(self, constants=constants, null=null)

    def to_dict(self) -> dict[str, Any]:
        """Every field, as plain values: what a run's config.yaml holds."""
        return plain(asdict(self))

    def differing(self) -> dict[str, Any]:
        """The fields that aren't the default, as plain values: a convention block to write."""
        default = type(self)()
        return {
            field.name: plain(getattr(self, field.name))
            for field in fields(self)
            if getattr(self, field.name) != getattr(default, field.name)
        }

    @property
    def arguments(self) -> Arguments:
        """The arguments of the call."""
        return parse_call(self.call)

    @property
    def conditions(self) -> tuple[str, ...]:
        """The conditions that the network is given."""
        return tuple(what for _, values in self.arguments for what in values if what not in ("t", "x"))

    @property
    def given_constants(self) -> dict[str, Any]:
        """The constants by name, with tensors read; those ``per_sample`` have a first dimension of 1."""
        return {
            name: _read(value, f"convention.constants.{name}") if is_written_tensor(value) else value
            for name, value in (self.constants or {}).items()
        }

    @property
    def per_sample(self) -> tuple[str, ...]:
        """The constants that are repeated for each sample of a batch."""
        constants = (self.constants or {}).items()
        return tuple(name for name, value in constants if is_written_tensor(value) and value.get("per_sample"))

    @property
    def nulls(self) -> dict[str, Any]:
        """The null of each condition that has one: a number, or a tensor of the condition's shape."""
        return {
            name: value if not isinstance(value, dict) else read_written_tensor(value, f"convention.null.{name}")
            for name, value in (self.null or {}).items()
        }

    @property
    def scale_and_shift(self) -> tuple[float, float]:
        """(a, c): the network knows data as a d + c."""
        low, high = self.range
        return self.latent_scale * (high - low) / 2, self.latent_scale * ((high + low) / 2 - self.latent_shift)

    @property
    def end_margin(self) -> float:
        """The margin in use; 0 for a velocity or drift."""
        return END_MARGINS.get(self.predicts, 0.0) if self.margin is None else self.margin

    @property
    def rescaled(self) -> bool:
        """True where the network knows other values than gftkit."""
        return self.scale_and_shift != (1.0, 0.0)


def parse_call(call: str) -> Arguments:
    """The arguments of a call such as ``sample=x, timestep=t, class_labels=label`` or ``cat(x, t)``.

    Raises:
        ConfigError: saying what can't be read.

    Example:
        >>> parse_call("cat(x, t), y=label")
        ((None, ('x', 't')), ('y', ('label',)))
    """
    arguments: list[tuple[str | None, tuple[str, ...]]] = []
    for part in _COMMA.split(call):
        match = _PART.fullmatch(part.strip())
        name = None if match is None else match["name"]
        values = () if match is None else tuple(map(str.strip, (match["what"] or match["several"]).split(",")))
        if not values or not all(map(_is_name, values)) or (name is not None and not _is_name(name)):
            raise ConfigError(
                f"convention.call: wanted arguments such as 't, x', 'sample=x, timestep=t, class_labels=label' or "
                f"'cat(x, t)', got '{call}', where '{part.strip()}' is neither WHAT nor NAME=WHAT."
            )
        if name is None and any(before is not None for before, _ in arguments):
            raise ConfigError(
                f"convention.call: '{call}' has '{part.strip()}' by position after an argument by name. Put it first."
            )
        arguments.append((name, values))
    inputs = [what for _, values in arguments for what in values]
    for which, names in (("argument", [name for name, _ in arguments if name is not None]), ("value", inputs)):
        twice = {name for name in names if names.count(name) > 1}
        if twice:
            raise ConfigError(f"convention.call: '{call}' has the {which} '{min(twice)}' twice.")
    if "x" not in inputs:
        raise ConfigError(f"convention.call: '{call}' lacks x, the state. Add it, as in 't, x'.")
    return tuple(arguments)


def _read(value: Mapping[str, Any], where: str) -> Any:
    tensor = read_written_tensor(value, where)
    return tensor[None] if value.get("per_sample") else tensor


def _is_name(word: str) -> bool:
    return word.isidentifier() and not keyword.iskeyword(word)
