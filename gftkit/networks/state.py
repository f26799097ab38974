"""Weights put into a network: all of them or none."""

from collections.abc import Mapping, Sequence
from pathlib import Path

import torch
from torch import Tensor

from gftkit.kernel.errors import WeightsError
from gftkit.runtime.sharding import shard_like
from gftkit.storage.tensors import State

LISTED_AT_MOST = 8
"""How many of a long list an error shows."""


def shortened(lines: Sequence[str]) -> str:
    """The first lines of a long list, each on a line of its own, and how many more there are."""
    more = [f"and {len(lines) - LISTED_AT_MOST} more"] if len(lines) > LISTED_AT_MOST else []
    return "".join(f"\n  {line}" for line in [*lines[:LISTED_AT_MOST], *more])


def misfits(weights: State, wanted: Mapping[str, Tensor]) -> list[str]:
    """Differences between weights and a network's, a line for each name: missing, unknown, of another shape."""
    complaints = [f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted if name not in weights]
    complaints += [f"unknown: {name} {tuple(weights[name].shape)}" for name in weights if name not in wanted]
    complaints += [
        f"wrong shape: {name} is {tuple(weights[name].shape)}, wanted {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    return complaints


def load_weights(module: torch.nn.Module, weights: State, source: Path, what: str = "drift") -> None:
    """Put weights into a network, all of them or none; ``what`` it is, for the errors.

    Raises:
        WeightsError: naming the keys that are missing, unknown, of the wrong shape, or of an integer or 8-bit type
            where the network has a floating one.
    """
    complaints = misfits(weights, module.state_dict())
    if complaints:
        raise WeightsError(
            f"{source}: the weights don't fit the {what}.{shortened(complaints)}\nUse the `{what}` that these weights "
            f"were made with."
        )
    own = module.state_dict()
    integers = [
        name
        for name, tensor in weights.items()
        if own[name].is_floating_point() and not (tensor.is_floating_point() and tensor.element_size() > 1)
    ]
    if integers:
        raise WeightsError(
            f"{source}: wanted floating weights of 16 bits or more, got {weights[integers[0]].dtype} in "
            f"{', '.join(integers[:LISTED_AT_MOST])}: the file is quantized, and its scales would be lost. Use the "
            f"file that it was made from."
        )
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(f"{source}: weights are not finite: {', '.join(bad[:LISTED_AT_MOST])}. Use another file.")
    # All is checked before the first tensor is copied: a network with half of its weights is worse than none.
    module.load_state_dict({name: shard_like(tensor, own[name]) for name, tensor in weights.items()})


def frozen_weights(drift: torch.nn.Module) -> State:
    """The weights of a network that aren't trained."""
    named = drift.named_parameters(remove_duplicate=False)
    return {name: weight.detach() for name, weight in named if not weight.requires_grad}
