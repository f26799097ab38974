"""Ways to call a network, found by its signature and by trial calls on a batch of noise."""

import inspect
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.data.conditions import LABEL
from gftkit.data.description import Facts
from gftkit.kernel.errors import GftkitError
from gftkit.networks.convention import Convention
from gftkit.networks.foreign import ForeignDrift

TIME = ("t", "time", "times", "timestep", "timesteps", "tau", "sigma")
STATE = ("x", "xt", "x_t", "sample", "hidden_states", "input", "inputs", "img", "z", "latent", "latents")
LABELS = ("y", "label", "labels", "class_labels", "classes", "c")
"""Usual names of these arguments."""

CONDITIONS: Mapping[str, tuple[str, ...]] = {
    "prompt": ("encoder_hidden_states", "context", "text"),
    "pooled": ("pooled_projections", "pooled_prompt_embeds"),
    "mask": ("encoder_attention_mask", "encoder_hidden_states_mask", "attention_mask"),
}
"""Usual names of the arguments for conditions of these names; others have the condition's own name."""

SHAPES: tuple[Mapping[str, Any], ...] = (
    {},
    {"integer_time": True, "time_scale": 1000.0},
    {"integer_time": True, "time_scale": 999.0},
    {"time_shape": "column"},
    {"time_shape": "event"},
    {"time_shape": "scalar"},
)
"""Forms of the time, the most common first: the first that works is used."""

OUTPUTS: tuple[Mapping[str, Any], ...] = ({}, {"output": "sample"}, {"output": 0}, {"drop_channels": True})
PARTS: tuple[Mapping[str, Any], ...] = (*OUTPUTS, *({**part, "drop_channels": True} for part in OUTPUTS[1:3]))
"""Parts of an output, the whole first."""

NEUTRAL = {"predicts": "velocity", "range": (-1.0, 1.0), "latent_scale": 1.0, "latent_shift": 0.0, "path": None}
"""Values of the fields that don't concern the call: a prediction is neither converted nor rescaled."""

BATCH_SIZES = (7, 11, 13)
"""Sizes of the batch of noise: one that no side of an event has, so that nothing broadcasts by accident."""


@dataclass(frozen=True)
class Attempt:
    """A tried way to call a network.

    Attributes:
        fields: of a convention: call, form of the time, part of the output.
        failure: the reason why the call fails, or "".
    """

    fields: Mapping[str, Any]
    failure: str = ""


def attempts(
    network: nn.Module, facts: Facts, fixed: Mapping[str, Any], device: torch.device | str = "cpu"
) -> list[Attempt]:
    """Try the plausible ways to call a network; each attempt has its failure, if it fails.

    Args:
        network: the network, in evaluation mode.
        facts: of the data: shapes of samples and conditions.
        fixed: known fields of the convention.
        device: where the network is.
    """
    calls = [fixed["call"]] if "call" in fixed else list(_calls(network, facts))
    return [_attempt(network, facts, {**fixed, "call": call}, device) for call in calls]


def _calls(network: nn.Module, facts: Facts) -> Iterator[str]:
    """Calls by the names of the network's arguments: time and state in both orders, with labels and conditions.

    For a network of one argument, and samples that are vectors: both side by side.
    """
    parameters = [
        parameter
        for parameter in inspect.signature(network.forward).parameters.values()
        if parameter.kind not in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL)
    ]
    label = next((parameter for parameter in parameters if parameter.name in LABELS), None)
    ends = [""]
    if label is not None and facts.classes is not None:
        ends = ([""] if label.default is not label.empty else []) + [f", {label.name}={LABEL}"]
    named = _conditions_by_argument(parameters, facts)
    if named:
        # Without them too, where the network allows that.
        optional = all(parameter.default is not parameter.empty for parameter, _ in named)
        given = "".join(f", {parameter.name}={name}" for parameter, name in named)
        ends = [end + more for end in ends for more in ([""] if optional else []) + [given]]
    time = next((parameter for parameter in parameters if parameter.name in TIME), None)
    state = next((parameter for parameter in parameters if parameter.name in STATE), None)
    for end in ends:
        if time is not None and state is not None and parameters[:2] not in ([time, state], [state, time]):
            yield f"{state.name}=x, {time.name}=t{end}"
        else:
            yield f"t, x{end}"
            yield f"x, t{end}"
    if len(facts.event_shape) == 1 and sum(parameter.default is parameter.empty for parameter in parameters) == 1:
        yield "cat(x, t)"
        yield "cat(t, x)"


def _conditions_by_argument(parameters: list[inspect.Parameter], facts: Facts) -> list[tuple[inspect.Parameter, str]]:
    """The conditions of the data, each with the argument that it is for: by name, or as the only ones left of both."""
    pairs = [
        (parameter, name)
        for name in facts.condition_shapes
        for parameter in parameters
        if parameter.name == name or parameter.name in CONDITIONS.get(name, ())
    ]
    pairs = [pair for rank, pair in enumerate(pairs) if pair[1] not in {name for _, name in pairs[:rank]}]
    taken = {*TIME, *STATE, *LABELS, *(parameter.name for parameter, _ in pairs)}
    arguments = [
        parameter for parameter in parameters if parameter.name not in taken and parameter.default is parameter.empty
    ]
    names = [name for name in facts.condition_shapes if name not in {name for _, name in pairs}]
    if len(arguments) == len(names) == 1:
        pairs.append((arguments[0], names[0]))
    return pairs


def _attempt(network: nn.Module, facts: Facts, fields: Mapping[str, Any], device: torch.device | str) -> Attempt:
    """The first form of the time and part of the output with which a call works."""
    size = next(size for size in BATCH_SIZES if size not in facts.event_shape)
    x = torch.randn(size, *facts.event_shape, generator=torch.Generator().manual_seed(0)).to(device)
    first = ""
    for shape in SHAPES:
        for part in PARTS:
            complete = {**shape, **part, **fields}
            failure = _failure(network, complete, x, facts)
            if not failure:
                return Attempt(complete)
            first = first or failure
    return Attempt(fields, first)


def _failure(network: nn.Module, fields: Mapping[str, Any], x: Tensor, facts: Facts) -> str:
    """The reason why a convention's call fails on a batch of noise, or ""."""
    drift = ForeignDrift(network, Convention.of({**fields, **NEUTRAL}))
    t = torch.linspace(0, 1, len(x), device=x.device)
    try:
        zeros = {name: value.to(x.device) for name, value in facts.zeros(drift.conditions, len(x)).items()}
        with torch.no_grad():
            drift(t, x, **zeros)
    except GftkitError as error:
        return str(error)
    except Exception as error:  # a foreign network may fail in any way
        lines = str(error).strip().splitlines()
        return f"{type(error).__name__}: {lines[0] if lines else 'no message'}"
    return ""
