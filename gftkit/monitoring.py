"""What a monitor sees of a training run, and what it says of a finished one."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import TYPE_CHECKING, Any

import torch
from torch import Generator, Tensor, nn

from gftkit import conditions, flow
from gftkit.anchor import Anchor
from gftkit.config import Config
from gftkit.contracts import Batch, Coupling, Monitor, Path
from gftkit.data import Samples, Source, permuted
from gftkit.errors import RunError
from gftkit.evaluation import Evaluation
from gftkit.pairing import pair

if TYPE_CHECKING:
    from gftkit.report import Section
    from gftkit.run import Run


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
        return bool(conditions.names(self.drift))

    def draw(self, count: int, generator: Generator, held_out: bool = False, keep: int | None = None) -> "Draw":
        """Fresh pairs, times and noise on training or held-out targets, on ``device``.

        Args:
            count: how many are paired as one batch; targets repeat where there are fewer.
            generator: the monitor's own, on the CPU.
            held_out: take the reference data; otherwise the whole training data.
            keep: how many of the pairs to give; all by default.
        """
        data = self.reference
        chosen = data[permuted(count, len(data), generator)] if held_out else self.dataset.draw(count, generator)
        x0 = chosen.x0
        if x0 is None:  # otherwise the data set comes with its own pairs
            x0 = self.source(count, generator)
            named = conditions.of(self.drift, chosen)
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
        given = conditions.of(self.drift, batch)
        share = self.config.train.condition_dropout
        if share == 0:
            return given
        return conditions.without(self.drift, given, conditions.dropped(len(batch), share, generator))


@dataclass(frozen=True)
class Draw:
    """States on the path: times (n,), states x_t and conditional drifts (n, *event), and the drift's conditions."""

    t: Tensor
    x: Tensor
    target: Tensor
    conditions: dict[str, Tensor]


@dataclass(frozen=True)
class Verdict:
    """What a monitor says of a finished run.

    Attributes:
        followed: whether the run is consistent with what the monitor checks.
        lines: the reasons, in words, one sentence or two each.
        findings: the same as plain values, for JSON.
    """

    followed: bool
    lines: Sequence[str]
    findings: Mapping[str, Any] = field(default_factory=dict)


def sections(monitors: Sequence[tuple[str, Monitor]], lines: Sequence[Mapping[str, Any]]) -> "list[Section]":
    """What the monitors of a run show in its report.

    Args:
        monitors: by the name that the config gives them.
        lines: of metrics.jsonl.
    """
    shown = []
    for name, monitor in monitors:
        show = getattr(monitor, "sections", None)
        if show is not None:
            mine = [line for line in lines if line["kind"] == "monitor" and line.get("monitor") == name]
            shown += show(mine)
    return shown


def sections_of(run: "Run", name: str) -> "list[Section]":
    """The same for a finished run, every title beginning with a name that it goes by."""
    return [replace(part, title=f"{name}: {part.title}") for part in sections(_monitors(run), run.history())]


def verify_run(run: "Run") -> list[tuple[str, Verdict]]:
    """What each monitor of a finished run says of it, from the run's files alone.

    Raises:
        RunError: for a run that isn't finished, a pretraining, one whose monitors give no verdict, and files that are
            missing or damaged.
    """
    if run.config.kind != "finetune":
        what = "a pretraining" if run.config.kind == "pretrain" else "a distillation"
        raise RunError(f"{run.folder} is {what}: only a fine-tune has a theory to follow. Verify one of those.")
    if not run.finished:
        raise RunError(f"{run.folder}: the run isn't finished. Go on with it by --resume, then verify it.")
    judges = [(name, monitor) for name, monitor in _monitors(run) if hasattr(monitor, "verdict")]
    if not judges:
        raise RunError(
            f"{run.folder}: nothing that tells was measured beside the run. Add `monitors: [{{name: theory}}]` to its "
            f"config and run it again."
        )
    return [(name, monitor.verdict(run)) for name, monitor in judges]


def _monitors(run: "Run") -> list[tuple[str, Any]]:
    """The monitors of a run's config, made anew."""
    return [(spec["name"], run.registry.build("monitor", spec, "monitors")) for spec in run.config.monitors]
