"""The monitor ``sample-retention``: the retention at which a run's own samples lie nearest to its training data."""

import math
from collections.abc import Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gftkit.evaluation import ERRORS, Evaluation, beyond, preferred_retention
from gftkit.generation import Blended
from gftkit.kernel import Batch, ConfigError, Profile
from gftkit.networks import with_guidance
from gftkit.recording import COLOURS, Section, figure_png, format_number, new_figure, tidy
from gftkit.runtime import stream
from gftkit.training import TrainingState

NAME = "sample-retention"
AT = 0.5
"""The progress from which it measures."""
LATEST = 0.8
"""The latest progress at which it does: the run still has to go where it was measured."""


class SampleRetention:
    """The retention that a fine-tune's own samples want, measured at half of the run.

    The averaged weights are blended with the anchor at a few retentions. Samples of each blend, from the same source
    samples and noise, are compared with the training data by the energy distance; see
    ``gftkit.evaluation.Preference`` for what is measured. The schedule ``gradual`` listens to it; beside another
    schedule it only reports.

    Args:
        count: samples for each retention; at most nine are tried.
        points: training data to compare with, at most: a random part where there are more.

    Raises:
        ConfigError: in use, beside a pretraining, where no evaluation falls between 50 and 80 % of a run, for samples
            with a diffusion, and for fewer than 4 training data.

    Reference: theory, T20, T21 and the end of section 7.

    Example:
        >>> import gftkit
        >>> gftkit.load().create("monitor", "sample-retention").count
        400
    """

    def __init__(self, count: Annotated[int, Field(ge=40)] = 400, points: Annotated[int, Field(ge=40)] = 2000) -> None:
        self.count, self.points = count, points

    def observe(self, state: TrainingState) -> dict[str, Any]:
        """What is measured at the first evaluation from the middle of the run on; nothing at others."""
        if state.step == 0:
            self._check(state)
        if state.step != measured_at(state.config.train.steps, state.config.evaluate.every or 1):
            return {}
        data = self._data(state)
        generator = stream(state.seed, NAME, "groups")
        return preferred_retention(partial(self._samples, state, data), _flat(data.x1), generator).to_dict()

    def finish(self, folder: Path) -> None:
        """Nothing to write: the measurements are in metrics.jsonl."""

    def sections(self, lines: Sequence[Mapping[str, Any]]) -> list[Section]:
        """The run's part of a report: the measured curve and what follows from it."""
        measured = next((line for line in lines if "early" in line), None)
        return [] if measured is None else [_section(measured)]

    def _check(self, state: TrainingState) -> None:
        """Refuse a run that can't be measured."""
        if state.anchor is None:
            raise ConfigError(
                f"monitors: '{NAME}' blends a fine-tune with the drift it started from, and a pretraining has none. "
                f"Remove it from this config."
            )
        steps, every = state.config.train.steps, state.config.evaluate.every or 1
        if measured_at(steps, every) > LATEST * steps:
            raise ConfigError(
                f"monitors: '{NAME}' measures at the first evaluation from the middle of the run on, and the run needs "
                f"a fifth of its {steps} steps after it. With evaluate.every {every} that is at step "
                f"{measured_at(steps, every)}. Set evaluate.every to a quarter of the steps or less."
            )
        if state.evaluation.scheme.diffusion is not None:
            raise ConfigError(
                f"monitors: '{NAME}' samples blends of two velocities, which have no known score, and "
                f"evaluate.solver.diffusion requires one (T12). Leave the diffusion out."
            )
        if len(self._data(state)) < 4:
            raise ConfigError(
                f"monitors: '{NAME}' compares samples with at least 4 training data, got {len(self._data(state))}. Add "
                f"data, or choose a schedule other than gradual."
            )

    def _data(self, state: TrainingState) -> Batch:
        """Training data, the same at every evaluation."""
        size = state.dataset.size
        if size is None:
            return state.training
        return state.dataset.at(torch.randperm(size, generator=stream(state.seed, NAME, "points"))[: self.points])

    def _samples(self, state: TrainingState, data: Batch, profile: Profile) -> Tensor:
        """Samples of a blend, from the same noise each time, (count, d)."""
        assert state.anchor is not None
        scale = state.config.evaluate.guidance
        evaluation = Evaluation(
            drift=Blended(with_guidance(state.ema, scale), with_guidance(state.anchor, scale), profile),
            path=state.path,
            scheme=state.evaluation.scheme,
            source=state.source,
            reference=data,
            count=self.count,
            seed=stream(state.seed, NAME, "samples").initial_seed(),
            device=state.device,
        )
        return _flat(evaluation.samples())


def measured_at(steps: int, every: int) -> int:
    """The step of the first evaluation from the middle of a run on.

    Example:
        >>> measured_at(1500, 75), measured_at(1500, 400)
        (750, 800)
    """
    return -(-math.ceil(AT * steps) // every) * every


def _flat(x: Tensor) -> Tensor:
    return x.flatten(1).double()


def _section(measured: Mapping[str, Any]) -> Section:
    minimum, early, late, cut = (measured[key] for key in ("minimum", "early", "late", "cut"))
    if early == 0:
        found = f"No retention is better than 0 by {ERRORS:g} standard errors: the schedule `gradual` stays at zero."
    else:
        found = f"Samples want the retention {early:.3f} at flow times below {cut:g}, and {late:.3f} from there on."
    text = (
        f"Measured after step {measured['step']}: the averaged weights blended with the anchor, and the energy "
        f"distance of samples to the training data, on common random numbers; the nearest datum of each sample is "
        f"left out, so that copies gain nothing. Bars are two standard errors. {found}"
    )
    rows: list[tuple[str, ...]] = [
        ("", "value"),
        ("least at the retention", beyond(minimum) or format_number(minimum, measured["minimum_stderr"])),
        ("retention, early in flow time", format_number(early, None)),
        ("retention, late", format_number(late, None)),
    ]
    if "gain" in measured:
        rows.append(("fall of the energy distance", format_number(measured["gain"], measured["gain_stderr"])))
    return Section("Retention", text, rows, _picture(measured))


def _picture(measured: Mapping[str, Any]) -> bytes:
    figure = new_figure(7.2, 3.2)
    axis = figure.subplots()
    errors = [2 * error for error in measured["distance_stderr"]]
    axis.errorbar(measured["retentions"], measured["distance"], errors, color=COLOURS[0], marker="o", capsize=3)
    axis.axvline(measured["early"], color=COLOURS[1], linestyle="--", label="chosen, early in flow time")
    axis.set_xlabel("retention at all flow times")
    axis.set_ylabel("energy distance")
    axis.legend(frameon=False)
    tidy(axis)
    return figure_png(figure)
