"""A run's configuration: its sections, their keys, defaults and ranges."""

from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Annotated, Any, Literal

from pydantic import Field

from gftkit.data.blocks import SHUFFLE_BUFFER
from gftkit.data.pairing import Within
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Spec
from gftkit.networks.adapters import Adapters
from gftkit.networks.precision import Precision

RunKind = Literal["pretrain", "finetune", "distill"]

Count = Annotated[int, Field(gt=0)]
AnchorShare = Annotated[float, Field(gt=0, le=1)] | Literal["retention"]


@dataclass(frozen=True)
class Train:
    """Settings of training.

    Args:
        steps: optimiser steps.
        batch_size: pairs in a step, over all devices together.
        learning_rate: the peak learning rate.
        optimizer: a torch.optim optimiser by name, or of another library by its import path, such as
            `schedulefree:AdamWScheduleFree`; or {name: ..., **its options}.
        warmup: steps over which the learning rate rises linearly to its peak.
        decay: how the learning rate falls after the warm-up: not at all, or to 0 at the last step.
        clip: the largest gradient norm; null for none.
        ema: decay of the exponential moving average of the weights; null for 1 - 10/steps within [0.9, 0.9999].
        pairing_batch: samples that the coupling pairs at once, a multiple of batch_size; null for batch_size.
        pairing: with several processes, pair over the batch of all of them, or within each process's share of it.
        workers: processes that read and pair ahead of the loop; null for 2 with a GPU, 0 without.
        accumulate: parts that a batch is split into and evaluated in one after another, to save memory.
        precision: of the networks' activations; weights, states and losses are always float32.
        gradient_checkpointing: recompute the activations inside the network's blocks for the gradient, to save memory.
        channels_last: keep images and convolutions with the channel as the innermost dimension.
        compile: compile drift and anchor together by torch.compile.
        shuffle_buffer: samples that are shuffled together where data are read block by block, such as shards.
        checkpoint_every: steps between checkpoints; null for a tenth of the run.
        keep_checkpoints: number of checkpoints to keep.
        log_every: steps between lines of metrics.jsonl.
        condition_dropout: probability of leaving out a sample's conditions in a step; guided sampling requires it.
    """

    steps: Count = 3000
    batch_size: Count = 128
    learning_rate: Annotated[float, Field(gt=0)] = 1e-3
    optimizer: str | dict[str, Any] = "adam"
    warmup: Annotated[int, Field(ge=0)] = 0
    decay: Literal["constant", "cosine", "linear"] = "constant"
    clip: Annotated[float, Field(gt=0)] | None = 1.0
    ema: Annotated[float, Field(ge=0, lt=1)] | None = None
    pairing_batch: Count | None = None
    pairing: Within = "global"
    workers: Annotated[int, Field(ge=0)] | None = None
    accumulate: Count = 1
    precision: Precision = "float32"
    gradient_checkpointing: bool = False
    channels_last: bool = False
    compile: bool = False
    shuffle_buffer: Count = SHUFFLE_BUFFER
    checkpoint_every: Count | None = None
    keep_checkpoints: Count = 2
    log_every: Count = 10
    condition_dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0


@dataclass(frozen=True)
class Objective:
    """Settings of the objective.

    Args:
        form: "blended" (one target between data and anchor) or "penalty" (two terms; its gradient is 1 + temperature
            times as large).
        weight: w(t) >= 0, a formula in t, finite on [0, t_end] of the path.
        time: the law by which t is drawn, {name: ...}, scaled onto [0, t_end] of the path.
        anchor_share: share of each batch on which the anchor is evaluated, in (0, 1], or "retention", which falls
            with the temperature, so that the anchor costs little late in a run. Below 1 the gradient stays unbiased
            and becomes noisier.
        l2_sp: alpha of L2-SP, which adds (alpha/2) |w - w_start|^2 over all weights w to the loss, so that they are
            pulled to the pretrained ones; 0 for none. For fine-tunes without adapters.
    """

    form: Literal["blended", "penalty"] = "blended"
    weight: str = "1"
    time: Spec = field(default_factory=lambda: {"name": "uniform"})
    anchor_share: AnchorShare = 1.0
    l2_sp: Annotated[float, Field(ge=0)] = 0.0


