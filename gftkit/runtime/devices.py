"""Many devices: the processes of a run, by the accelerate library."""

import os
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from datetime import timedelta
from typing import Any

import torch
from torch import Tensor, nn
from torch.func import functional_call

from gftkit.kernel.errors import ConfigError, RunError
from gftkit.runtime.environment import resolve_device

Inputs = tuple[Tensor, Tensor, Mapping[str, Tensor]]
"""(t, x, conditions), as a drift is called."""

PATIENCE = timedelta(hours=12)
"""How long processes wait for the main one while it measures and writes; the library's own limit is minutes."""


FOREIGN = {
    "ACCELERATE_MIXED_PRECISION": "leave mixed_precision at no, and give train.precision",
    "ACCELERATE_DYNAMO_BACKEND": "leave dynamo_backend at no, and give train.compile",
    "FSDP_ACTIVATION_CHECKPOINTING": "leave fsdp_activation_checkpointing out, and give train.gradient_checkpointing",
    "FSDP_OFFLOAD_PARAMS": "leave fsdp_offload_params out; train.accumulate saves memory",
    "ACCELERATE_USE_DEEPSPEED": "leave DeepSpeed out; FSDP shards weights too",
    "ACCELERATE_USE_MEGATRON_LM": "leave Megatron-LM out; FSDP shards weights too",
    "ACCELERATE_USE_PARALLELISM_CONFIG": "leave parallelism_config out: batches are shared, or weights sharded by FSDP",
}
"""Settings of accelerate that would change a run without its configuration, by variable, with what to do instead."""

OFF = ("", "no", "false", "0")


def start_accelerator(device: str) -> Any:
    """The processes and the device of a run: DDP or FSDP as ``torchrun`` or ``accelerate launch`` started it.

    Raises:
        ConfigError: for a device that is unknown or isn't there, fewer GPUs than processes, settings of accelerate
            that the configuration doesn't have, or FSDP where it wouldn't shard.
    """
    from accelerate import Accelerator, DistributedType, InitProcessGroupKwargs
    from accelerate.utils import parse_flag_from_env

    name = resolve_device(device)
    for variable, cure in FOREIGN.items():
        value = os.environ.get(variable, "")
        if value.lower() not in OFF:
            raise ConfigError(f"{variable}={value} changes a run without its configuration. Instead, {cure}.")
    here, there = int(os.environ.get("LOCAL_WORLD_SIZE", "1")), torch.cuda.device_count()
    if name == "cuda" and here > there:
        raise ConfigError(
            f"device: {here} processes on this node share {there} GPU(s). Start one process for each GPU, or use cpu."
        )
    accelerator = Accelerator(
        cpu=name == "cpu", mixed_precision="no", kwargs_handlers=[InitProcessGroupKwargs(timeout=PATIENCE)]
    )
    # From here on all are there: none is left alone by one that is refused, or sees files that another one wrote since.
    accelerator.wait_for_everyone()
    if not parse_flag_from_env("ACCELERATE_USE_FSDP"):
        return accelerator
    if accelerator.distributed_type != DistributedType.FSDP:
        raise ConfigError(
            f"ACCELERATE_USE_FSDP is set, and accelerate would run {accelerator.distributed_type.value} on "
            f"{accelerator.num_processes} process(es) of {accelerator.device} instead: FSDP needs several GPUs. Unset "
            f"it, or start one process for each of two or more GPUs."
        )
    if not accelerator.is_fsdp2:
        raise ConfigError("FSDP: wanted version 2. Set FSDP_VERSION=2, or give --fsdp_version 2.")
    return accelerator


@dataclass(frozen=True)
class Crew:
    """The processes that share a task without a network between them.

    Attributes:
        index: of this process.
        count: how many there are.
        device: of this process.
        accelerator: of the accelerate library, where one started them.
    """

    index: int
    count: int
    device: torch.device
    accelerator: Any = None

    @property
    def main(self) -> bool:
        """True for the process that writes files and messages."""
        return self.index == 0

    def wait(self) -> None:
        """Wait for the others."""
        if self.accelerator is not None:
            self.accelerator.wait_for_everyone()

    def agree(self, facts: Mapping[str, Any]) -> None:
        """See ``check_agreement``; nobody goes on before all have asked."""
        if self.accelerator is not None:
            check_agreement(self.accelerator, facts)


