"""The monitor ``sample-retention``: the retention at which a run's own samples lie nearest to its training data."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gftkit.evaluation import Evaluation, preferred_retention
from gftkit.generation import Blended
from gftkit.kernel import Batch, ConfigError, Profile
from gftkit.networks import with_guidance
from gftkit.runtime import stream

NAME = "sample-retention"
AT = (0.5,)
"""The progress at which it measures."""


class SampleRetention:
    """The retention that a fine-tune's own samples want, measured at half and at three quarters of the run.

    The averaged weights are blended with the anchor at a few retentions; samples of each, from the same source samples
    and noise, are compared with the training data by the energy distance. See ``gftkit.evaluation.Preference`` for
    what is measured. The schedule ``gradual`` listens to it; beside another schedule it only reports.

    Args:
        count: samples for each retention. A measurement takes about 11 times as many solver steps' network calls.
        points: training data to compare with, at most: a random part where there are more.

    Raises:
        ConfigError: beside a pretraining, and where no evaluation falls between the middle and the end of a run.

    Reference: theory, T20, T21 and the end of section 7.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("monitor", "sample-retention").count
        400
    """

    def __init__(self, count: Annotated[int, Field(ge=40)] = 400, points: Annotated[int, Field(ge=40)] = 2000) -> None:
        self.count, self.points = count, points

    def observe(self, state: Any) -> dict[str, Any]:
        """What is measured, at the first evaluations from ``AT`` on; nothing at others."""
        if state.step == 0:
            self._check(state)
        every = state.config.evaluate.every / state.config.train.steps
        if not any(state.progress - every < at <= state.progress < 1 for at in AT):
            return {}
        data = self._data(state)
        generator = stream(state.seed, NAME, "groups")
        return preferred_retention(
            lambda profile: self._samples(state, profile, data), _flat(data.x1), generator
        ).to_dict()

    def finish(self, folder: Path) -> None:
        """Nothing to write: the measurements are in metrics.jsonl."""

    def _check(self, state: Any) -> None:
        """Refuse a run that can't be measured."""
        if state.anchor is None:
            raise ConfigError(
                f"monitors: '{NAME}' blends a fine-tune with the drift it started from, and a pretraining has none. "
                f"Remove it from this config."
            )
        steps, every = state.config.train.steps, state.config.evaluate.every
        if not any(AT[0] * steps <= step < steps for step in range(every, steps, every)):
            raise ConfigError(
                f"monitors: '{NAME}' measures at evaluations from the middle of the run on, and with evaluate.every "
                f"{every} of {steps} steps there is none before the end. Set evaluate.every to at most {steps // 4}."
            )
        if state.dataset.size is not None and state.dataset.size < 4:
            raise ConfigError(
                f"monitors: '{NAME}' compares samples with at least 4 training data, got {state.dataset.size}. Remove "
                f"it, or use a schedule other than gradual."
            )

    def _data(self, state: Any) -> Batch:
        """Training data, the same at every measurement."""
        size = state.dataset.size
        if size is None:
            return state.training
        return state.dataset.at(torch.randperm(size, generator=stream(state.seed, NAME, "points"))[: self.points])

    def _samples(self, state: Any, profile: Profile, data: Batch) -> Tensor:
        """Samples of a blend, from the same noise each time, (count, d)."""
        scale = state.config.evaluate.guidance
        evaluation = Evaluation(
            drift=Blended(with_guidance(state.ema, scale), with_guidance(state.anchor, scale), profile),
            path=state.path,
            scheme=state.evaluation.scheme,
            source=state.source,
            reference=data,
            count=self.count,
            seed=stream(state.seed, NAME, "samples", state.step).initial_seed(),
            device=state.device,
        )
        return _flat(evaluation.samples())


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).double()
