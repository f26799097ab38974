"""The shipped steps of training on a Gaussian problem in two dimensions, without a run folder."""

import torch

from gftkit.runs.schema import Train
from gftkit_verification.testbeds import trials


def small_loop(registry, share=1.0, drift=None, **train):
    """The shipped steps on a Gaussian problem in two dimensions."""
    torch.manual_seed(0)
    return trials.trial(
        registry,
        drift or registry.create("drift", "mlp", event_shape=(2,), width=8),
        registry.create("dataset", "gaussian-mixture"),
        lambda n, generator: torch.randn(n, 2, generator=generator),
        registry.create("path", "linear"),
        registry.create("coupling", "optimal-transport"),
        0.5,
        Train(**{"steps": 8, "batch_size": 8, **train}),
        seed=1,
        anchor_share=share,
    )
