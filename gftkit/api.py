"""Runs from Python: train one, open one, sample and measure it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypedDict, Unpack

import torch
from torch import Tensor, nn

from gftkit.data.description import Facts
from gftkit.experiment import restore
from gftkit.generation.evaluate import evaluate
from gftkit.generation.requested_retention import RetentionRequest
from gftkit.generation.sampler import BATCH_SIZE, Request, RunSampler
from gftkit.kernel.contracts import Batch
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks.precision import Precision
from gftkit.runs.folder import RunFolder, Weights
from gftkit.storage.tensors import State
from gftkit.training.train import train


class Run(RunFolder):
    """A run folder: its configuration, weights, samples and measurements. Made by ``Run.open``."""

    def weights(self, weights: Weights = "ema") -> tuple[State, Facts]:
        """The EMA weights or the raw ones (of the last checkpoint), adapters merged in, and the data's facts.

        Raises:
            RunError: where the run isn't finished.
            WeightsError: where the file is damaged.
        """
        return restore.weights_of(self, weights)[0], self.facts

    def drift(self, weights: Weights = "ema", device: torch.device | str = "cpu") -> nn.Module:
        """The trained drift, in evaluation mode; raises as ``weights``."""
        return restore.trained_drift(self, weights, device)[0]

    def training_data(self, count: int) -> Batch:
        """At most ``count`` samples of its training data, scaled; the same ones for the same ``count``."""
        return restore.training_data(self, count)

    def samples(  # noqa: PLR0913
        self,
        count: int,
        seed: int = 0,
        solver: Spec | None = None,
        label: int | None = None,
        weights: Weights = "ema",
        device: torch.device | str = "cpu",
        advance: Callable[[int], None] = lambda _: None,
        guidance: float | None = None,
        conditions: Mapping[str, Tensor] | None = None,
        temperature: float | None = None,
        precision: Precision = "float32",
        batch_size: int = BATCH_SIZE,
        retention: RetentionRequest | None = None,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generated samples in the data's own values, (count, *event), and the conditions of each.

        Args:
            count: number of samples.
            seed: of the source samples, labels and noise: with one seed, the same index gives the same sample.
            solver: {name: ..., steps: ...}; by default that of the run's evaluations.
            label: the class to sample; by default all in turn, where the drift takes no other condition.
            weights: "ema" or "raw".
            device: where to evaluate the drift.
            advance: called with the number of samples done in each batch.
            guidance: scale of classifier-free guidance, >= 0, 1 for none; by default that of the run's
                evaluations.
            conditions: by name, (n, ...) each, taken in turn where n < count.
            temperature: beta > -1 of the blend (b + beta b_pre)/(1 + beta) that is sampled: 0 for the fine-tuned drift,
                large for the pretrained one.
            precision: of the drift's layers; states are float32.
            batch_size: samples integrated at once; rounded down to whole blocks of 64 where it is more.
            retention: in place of the temperature, rho < 1 of the blend b + rho (b_pre - b): a number, a profile, or
                its spec {name: ...}. Below 0 the anchor is the guide, of weight 1 - rho.

        Raises:
            GftkitError: see ``gftkit.generation.RunSampler``.
        """
        request = Request(
            count=count,
            seed=seed,
            solver=solver,
            label=label,
            weights=weights,
            guidance=guidance,
            conditions=conditions,
            temperature=temperature,
            retention=retention,
            precision=precision,
            batch_size=batch_size,
        )
        return RunSampler(self, request, device).samples(advance)

    def evaluate(
        self,
        overrides: Sequence[str] = (),
        weights: Weights = "ema",
        device: torch.device | str = "cpu",
        temperature: float | None = None,
        seed: int | None = None,
        retention: RetentionRequest | None = None,
    ) -> dict[str, float]:
        """Every metric of the configuration's ``evaluate`` section: name -> value, name + "_stderr" -> standard error.

        Where a metric gives a 95 % interval, its ends are name + "_low" and name + "_high".

        Args:
            overrides: settings as ``evaluate.a=b``, which win over the run's configuration.
            weights: "ema" or "raw".
            device: where to evaluate the drift.
            temperature: of a blend with the anchor, see ``samples``.
            seed: of the samples; by default the run's. The reference data stay the same.
            retention: in place of the temperature, see ``samples``.

        Raises:
            GftkitError: for an override that has no valid value, or data that can't be read.
        """
        return evaluate(
            self,
            overrides,
            weights=weights,
            device=device,
            temperature=temperature,
            retention=retention,
            seed=seed,
        )


class TrainOptions(TypedDict, total=False):
    """Options of ``pretrain``, ``finetune`` and ``distill``.

    Attributes:
        registry: components; by default every installed plugin.
        overrides: settings as ``a.b=c``, which win over the file.
        device: "auto" (the accelerator where there is one), "cpu" or "cuda".
        resume: continue an unfinished run of the same configuration.
        quiet: show no progress bar; True by default.
    """

    registry: Registry | None
    overrides: Sequence[str]
    device: str
    resume: bool
    quiet: bool


def pretrain(config: Path | str | Mapping[str, Any], out: Path | str, **options: Unpack[TrainOptions]) -> Run:
    """Train a flow from scratch by flow matching.

    Args:
        config: a YAML file or the same as a mapping.
        out: the run folder to make.
        **options: see ``TrainOptions``.

    Raises:
        GftkitError: for any bad input, before training starts.
    """
    return _run(train("pretrain", config, out, **options))


def finetune(config: Path | str | Mapping[str, Any], out: Path | str, **options: Unpack[TrainOptions]) -> Run:
    """Adapt a pretrained flow to new data by Gradual Fine-Tuning.

    Args:
        config: a YAML file or the same as a mapping.
        out: the run folder to make.
        **options: see ``TrainOptions``.

    Raises:
        GftkitError: for any bad input, before training starts.
    """
    return _run(train("finetune", config, out, **options))


def distill(config: Path | str | Mapping[str, Any], out: Path | str, **options: Unpack[TrainOptions]) -> Run:
    """Train a flow-map student of a finished run.

    Args:
        config: a YAML file or the same as a mapping.
        out: the run folder to make.
        **options: see ``TrainOptions``.

    Raises:
        GftkitError: for any bad input, before training starts.
    """
    return _run(train("distill", config, out, **options))


def _run(folder: RunFolder) -> Run:
    """A run folder as a ``Run``, with its operations."""
    return Run(folder.folder, folder.config, folder.registry)
