"""Monitors: measurements beside a training run."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field

import gftkit
from gftkit.kernel import TrainingView
from gftkit.runtime import stream
from gftkit.theory import squared_norm
from gftkit_plugins.sample_retention import SampleRetention


class AnchorDistance:
    """Distance of the drift from the pretrained one: (E|b - b_pre|^2)^(1/2) along the path.

    Measured on training targets with fresh source samples, times and noise, the same at every step. At the optimum of
    a temperature it is (1 - rho) times the drift gap (theory, T1); that of the run's flow matching loss, also on raw
    weights, is logged beside it. In pretraining, without an anchor, only the loss is.

    Args:
        count: pairs to measure on.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("monitor", "anchor-distance", count=64).count
        64
    """

    def __init__(self, count: Annotated[int, Field(gt=0)] = 512) -> None:
        self.count = count

    @torch.no_grad()
    def observe(self, state: TrainingView) -> dict[str, float]:
        """``flow_matching_loss``, E|b - b_t(x|z)|^2, and ``anchor_distance``."""
        drawn = state.draw(self.count, stream(state.seed, "anchor-distance"))
        drift = state.drift(drawn.t, drawn.x, **drawn.conditions)
        measurements = {"flow_matching_loss": float(squared_norm(drift - drawn.target).mean())}
        if state.anchor is not None:
            anchored = state.anchor(drawn.t, drawn.x, **drawn.anchor_conditions)
            measurements["anchor_distance"] = float(squared_norm(drift - anchored).mean().sqrt())
        return measurements

    def finish(self, folder: Path) -> None:
        """Nothing to write: the measurements are in metrics.jsonl."""


@gftkit.hookimpl
def gftkit_monitors() -> dict[str, type]:
    """The built-in monitors."""
    return {"anchor-distance": AnchorDistance, "sample-retention": SampleRetention}
