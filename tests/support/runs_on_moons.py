"""A short pretraining on two-moons, a fine-tune of it, and what a run folder holds."""

import json
from pathlib import Path

import torch
from safetensors.torch import load_file

from gftkit.runs import checkpoint

STEPS = 24
PRETRAIN = {
    "drift": {"name": "mlp", "width": 16, "depth": 2},
    "data": {"name": "two-moons"},
    "coupling": {"name": "optimal-transport"},
    "train": {"steps": STEPS, "batch_size": 16, "pairing_batch": 48, "checkpoint_every": 8, "keep_checkpoints": 9},
    "evaluate": {
        "every": 8,
        "count": 40,
        "metrics": [{"name": "path-length"}],
        "solver": {"name": "euler", "steps": 3},
    },
    "seed": 4,
}


def model(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


def interrupt(folder, stop):
    """Take a finished run back to just after its checkpoint of step ``stop``, some steps of log included."""
    for path in checkpoint.checkpoints_of(folder / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > stop:
            path.unlink()
    (folder / "model.safetensors").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= stop + 2]
    (folder / "metrics.jsonl").write_text("".join(kept) + '{"step": 11, "ki')
