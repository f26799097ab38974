"""Many devices: the processes of a run, by the accelerate library."""

from datetime import timedelta
from typing import Any

import torch
from torch import nn

from gftkit.environment import device_of
from gftkit.errors import ConfigError

PATIENCE = timedelta(hours=12)
"""How long processes wait for the main one while it measures and writes; the library's own limit is minutes."""


def accelerator_of(device: str) -> Any:
    """The processes and the device of a run: DDP or FSDP as ``torchrun`` or ``accelerate launch`` started it.

    Raises:
        ConfigError: for a device that is unknown or isn't there, or weights to be sharded where they wouldn't be.
    """
    from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
    from accelerate.utils import parse_flag_from_env

    accelerator = Accelerator(
        cpu=device_of(device) == "cpu", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
    )
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return accelerator
    if accelerator.distributed_type != DistributedType.FSDP:
        raise ConfigError(
            f"FSDP was asked for (ACCELERATE_USE_FSDP), and accelerate would quietly run "
            f"{accelerator.distributed_type.value} on {accelerator.num_processes} process(es) of {accelerator.device}: "
            f"it shards weights among several GPUs only. Leave FSDP out, or start two or more processes, a GPU each."
        )
    if not accelerator.is_fsdp2:
        raise ConfigError("FSDP: wanted version 2, which keeps weights apart: --fsdp_version 2, or FSDP_VERSION=2.")
    return accelerator


def prepare(accelerator: Any, drift: nn.Module, optimizer: torch.optim.Optimizer) -> nn.Module:
    """The network as a step calls it: wrapped for DDP, sharded in place for FSDP, itself on one process."""
    if shards(accelerator):
        return accelerator.prepare(drift, optimizer)[0]
    return accelerator.prepare_model(drift)


def shards(accelerator: Any) -> bool:
    """Whether each process holds only a part of every weight (FSDP)."""
    return bool(getattr(accelerator, "is_fsdp2", False))


def cuda_devices(device: torch.device) -> list[torch.device]:
    """The devices whose generators are forked beside the CPU's."""
    return [device] if device.type == "cuda" else []
