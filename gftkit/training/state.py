"""What a monitor sees of a training run."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gftkit.data import conditions
from gftkit.data.pairing import pair
from gftkit.data.samples import Samples, Source, permuted_indices
from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Batch, Coupling, Path
from gftkit.networks.anchor import Anchor
from gftkit.runs.schema import Config
from gftkit.theory import flow


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
        training: at most ``evaluate.count`` samples of the training data, scaled.
        reference: held-out data, scaled; the training data where nothing is held out.
        evaluation: the raw weights under evaluation.
        source: draws x0.
        coupling: pairs x0 with data.
        device: where the drifts are.
        seed: of the run.
        dataset: the whole training data.
        config: what the run was asked for.
        weight: w(t) of the objective, None for 1.
    """

    step: int
    progress: float
    temperature: float
    drift: nn.Module
    ema: nn.Module
    anchor: Anchor | None
    path: Path
    training: Batch
    reference: Batch
    evaluation: Evaluation
    source: Source
    coupling: Coupling
    device: torch.device
    seed: int
    dataset: Samples
    config: Config
    weight: Callable[[Tensor], Tensor] | None = None

    @property
    def conditional(self) -> bool:
        """Whether the drift is given conditions."""
        return bool(conditions.condition_names(self.drift))

    def draw(self, count: int, generator: Generator, held_out: bool = False, keep: int | None = None) -> "Draw":
        """Fresh pairs, times and noise on training or held-out targets, on ``device``.

        Args:
            count: how many are paired as one batch; targets repeat where there are fewer.
            generator: the monitor's own, on the CPU.
            held_out: take the reference data; otherwise the whole training data.
            keep: how many of the pairs to give; all by default.
        """
        data = self.reference
        chosen = (
            data[permuted_indices(count, len(data), generator)] if held_out else self.dataset.draw(count, generator)
        )
        x0 = chosen.x0
        if x0 is None:  # otherwise the data set comes with its own pairs
            x0 = self.source(count, generator)
            named = conditions.conditions_of(self.drift, chosen)
            within = named.pop(conditions.LABEL, None) is not None
            x0 = x0[pair(self.coupling, x0, chosen.x1, generator, chosen.label, within, named)]
        chosen, x0 = chosen[:keep], x0[:keep]
        t = flow.t_end(self.path) * torch.rand(len(x0), generator=generator)
        noise = torch.randn(x0.shape, generator=generator) if flow.is_noisy(self.path) else None
        return Draw(
            t.to(self.device),
            flow.sample(self.path, t, x0, chosen.x1, noise).to(self.device),
            flow.drift(self.path, t, x0, chosen.x1, noise).to(self.device),
            self._given(chosen.to(self.device), generator),
        )

    def _given(self, batch: Batch, generator: Generator) -> dict[str, Tensor]:
        """What the drift is given, with as many left out as in training."""
        given = conditions.conditions_of(self.drift, batch)
        share = self.config.train.condition_dropout
        if share == 0:
            return given
        return conditions.without_conditions(self.drift, given, conditions.draw_dropped(len(batch), share, generator))


@dataclass(frozen=True)
class Draw:
    """States on the path: times (n,), states x_t and conditional drifts (n, *event), and the drift's conditions."""

    t: Tensor
    x: Tensor
    target: Tensor
    conditions: dict[str, Tensor]