@dataclass(frozen=True)
class Evaluate:
    """Settings of the evaluations of a run.

    Args:
        data: held-out samples, {name: ...}; null to compare with the training data.
        every: steps between evaluations; null for a twentieth of the run.
        averaged: evaluate the averaged weights at every evaluation too, not only at the end.
        count: samples to generate, and the largest number taken of the training and the held-out data.
        metrics: metrics by name, or {name: ..., **options}.
        ends: further metrics, which are measured only before the first step and, on the averaged weights, at the end.
        solver: {name: ..., steps: ..., **options}; null for euler, or euler-maruyama on a stochastic path.
            ``grid: {name: ...}`` places the times of the steps, and ``diffusion: {name: ...}`` samples a velocity's
            flow stochastically.
        guidance: scale of classifier-free guidance; 1 for none. Other scales require train.condition_dropout.
    """

    data: Spec | None = None
    every: Count | None = None
    averaged: bool = False
    count: Count = 1000
    metrics: list[str | dict[str, Any]] | None = None
    ends: list[str | dict[str, Any]] = field(default_factory=list)
    solver: Spec | None = None
    guidance: Annotated[float, Field(ge=0)] = 1.0


@dataclass(frozen=True)
class Config:
    """A resolved configuration: every default filled in, every path absolute.

    Args:
        kind: "pretrain", "finetune" or "distill".
        drift: the network.
        data: the samples to learn.
        source: the samples that are transported to the data.
        path: the conditional path.
        coupling: pairs source samples with data samples.
        train: how to train.
        evaluate: how the run is evaluated.
        monitors: measurements during training.
        seed: of everything random.
        pretrained: a run folder or weights file; fine-tuning only, and null where the drift brings its weights.
        schedule: the temperature; fine-tuning only.
        stop: a rule that may end the run before its last step; null for none.
        anchor: the pretrained drift that the fine-tune is held to; fine-tuning only.
        adapters: small layers that are trained instead of all weights; fine-tuning only.
        objective: the loss that is minimised.
        track: trackers that receive what is logged.
    """

    kind: RunKind
    drift: Spec
    data: Spec
    source: Spec
    path: Spec
    coupling: Spec
    train: Train
    evaluate: Evaluate
    monitors: list[Spec]
    seed: int
    pretrained: Path | None
    schedule: Spec | None
    objective: Objective
    track: list[Spec]
    anchor: Spec | None = None
    adapters: Adapters | None = None
    stop: Spec | None = None

    @property
    def start(self) -> Path | None:
        """The run folder or file of the weights that a run starts from; None for new weights."""
        return self.pretrained or self.drift.get("weights")

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as in config.yaml; keys without a value are left out."""
        values = {key: value for key, value in asdict(self).items() if key != "kind" and value is not None}
        return plain(values)


KEYS = (
    *("drift", "source", "path", "coupling", "data", "train", "evaluate", "monitors", "track", "seed", "objective"),
    "stop",
)
FINETUNE_KEYS = (*KEYS, "pretrained", "schedule", "anchor", "adapters")
DISTILL_KEYS = (*(key for key in KEYS if key not in ("monitors", "objective", "stop")), "pretrained")
JUMPS: Mapping[str, Any] = {"name": "flow-map", "steps": 2}
"""The solver of a student by default."""
INHERITED = ("drift", "source", "path", "coupling")
DEFAULTS: Mapping[str, Spec] = {
    "source": {"name": "gaussian"},
    "path": {"name": "linear"},
    "coupling": {"name": "independent"},
}


def without_weights(drift: Mapping[str, Any]) -> Spec:
    """The spec of a drift without its weights file, which isn't read where its weights come from elsewhere."""
    return {**drift, "weights": None} if "weights" in drift else dict(drift)
