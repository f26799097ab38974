"""The networks of a finished run, restored from its folder."""

from pathlib import Path

import torch
from torch import nn

from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.experiment.building import adapt, build_drift
from gftkit.experiment.networks import starting_networks
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import RunError
from gftkit.networks.adapters import AdaptedDrift
from gftkit.networks.state import load_weights
from gftkit.runs.folder import ADAPTER, RunFolder, Weights
from gftkit.runtime.randomness import stream
from gftkit.storage.tensors import State, digest


def weights_of(run: RunFolder, weights: Weights = "ema") -> tuple[State, str]:
    """The averaged weights (of model.safetensors) or the raw ones (of the last checkpoint), and their digest.

    Raises:
        RunError: where the run isn't finished.
        WeightsError: where the file is damaged.
    """
    if weights == "ema":
        file = run.averages()
        return file.tensors, file.digest or digest(file.tensors)
    if run.config.adapters is None:
        tensors = run.last_checkpoint().part("drift.")
    else:
        tensors = adapted_drift(run, run.facts).merged()
    return tensors, digest(tensors)


def trained_drift(
    run: RunFolder, weights: Weights = "ema", device: torch.device | str = "cpu"
) -> tuple[nn.Module, str]:
    """The trained drift, in evaluation mode, and the digest of its weights; raises as ``weights_of``."""
    tensors, weights_digest = weights_of(run, weights)
    drift = build_drift(run.spec("drift"), run.facts, run.registry, run.path)
    load_weights(drift, tensors, run.folder)
    return drift.eval().requires_grad_(False).to(device), weights_digest


def adapted_drift(run: RunFolder, facts: Facts, weights: Weights = "raw") -> AdaptedDrift:
    """The drift with its adapters in the pretrained network: raw ones of the last checkpoint, or their averages.

    Raises:
        RunError: where the pretrained weights have changed since, and where no checkpoint is left.
        WeightsError: where the averages are missing or damaged.
    """
    newest = run.last_checkpoint() if weights == "raw" else None
    file: Path
    file, base = (
        (run.folder / ADAPTER, run.notes.get("base")) if newest is None else (newest.path, newest.notes.get("base"))
    )
    start, _ = starting_networks(run, facts)
    if start.digest != base:
        raise RunError(
            f"{file} contains adapters for {run.config.start}, and the weights there have changed. "
            f"Restore them, or use the EMA weights, which are stored with the adapters merged in."
        )
    adapted = adapt(start.drift, run.config, facts)
    if newest is None:
        adapted.load(file)
    else:
        newest.fill(start.drift)
    return adapted


def training_data(run: RunFolder, count: int) -> Batch:
    """At most ``count`` samples of a run's training data, scaled; the same ones for the same ``count``."""
    return samples_of(run).some(count, stream(run.config.seed, "training"))


def samples_of(run: RunFolder, event_shape: tuple[int, ...] | None = None) -> Samples:
    """Build the training data of a run."""
    return Samples(run.registry.build("dataset", run.config.data, "data"), "data", event_shape)
