"""Peak memory of a fine-tune on the CPU, by what is trained: at the start, in the steps, and at the end.

    python benchmarks/memory.py                          # a transformer of 200 million weights: takes some minutes
    python benchmarks/memory.py --width 256 --layers 4   # a smaller one

Each fine-tune runs in a process of its own, from a safetensors file of random weights. Peak memory is the largest
resident set of a phase (VmHWM of Linux, which is reset between phases), less what the process has once torch and gftkit
are imported. The allocator is set to give large blocks back at once.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from safetensors.torch import save_file
from torch import Tensor, nn

from gftkit.storage.documents import write_json

TOKENS, CHANNELS, BATCH, STEPS = 64, 16, 8, 3

METHODS: dict[str, dict[str, Any]] = {
    "all weights": {},
    "all weights, gradient checkpointing": {"train": {"gradient_checkpointing": True}},
    "LoRA, rank 16": {"adapters": {"rank": 16}},
    "LoRA, rank 16, base in bfloat16": {"adapters": {"rank": 16, "base_type": "bfloat16"}},
    "LoRA, rank 16, base in bfloat16, gradient checkpointing": {
        "adapters": {"rank": 16, "base_type": "bfloat16"},
        "train": {"gradient_checkpointing": True},
    },
}


class Block(nn.Module):
    """A pre-norm transformer block without dropout."""

    def __init__(self, width: int) -> None:
        super().__init__()
        self.heads = max(1, width // 64)
        self.norm_attention, self.norm_feedforward = nn.LayerNorm(width), nn.LayerNorm(width)
        self.to_qkv, self.to_out = nn.Linear(width, 3 * width), nn.Linear(width, width)
        self.up, self.down = nn.Linear(width, 4 * width), nn.Linear(4 * width, width)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, tokens, width) -> the same."""
        batch, tokens, width = x.shape
        qkv = self.to_qkv(self.norm_attention(x)).reshape(batch, tokens, 3, self.heads, -1).permute(2, 0, 3, 1, 4)
        attended = nn.functional.scaled_dot_product_attention(*qkv).transpose(1, 2).reshape(batch, tokens, width)
        x = x + self.to_out(attended)
        return x + self.down(nn.functional.gelu(self.up(self.norm_feedforward(x))))


class Transformer(nn.Module):
    """A velocity of tokens: 12 width^2 weights in a layer."""

    def __init__(self, width: int = 1024, layers: int = 16) -> None:
        super().__init__()
        self.first, self.time, self.last = nn.Linear(CHANNELS, width), nn.Linear(1, width), nn.Linear(width, CHANNELS)
        self.blocks = nn.ModuleList(Block(width) for _ in range(layers))

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """(batch,), (batch, tokens, channels) -> (batch, tokens, channels)."""
        hidden = self.first(x) + self.time(t[:, None])[:, None]
        for block in self.blocks:
            hidden = block(hidden)
        out: Tensor = self.last(hidden)
        return out


def configuration(folder: Path, width: int, layers: int, method: str) -> dict[str, Any]:
    """A fine-tune of the network in a folder."""
    changes = METHODS[method]
    train = {"steps": STEPS, "batch_size": BATCH, "ema": 0.9, "keep_checkpoints": 1, "checkpoint_every": STEPS}
    configured: dict[str, Any] = {
        "drift": {
            "name": "module",
            "target": "memory:Transformer",
            "folder": str(Path(__file__).parent),
            "options": {"width": width, "layers": layers},
            "weights": str(folder / "weights.safetensors"),
            "convention": "torchcfm",
        },
        "data": {"name": "arrays", "file": str(folder / "data.npz")},
        "schedule": "exponential",
        "train": {**train, **changes.get("train", {})},
        "evaluate": {"metrics": [], "count": 2, "every": STEPS, "solver": {"name": "euler", "steps": 1}},
    }
    return configured | ({"adapters": changes["adapters"]} if "adapters" in changes else {})


def peak() -> float:
    """Largest resident set since the last call, in MB."""
    status = Path("/proc/self/status").read_text(encoding="utf-8")
    kilobytes = next(line for line in status.splitlines() if line.startswith("VmHWM"))
    Path("/proc/self/clear_refs").write_text("5", encoding="utf-8")  # resets VmHWM
    return float(kilobytes.split()[1]) / 1024


def measure(config: dict[str, Any], out: Path) -> dict[str, float]:
    """Peak memory of the phases of a fine-tune, in MB above what the imports take; called in a process of its own."""
    from gftkit import finetune
    from gftkit.training.loop import Loop

    phases: dict[str, float] = {}
    train, finish = Loop._train, Loop._finish

    def training(loop: Any, *args: Any, **options: Any) -> None:
        phases["start"] = peak()
        train(loop, *args, **options)

    def finishing(loop: Any, *args: Any, **options: Any) -> None:
        phases["steps"] = peak()
        finish(loop, *args, **options)

    Loop._train, Loop._finish = training, finishing  # type: ignore[method-assign]
    import accelerate  # noqa: F401  # before the base is measured, as everything else that is imported

    if "adapters" in config:
        import peft  # noqa: F401
    peak()
    base = peak()
    finetune(config, out)
    phases["end"] = peak()
    return {phase: value - base for phase, value in phases.items()}


def run(width: int, layers: int, methods: Sequence[str]) -> dict[str, Any]:
    """Measure each method in a process of its own."""
    results: dict[str, Any] = {}
    environment = os.environ | {"MALLOC_MMAP_THRESHOLD_": "65536", "MALLOC_TRIM_THRESHOLD_": "0"}
    with tempfile.TemporaryDirectory() as temporary:
        folder = Path(temporary)
        torch.manual_seed(0)
        network = Transformer(width, layers)
        save_file(network.state_dict(), folder / "weights.safetensors")
        weights = sum(weight.numel() for weight in network.parameters())
        del network
        data = np.random.default_rng(0).normal(size=(4 * BATCH, TOKENS, CHANNELS)).astype(np.float32)
        np.savez(folder / "data.npz", x1=data)
        print(f"{weights:,} weights, {4 * weights / 2**20:,.0f} MB in float32", flush=True)
        for index, method in enumerate(methods):
            config = json.dumps(configuration(folder, width, layers, method))
            command = [sys.executable, __file__, "--config", config, "--out", str(folder / str(index))]
            done = subprocess.run(command, env=environment, check=True, stdout=subprocess.PIPE, text=True)
            results[method] = json.loads(done.stdout.splitlines()[-1])
            sizes = ", ".join(f"{phase} {value:,.0f} MB" for phase, value in results[method].items())
            print(f"{method}: {sizes}", flush=True)
    return {"weights": weights, "methods": results}


def main() -> None:
    """Read the command line, measure, and write the figures."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--width", type=int, default=1024, help="of the transformer")
    parser.add_argument("--layers", type=int, default=16, help="of the transformer")
    parser.add_argument("--methods", nargs="*", default=list(METHODS), choices=list(METHODS), metavar="METHOD")
    parser.add_argument("--json", type=Path, help="a file for the figures")
    parser.add_argument("--config", help=argparse.SUPPRESS)
    parser.add_argument("--out", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.config:
        print(json.dumps(measure(json.loads(options.config), options.out)))
        return
    results = run(options.width, options.layers, options.methods)
    if options.json:
        write_json(options.json, results)


if __name__ == "__main__":
    main()
