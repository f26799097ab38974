"""Loops of one's own on two processes: DDP with adapters or a frozen copy, FSDP with a frozen copy, accelerate."""

import pytest
import torch
import torch.distributed as dist
from support import process_groups as several
from torch import nn

from gftkit.gradual import Gradual
from gftkit.kernel.errors import ConfigError

STEPS = 4
ROUND_OFF = 1e-5
"""Of float32: the mean over two processes is a sum in another order."""


class Net(nn.Module):
    def __init__(self):
        super().__init__()
        self.first, self.last = nn.Linear(3, 16), nn.Linear(16, 2)

    def forward(self, t, x):
        return self.last(self.first(torch.cat([x, t[:, None]], 1)).tanh())


def batches(part):
    """The samples of each step, of one of two processes or of both."""
    generator = torch.Generator().manual_seed(0)
    for _ in range(STEPS):
        t, x, target = torch.rand(8, generator=generator), *torch.randn(2, 8, 2, generator=generator)
        yield t[part], x[part], target[part]


def train(net, model, gft, part):
    """The last loss of a short run."""
    optimizer = torch.optim.SGD([weight for weight in model.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for step, (t, x, target) in enumerate(batches(part)):
        loss = gft.loss(step, model(t, x), target, lambda each, t=t, x=x: each(t, x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    gft.check()
    assert "reached" in gft.measured()
    return torch.stack(losses)


def make(adapted):
    torch.manual_seed(0)
    net = Net()
    if adapted:
        import peft

        net = peft.inject_adapter_in_model(peft.LoraConfig(r=2, target_modules=["first", "last"]), net)
    return net


def work(way, adapted, expected):
    """One of two processes: its losses, meaned over both, are those of one process."""
    dist.init_process_group("gloo")
    net = make(adapted)
    gft = Gradual(STEPS, {"name": "constant", "value": 1.0})
    if way == "accelerate":
        from accelerate import Accelerator

        accelerator = Accelerator(cpu=True)
        gft.anchor_of(net)
        model = accelerator.prepare(net)
        accelerator.register_for_checkpointing(gft)
    elif way == "fsdp":
        from torch.distributed.device_mesh import init_device_mesh
        from torch.distributed.fsdp import fully_shard

        gft.anchor_of(net)
        model = fully_shard(net, mesh=init_device_mesh("cpu", (2,)))
        with pytest.raises(ConfigError, match="Call anchor_of before it is wrapped"):
            Gradual(STEPS).anchor_of(model)
    else:
        model = nn.parallel.DistributedDataParallel(net)
        gft.anchor_of(model)
    losses = train(net, model, gft, slice(dist.get_rank(), None, 2))
    dist.all_reduce(losses)
    torch.testing.assert_close(losses / 2, torch.tensor(expected), rtol=ROUND_OFF, atol=0)
    dist.barrier()  # neither ends while the other still needs it


@pytest.mark.slow
@pytest.mark.parametrize(
    ("way", "adapted"), [("ddp", False), ("ddp", True), ("accelerate", True), ("accelerate", False), ("fsdp", False)]
)
def test_two_processes_follow_one(way, adapted):
    net = make(adapted)
    gft = Gradual(STEPS, {"name": "constant", "value": 1.0})
    gft.anchor_of(net)
    losses = train(net, net, gft, slice(None))
    assert not torch.allclose(losses, _plain(make(adapted)), rtol=100 * ROUND_OFF)
    several.run(work, way, adapted, losses.tolist())


def _plain(net):
    """The losses without an anchor: what a loop would show that forgot it."""
    optimizer = torch.optim.SGD([weight for weight in net.parameters() if weight.requires_grad], lr=0.1)
    losses = []
    for t, x, target in batches(slice(None)):
        loss = nn.functional.mse_loss(net(t, x), target)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        losses.append(loss.detach())
    return torch.stack(losses)
