"""The anchor of a loop of one's own: the network without its adapters, a frozen copy of it, or any function."""

import copy
import sys
from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from gftkit.kernel.errors import ConfigError
from gftkit.networks.adapters import base_state, switched_off
from gftkit.storage.tensors import digest

Call = Callable[[Any], Any]
"""Calls a network with the inputs of a step: ``lambda net: net(**inputs)``."""

_OF_PEFT = "base_model.model."
"""What peft's wrapper puts before the names of the network's weights."""


class LoopAnchor(Protocol):
    """b_pre in the convention of the loop's network.

    Attributes:
        kind: "frozen", "adapters-off" or "external".
        hash: SHA-256 of its weights; None where they aren't known.
        network: that is trained, without the wrappers of other libraries; None for an external anchor.
    """

    kind: str
    hash: str | None
    network: nn.Module | None

    def __call__(self, call: Call, device: torch.device) -> Any:
        """What the call gives for the anchor."""


class FrozenCopy:
    """A frozen copy of a network, in evaluation mode.

    Args:
        network: the network that is trained, before its first step.
    """

    kind = "frozen"

    def __init__(self, network: nn.Module) -> None:
        self.network: nn.Module | None = network
        self.hash: str | None = digest(network.state_dict())
        self._copy = copy.deepcopy(network).eval().requires_grad_(False)

    def __call__(self, call: Call, device: torch.device) -> Any:
        """What the call gives for the copy."""
        return call(self._copy.to(device))


class AdaptersOff:
    """The network that is trained, its adapters switched off, in evaluation mode: it holds no weights of its own.

    Args:
        network: with layers of peft in it.
        adapted: these, and peft's copies of modules that are trained whole, by name.
    """

    kind = "adapters-off"

    def __init__(self, network: nn.Module, adapted: dict[str, Any]) -> None:
        self.network: nn.Module | None = network
        base = base_state(network, adapted)
        self.hash: str | None = digest({name.removeprefix(_OF_PEFT): tensor for name, tensor in base.items()})
        self._modules, self._adapted = list(network.modules()), list(adapted.values())

    def __call__(self, call: Call, device: torch.device) -> Any:  # noqa: ARG002  # it is where the network is
        """What the call gives for the network without its adapters; modes and adapters are put back."""
        with switched_off(self._modules, self._adapted):
            return call(self.network)


class External:
    """Another network, or any function that the loop's call can be given.

    Args:
        function: the anchor.
        hashed: what identifies it; None for the hash of its weights, where it is a network.
    """

    kind = "external"

    def __init__(self, function: Callable[..., Any], hashed: str | None) -> None:
        self.network: nn.Module | None = None
        self._function = function
        self.hash = digest(function.state_dict()) if hashed is None and isinstance(function, nn.Module) else hashed

    def __call__(self, call: Call, device: torch.device) -> Any:
        """What the call gives for it; a network in evaluation mode, which is put back."""
        if not isinstance(self._function, nn.Module):
            return call(self._function)
        with _evaluating(self._function.to(device)):
            return call(self._function)


def anchor_of(network: nn.Module) -> LoopAnchor:
    """The network without its adapters where it has any, else a frozen copy.

    Raises:
        ConfigError: for a network that is sharded, whose adapters are merged, or whose base is trained, too.
    """
    network = unwrapped(network)
    adapted = _layers_of_peft(network)
    if is_sharded(network):
        raise ConfigError(
            "anchor_of: the network is sharded already (FSDP), so it can be neither copied nor called alone. Call "
            "anchor_of before it is wrapped: each process then has a whole frozen copy."
            + (" Adapters can't be switched off under FSDP: give a frozen copy, made before." if adapted else "")
        )
    if not adapted:
        return FrozenCopy(network)
    if merged := [name for name, layer in adapted.items() if getattr(layer, "merged", False)]:
        raise ConfigError(f"anchor_of: the adapter of {merged[0]} is merged into its weights. Unmerge it first.")
    base = {tensor.data_ptr() for tensor in base_state(network, adapted).values()}
    if trained := [
        name for name, weight in network.named_parameters() if weight.requires_grad and weight.data_ptr() in base
    ]:
        raise ConfigError(
            f"anchor_of: {trained[0]} is trained beside the adapters, so the network without its adapters isn't fixed. "
            f"Freeze it, or give a copy: anchor_of(copy.deepcopy(network), external=True)."
        )
    return AdaptersOff(network, adapted)


def unwrapped(network: nn.Module) -> nn.Module:
    """A network without the wrappers of torch.compile and of data parallelism."""
    while True:
        inner = getattr(network, "_orig_mod", None)
        if inner is None and type(network).__name__ in ("DistributedDataParallel", "DataParallel"):
            inner = network.module
        if not isinstance(inner, nn.Module):
            return network
        network = inner


def is_sharded(network: nn.Module) -> bool:
    """True for a network whose weights FSDP has divided between processes, in either of its versions."""
    wrapped = any(type(module).__name__ == "FullyShardedDataParallel" for module in network.modules())
    return wrapped or any(hasattr(weight, "device_mesh") for weight in network.parameters())


def _layers_of_peft(network: nn.Module) -> dict[str, Any]:
    """The layers of peft in a network, and its copies of modules that are trained whole, by name."""
    peft = sys.modules.get("peft")  # whoever has put adapters in has imported it
    if peft is None:
        return {}
    kinds = (peft.tuners.tuners_utils.BaseTunerLayer, peft.utils.ModulesToSaveWrapper)
    return {name: module for name, module in network.named_modules() if isinstance(module, kinds)}


def _evaluating(network: nn.Module) -> AbstractContextManager[None]:
    modules = list(network.modules())
    return switched_off(modules, []) if any(module.training for module in modules) else nullcontext()


def output_of(out: Any) -> Tensor:
    """The prediction of a network's output: a tensor, an output of diffusers, or the first of a tuple.

    Raises:
        ConfigError: for anything else.
    """
    value = getattr(out, "sample", None) if not isinstance(out, Tensor) else out
    if value is None and isinstance(out, (tuple, list)) and out:
        value = out[0]
    if not isinstance(value, Tensor):
        raise ConfigError(
            f"loss: the call for the anchor gave a {type(out).__name__}. Let it give the prediction, a tensor: "
            f"lambda net: net(**inputs).sample."
        )
    return value
