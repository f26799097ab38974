"""The networks of a finished run, restored from its folder."""

import torch
from torch import nn

from gftkit.data.samples import Samples
from gftkit.experiment.building import build_drift
from gftkit.experiment.networks import adapted_drift, averaged_weights
from gftkit.kernel.contracts import Batch
from gftkit.networks.state import load_weights
from gftkit.runs.folder import RunFolder, Weights
from gftkit.runtime.randomness import stream
from gftkit.storage.tensors import State, digest


def weights_of(run: RunFolder, weights: Weights = "ema") -> tuple[State, str]:
    """The averaged weights (of model.safetensors) or the raw ones (of the last checkpoint), and their digest.

    Raises:
        RunError: where the run isn't finished.
        WeightsError: where the file is damaged.
    """
    if weights == "ema":
        file = averaged_weights(run)
        return file.tensors, (file.digest or digest(file.tensors)) if run.has_base else run.adapted_digest
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


def training_data(run: RunFolder, count: int) -> Batch:
    """At most ``count`` samples of a run's training data, scaled; the same ones for the same ``count``."""
    return samples_of(run).some(count, stream(run.config.seed, "training"))


def samples_of(run: RunFolder, event_shape: tuple[int, ...] | None = None) -> Samples:
    """Build the training data of a run."""
    return Samples(run.registry.build("dataset", run.config.data, "data"), "data", event_shape)
