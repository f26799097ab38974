"""What a monitor sees of a training run."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gftkit import flow
from gftkit.anchor import FrozenAnchor
from gftkit.contracts import Batch, Coupling, Path
from gftkit.data import Source, permuted
from gftkit.evaluation import Evaluation
from gftkit.pairing import pair


@dataclass(frozen=True)
class TrainingState:
    """What a monitor sees at an evaluation step. Nothing in it may be changed.

    Attributes:
        step: optimiser steps done.
        progress: share of the run done, in [0, 1].
        temperature: beta now; 0 in pretraining.
        drift: the raw weights, in evaluation mode.
        ema: the averaged weights.
        anchor: the pretrained drift, None in pretraining.
        path: the conditional path.
        training: training data, scaled.
        reference: held-out data, scaled; the training data where nothing is held out.
        evaluation: the raw weights under evaluation.
        source: draws x0.
        coupling: pairs x0 with data.
        device: where the drifts are.
        seed: of the run.
    """

    step: int
    progress: float
    temperature: float
    drift: nn.Module
    ema: nn.Module
    anchor: FrozenAnchor | None
    path: Path
    training: Batch
    reference: Batch
    evaluation: Evaluation
    source: Source
    coupling: Coupling
    device: torch.device
    seed: int

    def draw(self, count: int, generator: Generator, held_out: bool = False) -> "Draw":
        """Fresh pairs, times and noise on training or held-out targets, (count, ...), on ``device``.

        Args:
            count: how many, paired as one batch; targets repeat where there are fewer.
            generator: the monitor's own, on the CPU.
            held_out: take the reference data.
        """
        data = self.reference if held_out else self.training
        chosen = data[permuted(count, len(data), generator)]
        x0 = self.source(count, generator)
        conditional = "label" in getattr(self.drift, "conditions", ())
        x0 = x0[pair(self.coupling, x0, chosen.x1, generator, chosen.label, conditional)]
        t = flow.t_end(self.path) * torch.rand(count, generator=generator)
        noise = torch.randn(x0.shape, generator=generator) if flow.is_noisy(self.path) else None
        conditions = {"label": chosen.label.to(self.device)} if conditional and chosen.label is not None else {}
        return Draw(
            t.to(self.device),
            flow.sample(self.path, t, x0, chosen.x1, noise).to(self.device),
            flow.drift(self.path, t, x0, chosen.x1, noise).to(self.device),
            conditions,
        )


@dataclass(frozen=True)
class Draw:
    """States on the path: times (n,), states x_t and conditional drifts (n, *event), and the drift's conditions."""

    t: Tensor
    x: Tensor
    target: Tensor
    conditions: dict[str, Tensor]
