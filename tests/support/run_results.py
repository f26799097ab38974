"""All that a finished run is, so that two runs can be compared bit for bit; small runs to compare."""

import json

import torch
from safetensors.torch import load_file
from support.event_files import events

from gftkit.runs import checkpoint

MLP = {
    "drift": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "two-moons"},
    "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "log_every": 2, "decay": "cosine", "warmup": 4},
    "evaluate": {"every": 6, "count": 24, "solver": {"name": "euler", "steps": 2}},
    "seed": 5,
}


def tuned(pretrained, **changes):
    """A fine-tune that everything random takes part in, with a monitor that has a memory."""
    return {
        **{key: MLP[key] for key in ("train", "evaluate", "seed")},
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 20},
        "coupling": {"name": "optimal-transport"},
        "schedule": {"name": "exponential"},
        "monitors": [{"name": "theory", "batches": 2}],
        **changes,
    }


def result(folder):
    """All that a run is, apart from its seconds: weights, optimiser, log, monitors' files, names of checkpoints."""
    last, damaged = checkpoint.latest(folder / "checkpoints")
    assert not damaged
    summary = json.loads((folder / "summary.json").read_text())
    theory = folder / "theory.json"
    return {
        "model": values(load_file(folder / "model.safetensors")),
        "checkpoint": values(last.tensors),
        "optimizer": last.notes["optimizer"],
        "log": (folder / "metrics.jsonl").read_text(),
        "summary": {key: value for key, value in summary.items() if key != "seconds"},
        "theory": theory.read_text() if theory.exists() else None,
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard" not in path.parts),
        "events": {name: held for name, held in told(folder).items() if "/ema/" not in name},
    }


def told(folder):
    """What TensorBoard was told, numbers and pictures, by name."""
    if not (folder / "tensorboard").exists():
        return {}
    numbers, pictures = events(folder / "tensorboard")
    return pictures | {f"{name} {step}": values for (name, step), values in numbers.items()}


def values(tensors):
    """The bytes of tensors by name."""
    return {name: held.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, held in tensors.items()}
