"""Tensors of which each process holds a part (FSDP): put together, and shared out again."""

from collections.abc import Mapping

from torch import Tensor
from torch.distributed.tensor import DTensor, distribute_tensor


def whole(tensor: Tensor) -> Tensor:
    """A tensor put together from the parts that the processes hold; all of them must ask. A plain one is itself."""
    return tensor.full_tensor() if isinstance(tensor, DTensor) else tensor


def gathered(tensors: Mapping[str, Tensor], keep: bool = True) -> dict[str, Tensor]:
    """Whole copies of many tensors on the CPU. Plain ones are themselves, where they are.

    All processes must ask. Those that don't ``keep`` them get none, so that their memory holds one at a time.
    """
    found = {}
    for name, tensor in tensors.items():
        put_together = tensor.full_tensor() if isinstance(tensor, DTensor) else tensor
        if keep:
            found[name] = put_together.cpu() if isinstance(tensor, DTensor) else put_together
    return found


def local(tensor: Tensor) -> Tensor:
    """The part of a tensor that this process holds; a plain one is itself."""
    return tensor.to_local() if isinstance(tensor, DTensor) else tensor


def shared_out(tensor: Tensor, like: Tensor) -> Tensor:
    """A whole tensor in parts, as another one is; all processes must ask, each with the same tensor."""
    if not isinstance(like, DTensor):
        return tensor
    return distribute_tensor(tensor.to(like.device), like.device_mesh, like.placements)
