"""The shipped steps of training on a Gaussian problem in two dimensions, without a run folder."""

import torch

from gftkit.runs.schema import Train
from gftkit_verification.testbeds.loops import shipped as loops


def small_loop(registry, share=1.0, drift=None, **train):
    """The shipped steps on a Gaussian problem in two dimensions."""
    torch.manual_seed(0)
    return loops.build_loop(
        registry=registry,
        drift=drift or registry.create("drift", "mlp", event_shape=(2,), width=8),
        data=registry.create("dataset", "gaussian-mixture"),
        source=lambda n, generator: torch.randn(n, 2, generator=generator),
        path=registry.create("path", "linear"),
        coupling=registry.create("coupling", "optimal-transport"),
        schedule=0.5,
        train=Train(**{"steps": 8, "batch_size": 8, **train}),
        seed=1,
        anchor_share=share,
    )
