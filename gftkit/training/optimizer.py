"""The optimiser by name or import path, and the learning rate over a run."""

import importlib
import inspect
import json
import math
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.kernel.errors import ConfigError, unknown
from gftkit.runs.schema import Train
from gftkit.runtime.sharding import is_sharded_tensor, shard_like
from gftkit.storage.tensors import State

Factory = Callable[..., torch.optim.Optimizer]

INSIDE = "/"
"""Between the names of a mapping and of an entry in it."""

TRIED = (64, 128)
"""Shape of the weight on which an optimiser of another library is tried: 8-bit ones keep smaller weights in full."""


def optimizer_of(train: Train, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """An optimiser with options of its own: of torch.optim by name, in any case, or of any library by import path.

    Raises:
        UnknownNameError: for a name that torch.optim doesn't have.
        ConfigError: for an option that this optimiser doesn't take, an import path that leads nowhere, and an
            optimiser whose state no checkpoint can keep.
    """
    spec: dict[str, Any] = {"name": train.optimizer} if isinstance(train.optimizer, str) else dict(train.optimizer)
    name, parameters = str(spec.pop("name", "")), list(parameters)
    if ":" in name:
        factory = _import_optimizer(name)
        _try_optimizer(factory, {"lr": train.learning_rate, **spec}, name)
    else:
        factory = _torch_optimizer(name)
        takes = inspect.signature(factory).parameters
        real = not any(weight.is_complex() for weight in parameters)
        if real and "fused" in takes and not {"fused", "foreach"} & spec.keys():
            spec["fused"] = True  # one kernel for all parameters: on the CPU a tenth of the time
    return _build(factory, parameters, {"lr": train.learning_rate, **spec}, name)


def _torch_optimizer(name: str) -> Factory:
    known: dict[str, Factory] = {
        member_name.lower(): member
        for member_name, member in vars(torch.optim).items()
        if isinstance(member, type) and issubclass(member, torch.optim.Optimizer)
    }
    known = {key: member for key, member in known.items() if key not in ("optimizer", "lbfgs", "sparseadam")}
    if name.lower() not in known:
        raise unknown("optimiser at train.optimizer:", name.lower(), known)
    return known[name.lower()]


def _import_optimizer(name: str) -> Factory:
    """The class that ``package.module:Class`` names."""
    module, _, attribute = name.partition(":")
    try:
        factory: Any = getattr(importlib.import_module(module), attribute)
    except (ImportError, AttributeError) as error:
        raise ConfigError(
            f"train.optimizer: '{name}' can't be imported ({error}). Wanted 'package.module:Class' of an installed "
            f"package, or a name of torch.optim."
        ) from None
    if not (isinstance(factory, type) and issubclass(factory, torch.optim.Optimizer)):
        raise ConfigError(f"train.optimizer: '{name}' is no subclass of torch.optim.Optimizer. Choose another class.")
    return factory


def _build(
    factory: Factory, parameters: Iterable[nn.Parameter], options: dict[str, Any], name: str
) -> torch.optim.Optimizer:
    try:
        return factory(parameters, **options)
    except Exception as error:
        raise ConfigError(f"train.optimizer ({name}): {error}") from None


def _try_optimizer(factory: Factory, options: dict[str, Any], name: str) -> None:
    """Take two steps on a weight of its own: a run learns here, and not at its first checkpoint, what it can't keep."""
    weight = nn.Parameter(torch.linspace(-1, 1, math.prod(TRIED)).reshape(TRIED))
    optimizer = _build(factory, [weight], dict(options), name)
    try:
        for _ in range(2):
            set_mode(optimizer, training=True)
            weight.grad = weight.detach().clone()
            optimizer.step()
            set_mode(optimizer, training=False)
    except Exception as error:
        raise ConfigError(
            f"train.optimizer: '{name}' fails in a trial on the CPU: {type(error).__name__}: {error}. Choose another "
            f"optimiser."
        ) from error
    try:
        tensors, numbers = optimizer_state(optimizer)
        load_optimizer_state(optimizer, tensors, json.loads(json.dumps(numbers)), [weight])
    except (TypeError, ValueError) as error:
        raise ConfigError(
            f"train.optimizer: a checkpoint can't keep the state of '{name}': {error}. Choose another optimiser."
        ) from error


def set_mode(optimizer: torch.optim.Optimizer, *, training: bool) -> None:
    """Switch an optimiser that has two sets of weights, one to train and one to use, as schedule-free ones have."""
    switch = getattr(optimizer, "train" if training else "eval", None)
    if switch is not None:
        switch()


def set_learning_rate(optimizer: torch.optim.Optimizer, rate: float) -> None:
    """Set the learning rate of all groups."""
    for group in optimizer.param_groups:
        if isinstance(group["lr"], Tensor):  # compiled optimisers have it as a tensor, and refuse a number
            group["lr"].fill_(rate)
        else:
            group["lr"] = rate


def optimizer_state(optimizer: torch.optim.Optimizer) -> tuple[State, dict[str, Any]]:
    """All that an optimiser remembers: plain tensors, and values that JSON has.

    Tensors of other classes, as 8-bit optimisers have them, are divided into their parts.

    Raises:
        TypeError: for state of another kind.
    """
    tensors: State = {}
    numbers: dict[str, dict[str, Any]] = {}
    wrapped: dict[str, Any] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, value in _flat(state):
            if not isinstance(value, Tensor):
                numbers.setdefault(str(index), {})[key] = value
            elif type(value) is not Tensor and hasattr(value, "__tensor_flatten__") and not is_sharded_tensor(value):
                parts, context = value.__tensor_flatten__()
                wrapped[f"{index}.{key}"] = {
                    "type": f"{type(value).__module__}:{type(value).__qualname__}",
                    "parts": list(parts),
                    "context": [_encode(item) for item in context],
                    "shape": list(value.shape),
                    "stride": list(value.stride()),
                }
                tensors |= {f"{index}.{key}@{part}": getattr(value, part) for part in parts}
            else:
                tensors[f"{index}.{key}"] = value
    # Some count their steps in the options of a group. The learning rate is set anew at every step.
    groups = [
        {key: _encode(value) for key, value in group.items() if key not in ("params", "lr")}
        for group in optimizer.param_groups
    ]
    return tensors, {"optimizer": numbers, "wrapped": wrapped, "groups": groups}


def load_optimizer_state(
    optimizer: torch.optim.Optimizer, tensors: State, numbers: Mapping[str, Any], weights: Sequence[nn.Parameter]
) -> None:
    """Restore what ``optimizer_state`` returned; ``weights`` are those of the optimiser, in its order.

    Raises:
        TypeError: for tensors of a class of another package than the optimiser's.
    """
    state: dict[int, dict[str, Any]] = {int(key): dict(entries) for key, entries in numbers["optimizer"].items()}
    wrapped = numbers.get("wrapped", {})
    for place, description in wrapped.items():
        index, _, key = place.partition(".")
        parts = {part: tensors[f"{place}@{part}"].to(weights[int(index)].device) for part in description["parts"]}
        state.setdefault(int(index), {})[key] = _wrapped(optimizer, description, parts)
    for name, tensor in tensors.items():
        if name.partition("@")[0] in wrapped:
            continue
        index, _, key = name.partition(".")
        weight = weights[int(index)]
        value = tensor
        if tensor.shape == weight.shape:
            # In the weight's memory format: fused optimisers go through both as they lie in memory.
            value = torch.empty_like(weight, dtype=tensor.dtype).copy_(shard_like(tensor, weight))
        state.setdefault(int(index), {})[key] = value
    state = {index: _nested(entries) for index, entries in state.items()}
    groups = optimizer.state_dict()["param_groups"]
    for group, options in zip(groups, numbers.get("groups", [{}] * len(groups)), strict=True):
        group |= {key: _decode(value) for key, value in options.items()}
    optimizer.load_state_dict({"state": state, "param_groups": groups})


def _flat(state: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """The entries of one weight, those of mappings inside it, as bitsandbytes has them, as ``outer/inner``."""
    for key, value in state.items():
        if isinstance(value, Mapping):
            yield from ((f"{key}{INSIDE}{inner}", item) for inner, item in value.items())
        else:
            yield key, value


def _nested(entries: Mapping[str, Any]) -> dict[str, Any]:
    """The inverse of ``_flat``."""
    state: dict[str, Any] = {}
    for key, value in entries.items():
        outer, inside, inner = key.partition(INSIDE)
        if inside:
            state.setdefault(outer, {})[inner] = value
        else:
            state[key] = value
    return state


def _wrapped(optimizer: torch.optim.Optimizer, description: Mapping[str, Any], parts: State) -> Tensor:
    """A tensor of the optimiser's own class, from its parts."""
    module, _, name = description["type"].partition(":")
    package = type(optimizer).__module__.partition(".")[0]
    if module.partition(".")[0] != package:  # a file doesn't choose what is imported
        raise TypeError(f"a tensor of {description['type']}, which isn't a class of {package}")
    cls: Any = getattr(importlib.import_module(module), name)
    context = tuple(_decode(item) for item in description["context"])
    tensor: Tensor = cls.__tensor_unflatten__(parts, context, description["shape"], tuple(description["stride"]))
    return tensor


def _encode(value: Any) -> Any:
    """A value as JSON has it.

    Raises:
        TypeError: for one that it can't have.
    """
    if isinstance(value, torch.dtype):
        return {"dtype": str(value).removeprefix("torch.")}
    if isinstance(value, (list, tuple)):
        return [_encode(item) for item in value]
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    raise TypeError(f"a value of the type {type(value).__name__}")


def _decode(value: Any) -> Any:
    return getattr(torch, value["dtype"]) if isinstance(value, dict) else value


def learning_rate(train: Train, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then constant, cosine or linear decay to 0.

    Example:
        >>> train = Train(steps=10, learning_rate=1.0, warmup=2, decay="linear")
        >>> [learning_rate(train, step) for step in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if step < train.warmup:
        return train.learning_rate * (step + 1) / train.warmup
    share = (step - train.warmup) / max(1, train.steps - train.warmup)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[train.decay]
    return train.learning_rate * factor
