"""Tensors of which each process holds a part (FSDP): put together, and shared out again."""

import sys
from collections.abc import Mapping
from typing import TYPE_CHECKING, TypeGuard

from torch import Tensor

if TYPE_CHECKING:
    from torch.distributed.tensor import DTensor


def full_tensor(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts that the processes hold; all of them must ask. A plain one is itself."""
    return tensor.full_tensor() if is_sharded_tensor(tensor) else tensor


def gather_tensors(tensors: Mapping[str, Tensor], *, keep: bool = True) -> dict[str, Tensor]:
    """Whole copies of many tensors on the CPU. Plain ones are themselves, where they are.

    All processes must ask. Those that don't ``keep`` them get none, so that their memory holds one at a time.
    """
    gathered_tensors = {}
    for name, tensor in tensors.items():
        # One by one: a process never holds more than one whole tensor beside what it keeps.
        put_together = full_tensor(tensor)
        if keep:
            gathered_tensors[name] = put_together if put_together is tensor else put_together.cpu()
    return gathered_tensors


def local_part(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a plain one is itself."""
    return tensor.to_local() if is_sharded_tensor(tensor) else tensor


def shard_like(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in parts, as another one is; all processes must ask, each with the same tensor."""
    if not is_sharded_tensor(like):
        return tensor
    from torch.distributed.tensor import distribute_tensor

    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)


def is_sharded_tensor(tensor: Tensor) -> "TypeGuard[DTensor]":
    """True for a tensor of which this process holds a part."""
    # Where there is such a tensor its module is loaded, which takes a second: longer than all of gftkit does.
    module = sys.modules.get("torch.distributed.tensor")
    return module is not None and isinstance(tensor, module.DTensor)
