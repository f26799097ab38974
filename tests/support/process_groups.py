"""Processes that are forked with everything imported and find each other as those of torchrun do."""

import os
import signal
import socket
from pathlib import Path

import pytest
import torch
from support import killing


def start(task, *arguments, processes=2, **environment):
    """Begin ``task(*arguments)`` in several processes; its module must be one that a child can import."""
    with socket.socket() as found:
        found.bind(("127.0.0.1", 0))
        port = found.getsockname()[1]
    shared = {
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "WORLD_SIZE": str(processes),
        "LOCAL_WORLD_SIZE": str(processes),
        "OMP_NUM_THREADS": "1",
        **environment,
    }
    killing.preload()
    begun = []
    for rank in map(str, range(processes)):
        own = {**shared, "RANK": rank, "LOCAL_RANK": rank}
        begun.append(killing.CONTEXT.Process(target=_work, args=(own, task, arguments)))
        begun[-1].start()
    return begun


def finish(begun, code=0, seconds=200):
    """Wait for all; each must end with this code. One that isn't needed any more is killed, as torchrun does."""
    for process in begun:
        process.join(seconds)
    ended = [process.exitcode for process in begun]
    for process in begun:
        process.kill()
    assert ended == [code] * len(begun), f"the processes ended with {ended}, not {code}"


def run(task, *arguments, **options):
    """The same from beginning to end."""
    finish(start(task, *arguments, **options))


def killed(begun, first):
    """Wait until one of them, by its rank, has ended by SIGKILL, then kill the others without a warning too."""
    begun[first].join(200)
    ended = begun[first].exitcode
    kill(begun)
    assert ended == -signal.SIGKILL, f"the process ended with {ended}"


def kill(begun, seconds=0.0):
    """Kill all of them after some time; whether they were still at work."""
    begun[0].join(seconds)
    for process in begun:
        process.kill()
        process.join()
    return any(process.exitcode == -signal.SIGKILL for process in begun)


def _replace(owner, name, value):
    """Replace what must be there: under a name that nobody reads any more a wrong twin would be right."""
    assert hasattr(owner, name), f"{owner.__name__} has no {name}"
    setattr(owner, name, value)


def _work(environment, task, arguments):
    os.environ.update(environment)
    torch.set_num_threads(1)
    task(*arguments)


# Tasks


def train(config, out, resume=False, moments=None):
    """A run; ``moments`` has, by rank, when a process kills itself."""
    own = (moments or {}).get(int(os.environ["RANK"]))
    killing.train(config, out, resume, own)


def train_sharded(config, out, resume=False, moments=None):
    """The same, its weights sharded by accelerate's own FSDP2, which by itself does so on GPUs only."""
    from accelerate import Accelerator, DistributedType, FullyShardedDataParallelPlugin
    from accelerate.state import AcceleratorState, PartialState
    from torch.distributed.tensor import DTensor

    from gftkit.training import train as training
    from gftkit.training.steps import Steps

    def start_accelerator(device):
        accelerator = Accelerator(cpu=True)
        assert accelerator.distributed_type == DistributedType.MULTI_CPU
        for state in (PartialState, AcceleratorState):  # the second is filled from the first whenever it is made
            state._shared_state["distributed_type"] = DistributedType.FSDP
        AcceleratorState._shared_state["fsdp_plugin"] = FullyShardedDataParallelPlugin()
        assert accelerator.is_fsdp2
        return accelerator

    init = Steps.__init__

    def checked(self, *arguments):
        init(self, *arguments)
        for weight in self.drift.parameters():
            assert isinstance(weight, DTensor)
            assert weight.to_local().numel() < weight.numel()

    _replace(training, "start_accelerator", start_accelerator)
    _replace(Steps, "__init__", checked)
    train(config, out, resume, moments)


def train_apart(config, out):
    """A wrong twin: gradients are never exchanged."""
    from gftkit.training.steps import Steps

    whole = Steps._in_step
    _replace(Steps, "_in_step", lambda self, *, last: whole(self, last=False))
    train(config, out)


def train_with(idle, config, out):
    """A run that takes the network's word, or this one, for whether it has idle weights."""
    from gftkit.runtime import devices

    if idle is not None:
        _replace(devices, "has_idle_weights", lambda *_: idle)
    train(config, out)


def sample(run, out, request, resume=False, by_rank=False, moment=None):
    """Samples of a run into a file or folder.

    ``by_rank``, a wrong twin, has indices that each process counts anew. A process kills itself at its first part for
    ``moment`` "half", with half of the part's file there, or "whole", with all of it.
    """
    from gftkit.api import Run
    from gftkit.generation import sampler as sampling
    from gftkit.generation import write as bulk
    from gftkit.generation.parts import Parts
    from gftkit.sampling import noise

    if by_rank:
        apart = 1000 * noise.BLOCK * int(os.environ["RANK"])
        _replace(
            sampling,
            "draw_by_block",
            lambda source, seed, first, count: noise.draw_by_block(source, seed, first + apart, count),
        )
    if moment == "half":
        killing.within_a_write(killing.Countdown(1), "samples-")
    elif moment == "whole":
        killing.around(Parts, "write", killing.Countdown(1), lambda *_: True)
    made = bulk.write(Run.open(run), sampling.Request(**request), Path(out), device="cpu", resume=resume)
    assert made.main == (os.environ["RANK"] == "0")


def refused(configs, outs, message, resume=False):
    """What each process is asked, by its rank, is refused by all of them with this message."""
    from gftkit.kernel.errors import GftkitError

    rank = int(os.environ["RANK"])
    with pytest.raises(GftkitError, match=message):
        killing.train(configs[rank], outs[rank], resume, None)


class HalfIdle(torch.nn.Module):
    """A network with weights that its output doesn't depend on, called as net(x, t)."""

    def __init__(self) -> None:
        super().__init__()
        self.idle, self.net = torch.nn.Linear(4, 4), torch.nn.Linear(3, 2)

    def forward(self, x, t):
        return self.net(torch.cat([x, t[:, None]], dim=1))
