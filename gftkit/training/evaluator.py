"""The evaluations of a run: metrics, monitors and pictures, which leave the run as it was."""

import copy
from collections.abc import Mapping, Sequence
from typing import Any, cast

import torch
from torch import nn

from gftkit.evaluation.evaluation import Evaluation
from gftkit.evaluation.metrics import measure
from gftkit.experiment.build import Experiment
from gftkit.kernel.contracts import TrainingView
from gftkit.runs.folder import Weights
from gftkit.runtime import devices, sharding
from gftkit.training.run_report import picture_of
from gftkit.training.state import TrainingState
from gftkit.training.steps import Steps

LogLine = tuple[str, dict[str, Any]]
"""A line for the log: its kind and its values. Pictures go to the trackers only."""


class Evaluator:
    """The measurements of a run.

    Args:
        experiment: everything the configuration names.
        steps: the networks as they are trained.
        accelerator: of the accelerate library.
        template: an unsharded copy of the drift, on the main process of a sharded run; None elsewhere.
        pictures: draw samples too, for trackers.
    """

    def __init__(
        self, experiment: Experiment, steps: Steps, accelerator: Any, *, template: nn.Module | None, pictures: bool
    ) -> None:
        self._experiment, self._config, self._steps = experiment, experiment.config, steps
        self._device, self._main = accelerator.device, accelerator.is_main_process
        self._sharded, self._template, self._pictures = devices.is_sharded(accelerator), template, pictures

    def networks(self) -> tuple[nn.Module, nn.Module]:
        """The drift with raw and with averaged weights, whole on the main process; a collective call."""
        networks = self._steps.drift, self._steps.ema
        if not self._sharded:
            return networks
        # Gathered on every process, even where the result is dropped: a collective call must be made by all.
        states = [sharding.gather_tensors(network.state_dict(), keep=self._main) for network in networks]
        if self._template is None:
            return networks
        raw, averaged = copy.deepcopy(self._template), copy.deepcopy(self._template)
        raw.load_state_dict(states[0])
        averaged.load_state_dict(states[1])
        return raw.to(self._device), averaged.to(self._device)

    def lines(
        self, done: int, weights: Weights, history: Sequence[Mapping[str, Any]], *, final: bool = False
    ) -> list[LogLine]:
        """Measure the drift by the metrics, and with raw weights by every monitor; the run is left as it was.

        A collective call: all processes gather the weights, and the main one measures.

        Args:
            done: steps taken.
            weights: "raw" or "ema".
            history: lines of metrics.jsonl so far.
            final: add the metrics that are measured only at the start and the end of a run.
        """
        raw, averaged = self.networks()
        if not self._main:
            return []
        drift = raw if weights == "raw" else averaged
        experiment, measurement = self._experiment, self._experiment.measurement
        training = drift.training
        # A metric or monitor may draw from torch's global generator, from which dropout draws as well.
        with torch.random.fork_rng(devices=devices.cuda_devices(self._device)):
            drift.eval()
            evaluation = experiment.evaluation(drift, self._device, history)
            metrics = measurement.final if final else measurement.metrics
            lines: list[LogLine] = [
                ("evaluation", {"weights": weights, **measure(metrics, evaluation, self._config.seed)})
            ]
            if weights == "raw":
                # Monitors observe one series, that of the raw weights: schedules and stopping rules listen to it.
                view = self._view(done, drift, averaged, evaluation)
                for name, monitor in measurement.monitors:
                    lines.append(("monitor", {"monitor": name, **monitor.observe(view)}))
            if self._pictures:
                lines.append(("picture", {"weights": weights, "png": picture_of(experiment, evaluation)}))
            drift.train(training)
        return lines

    def _view(self, done: int, drift: nn.Module, averaged: nn.Module, evaluation: Evaluation) -> TrainingView:
        """The run as its monitors see it."""
        steps, matching, measurement = self._config.train.steps, self._experiment.matching, self._experiment.measurement
        state = TrainingState(
            step=done,
            progress=done / steps,
            temperature=self._steps.temperature(min(done, steps - 1)),
            drift=drift,
            ema=averaged,
            anchor=self._steps.anchor,
            path=matching.path,
            training=measurement.training,
            reference=measurement.reference,
            evaluation=evaluation,
            source=matching.source,
            coupling=matching.pairs.coupling,
            device=self._device,
            seed=self._config.seed,
            dataset=matching.pairs.order.samples,
            config=self._config,
            time=matching.time,
            weight=matching.weight,
            profile=self._steps.profile(min(done, steps - 1)),
            transport=matching.pairs.transport,
        )
        return cast("TrainingView", state)  # a frozen dataclass: nothing in a view may be set
