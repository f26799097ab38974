"""Small runs of many configurations, and digests of all that they compute: equal before and after a change of form.

``python tests/support/same_seed.py FILE`` adds the digests of this machine to FILE. A digest depends on the version of
torch and on the processor, whose vector instructions round differently; the rounded figures beside it hardly do.
"""

import hashlib
import json
import platform
import shutil
import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file

import gftkit

TINY = {
    "drift": {"name": "mlp", "width": 16, "depth": 2},
    "data": {"name": "two-moons"},
    "train": {"steps": 20, "batch_size": 16, "checkpoint_every": 10, "log_every": 5},
    "evaluate": {"every": 10, "count": 64, "solver": {"name": "euler", "steps": 4}},
    "seed": 3,
}
NOISY = {"solver": {"name": "euler-maruyama", "steps": 4}}
LABELLED = {
    **TINY,
    "drift": {"name": "unet", "width": 8, "blocks": 1, "multipliers": [1, 2], "conditional": True},
    "data": {"name": "digits", "count": 64},
    "train": {**TINY["train"], "condition_dropout": 0.2, "warmup": 3, "decay": "cosine"},
}
TUNE = {
    "data": {"name": "gaussian-mixture", "count": 50},
    "schedule": {"name": "exponential"},
    "train": TINY["train"],
    "evaluate": {**TINY["evaluate"], "data": {"name": "gaussian-mixture", "count": 64, "seed": 1}},
    "seed": 4,
}


def merged(base: Mapping[str, Any], **changes: Any) -> dict[str, Any]:
    """A configuration with changes put into its sections."""
    sections = {key: {**base.get(key, {}), **value} for key, value in changes.items() if key in ("train", "evaluate")}
    return {**base, **changes, **sections}


CASES: Mapping[str, tuple[str, str | None, Mapping[str, Any]]] = {
    "pretrain": ("pretrain", None, TINY),
    "pretrain-transport": (
        "pretrain",
        None,
        merged(
            TINY, coupling={"name": "optimal-transport"}, train={"pairing_batch": 64, "accumulate": 2, "workers": 0}
        ),
    ),
    "pretrain-bridge": ("pretrain", None, merged(TINY, path={"name": "brownian-bridge"}, evaluate=NOISY)),
    "pretrain-labels": ("pretrain", None, LABELLED),
    "finetune": ("finetune", "pretrain", TUNE),
    "finetune-shared": (
        "finetune",
        "pretrain",
        merged(TUNE, objective={"anchor_share": 0.25, "weight": "1 + t"}, schedule={"name": "constant"}),
    ),
    "finetune-penalty": ("finetune", "pretrain-transport", merged(TUNE, objective={"form": "penalty"})),
    "finetune-l2-sp": ("finetune", "pretrain", merged(TUNE, objective={"l2_sp": 0.1}, schedule={"name": "zero"})),
    "finetune-bridge": ("finetune", "pretrain-bridge", merged(TUNE, schedule={"name": "cosine"}, evaluate=NOISY)),
    "finetune-lora": ("finetune", "pretrain", merged(TUNE, adapters={"name": "lora", "rank": 2})),
    "finetune-adaptive": (
        "finetune",
        "pretrain",
        merged(TUNE, schedule={"name": "adaptive"}, monitors=[{"name": "theory"}], train={"steps": 40}),
    ),
    "finetune-labels": (
        "finetune",
        "pretrain-labels",
        merged(
            TUNE,
            data={"name": "digits", "count": 40, "split": "test"},
            train={"condition_dropout": 0.2},
            evaluate={"guidance": 1.5, "data": None},
        ),
    ),
    "distill": ("distill", "finetune", {"train": TINY["train"], "seed": 5}),
}
"""Name -> (what is run, the run that it starts from, its configuration)."""


def machine() -> str:
    """What a digest depends on beside the code."""
    model = platform.processor() or platform.machine()
    for line in Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else ():
        if line.startswith("model name"):
            model = line.split(":", 1)[1].strip()
            break
    return f"torch {torch.__version__}, {torch.backends.cpu.get_cpu_capability()}, {model}"


def run(case: str, folder: Path) -> dict[str, Any]:
    """Run a case, and those before it where they aren't there yet; its digests and figures."""
    kind, start, config = CASES[case]
    for needed in [start] if start is not None and not (folder / start).exists() else []:
        run(needed, folder)
    torch.manual_seed(0)
    out = folder / case
    shutil.rmtree(out, ignore_errors=True)  # made before, for a case that starts from it
    options = dict(config) if start is None else {**config, "pretrained": str(folder / start)}
    finished = getattr(gftkit, kind)(options, out, device="cpu")
    weights, _ = finished.weights()
    checkpoint = load_file(sorted((out / "checkpoints").glob("step-*.safetensors"))[-1])
    samples, _ = finished.samples(100, seed=1)
    log = [json.loads(line) for line in (out / "metrics.jsonl").read_text().splitlines()]
    return {
        "weights": digest(weights),
        "checkpoint": digest(checkpoint),
        "samples": digest({"samples": samples}),
        "log": hashlib.sha256(json.dumps(log, sort_keys=True).encode()).hexdigest(),
        "figures": [float(f"{value:.6g}") for value in figures(weights, samples, log)],
    }


def figures(weights: Mapping[str, torch.Tensor], samples: torch.Tensor, log: list[dict[str, Any]]) -> Iterator[float]:
    """Size of the weights, mean and size of the samples, the last loss."""
    yield float(torch.cat([tensor.flatten().double() for tensor in weights.values()]).norm())
    yield float(samples.double().mean())
    yield float(samples.double().norm())
    yield next(line["loss"] for line in reversed(log) if line["kind"] == "train")


def digest(tensors: Mapping[str, torch.Tensor]) -> str:
    """SHA-256 of named tensors: names, types, shapes and values."""
    whole = hashlib.sha256()
    for name in sorted(tensors):
        tensor = tensors[name].contiguous()
        whole.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        whole.update(tensor.reshape(-1).view(torch.uint8).numpy().tobytes())
    return whole.hexdigest()


def main(file: Path) -> None:
    """Run every case and add this machine's digests to a file."""
    torch.set_num_threads(1)
    recorded = json.loads(file.read_text()) if file.exists() else {}
    with tempfile.TemporaryDirectory() as folder:
        recorded[machine()] = {case: run(case, Path(folder)) for case in CASES}
    file.write_text(json.dumps(recorded, indent=2) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