def start_crew(device: str) -> Crew:
    """The processes that torchrun or accelerate launch started, or this one alone.

    Raises:
        ConfigError: see ``start_accelerator``.
    """
    if not any(name == "WORLD_SIZE" or name.startswith("ACCELERATE_") for name in os.environ):
        return Crew(0, 1, torch.device(resolve_device(device)))
    accelerator = start_accelerator(device)
    return Crew(accelerator.process_index, accelerator.num_processes, accelerator.device, accelerator)


def launch_warnings(accelerator: Any, precision: str) -> list[str]:
    """Warnings about how the processes were started, and about their devices.

    Args:
        accelerator: of the accelerate library.
        precision: of ``train``.
    """
    warnings = []
    launched = "ACCELERATE_USE_CPU" in os.environ and "MASTER_ADDR" in os.environ and "WORLD_SIZE" not in os.environ
    if accelerator.num_processes == 1 and launched:
        warnings.append(
            "accelerate launch started one process. Without GPUs it ignores a larger number. Use torchrun "
            "--nproc_per_node N -m gftkit ... instead."
        )
    if precision != "float32" and emulates_half(accelerator.device):
        warnings.append(
            f"train.precision: this CPU (AVX2) has no instructions for {precision}. Steps take longer than in float32."
        )
    return warnings


def emulates_half(device: torch.device) -> bool:
    """True where bfloat16 and float16 are slower than float32: on an x86 CPU without AVX-512."""
    return device.type == "cpu" and torch.backends.cpu.get_cpu_capability() == "AVX2"


def check_agreement(accelerator: Any, facts: Mapping[str, Any]) -> None:
    """Refuse processes that would go different ways; all of them must ask.

    Args:
        accelerator: of the accelerate library.
        facts: what must be the same for all of them, by name.

    Raises:
        RunError: naming the first that differs, and whose.
    """
    from accelerate.utils import gather_object

    if accelerator.num_processes == 1:
        return
    # Every process sees all facts and raises by itself: if only the main one did, the others would wait for it.
    seen = gather_object([dict(facts)])
    for name, value in seen[0].items():
        for index, other in enumerate(seen):
            if other[name] != value:
                raise RunError(
                    f"the processes differ in {name}: process 0 has {value}, process {index} has {other[name]}. "
                    f"Install the same versions on all nodes, and put the run folder, the data and the pretrained "
                    f"weights on a shared file system."
                )


def broadcast(accelerator: Any, value: Any) -> Any:
    """The main process's value on every process; all of them must ask."""
    from accelerate.utils import broadcast_object_list

    if accelerator.num_processes == 1:
        return value
    box = [value]  # the library fills a list in place
    broadcast_object_list(box)
    return box[0]


def prepare_network(
    accelerator: Any, drift: nn.Module, optimizer: torch.optim.Optimizer, example: Callable[[], Inputs]
) -> nn.Module:
    """The network as a step calls it: wrapped for DDP, sharded in place for FSDP, itself on one process.

    Args:
        accelerator: of the accelerate library.
        drift: the network.
        optimizer: of its weights.
        example: gives inputs (t, x, conditions) to try it on.
    """
    from accelerate import DistributedDataParallelKwargs, DistributedType

    if is_sharded(accelerator):
        return accelerator.prepare(drift, optimizer)[0]
    if accelerator.distributed_type != DistributedType.NO and has_idle_weights(drift, *example()):
        # Without it DDP waits for gradients that never come; with it, it walks the graph at every step.
        accelerator.ddp_handler = DistributedDataParallelKwargs(find_unused_parameters=True)
    return accelerator.prepare_model(drift)


def has_idle_weights(drift: nn.Module, t: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> bool:
    """True where the output doesn't depend on every trained weight. The network stays as it is."""
    trained = [weight for weight in drift.parameters() if weight.requires_grad]
    # Copies of the buffers, because a forward pass in training mode moves running statistics.
    buffers = {name: buffer.clone() for name, buffer in drift.named_buffers()}
    out = functional_call(drift.train(), buffers, (t, x), dict(conditions))
    return any(gradient is None for gradient in torch.autograd.grad(out.sum(), trained, allow_unused=True))


def is_sharded(accelerator: Any) -> bool:
    """True where each process holds only a part of every weight (FSDP)."""
    return bool(getattr(accelerator, "is_fsdp2", False))


def cuda_devices(device: torch.device) -> list[torch.device]:
    """The devices whose generators are forked beside the CPU's."""
    return [device] if device.type == "cuda" else []
