"""A small network with a layer of every type, adapters in it, and fine-tunes with adapters."""

from pathlib import Path

import torch
from torch import nn

from gftkit.experiment.build import build
from gftkit.networks.adapters import AdaptedDrift
from gftkit.runs.resolve import resolve_config
from gftkit.runtime.devices import start_accelerator
from gftkit.runtime.progress import Progress
from gftkit.training import loop

ROUND_OFF = 1e-5
"""Of float32 sums in another order, relative to the largest output."""


class Small(nn.Module):
    """A drift with every type of layer, with dropout, and told a label."""

    conditions = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Embedding(3, 8)
        self.first = nn.Conv2d(1, 8, 3, padding=1)
        self.norm = nn.GroupNorm(2, 8)
        self.inner = nn.ModuleDict({"mix": nn.Conv1d(8, 8, 1, bias=False), "first": nn.Linear(8, 8)})
        self.drop = nn.Dropout(0.5)
        self.last = nn.Conv2d(8, 1, 3, padding=1)

    def forward(self, t, x, label):
        told = self.inner["first"](self.embed(label) * t[:, None])
        h = self.norm(self.first(x)) + told[:, :, None, None]
        h = h + self.inner["mix"](self.drop(h).flatten(2)).reshape(h.shape)
        return self.last(torch.sigmoid(h))


def inputs(count=5):
    generator = torch.Generator().manual_seed(0)
    t, x = torch.rand(count, generator=generator), torch.randn(count, 1, 4, 4, generator=generator)
    return {"t": t, "x": x, "label": torch.arange(count) % 3}


def adapt(drift, options, seed=0):
    return AdaptedDrift(drift, options, lambda: drift(**inputs()), torch.Generator().manual_seed(seed))


def train(adapted):
    for parameter in adapted.drift.parameters():
        if parameter.requires_grad:
            nn.init.normal_(parameter, std=0.3)
    return adapted


def read_by_peft(plain, folder):
    """The plain network with adapters that peft reads from a folder, in evaluation mode."""
    from peft import PeftModel  # takes seconds to import: no other test should wait for it

    return PeftModel.from_pretrained(plain, folder).eval()


def close(one, other):
    assert (one - other).abs().max() < ROUND_OFF * other.abs().max()


# Runs


PRETRAIN = {
    "drift": {"name": "unet", "width": 4, "multipliers": [1, 2], "dropout": 0.2, "conditional": True},
    "data": {"name": "digits", "count": 60},
    "train": {"steps": 8, "batch_size": 8, "learning_rate": 0.01},
    "evaluate": {"every": 8, "count": 20, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
    "seed": 3,
}


def tuning(source, **changes):
    """A fine-tune's configuration, with adapters."""
    return {
        "pretrained": str(source),
        "data": {"name": "digits", "count": 40, "seed": 1},
        "schedule": {"name": "constant", "value": 1.0},
        "adapters": {"name": "lora", "rank": 4, "dropout": 0.1},
        "train": {"steps": 6, "batch_size": 8, "checkpoint_every": 3, "keep_checkpoints": 9, "learning_rate": 0.02},
        "evaluate": PRETRAIN["evaluate"],
        "monitors": ["anchor-distance"],
        "seed": 2,
        **changes,
    }


def run_loop(config, registry):
    experiment = build(resolve_config(config, "finetune", registry)[0], registry)
    return loop.Loop(experiment, registry, Path(), start_accelerator("cpu"), Progress(6, "finetune", quiet=True))
