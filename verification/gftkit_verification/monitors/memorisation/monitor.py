"""The monitor ``memorisation``: how far a run goes from learning its target to reproducing its training data."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gftkit.estimation.distances import energy_distances
from gftkit.estimation.jackknife import GROUPS, jackknife_estimate
from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Batch, Estimate, Feature
from gftkit.kernel.errors import ConfigError
from gftkit.networks.guidance import with_guidance
from gftkit.runtime.randomness import stream
from gftkit.theory.gap import ratio_estimate
from gftkit.theory.objective import retention
from gftkit.training.state import TrainingState
from gftkit_verification.monitors.probes import (
    concatenate,
    evaluate_in_chunks,
    exact_drift,
    first_states,
    oracle_obstacles,
)

if TYPE_CHECKING:
    from gftkit.recording.html import Section

NAME = "memorisation"
BATCHES = 8
STATES = 64
LEAST = 4
"""Training data: two groups of two."""


class Memorisation:
    """The way of a run from learning its target to reproducing its training data; no held-out data are needed.

    Three gauges. **Distance ratio**, of samples of the EMA weights: the mean distance of a sample to the nearest of the
    training data, one of them left out, over the mean distance of a training datum to the nearest of the others.
    Samples of the very law that the training data were drawn from have 1 in expectation; 0 is a copy; above 1 they lie
    beside the data. It says nothing of their law: samples of a narrower one lie near the data, too. **Energy**: the
    energy distance between the same samples and the training data, where the datum nearest to a sample is left out of
    the sample's distances, so that copies gain nothing by being copies (``gftkit.estimation.energy_distances``).
    Samples come from the same noise at every evaluation, so a fall along the run is known far better than its ends:
    ``energy_left_out`` has the values without each group of the jackknife, whose differences between two evaluations
    give that of the fall. **Position**, of the raw weights' drift:
    ``c = <b - b_pre, b_emp - b_pre>/|b_emp - b_pre|^2``, between the pretrained drift (c = 0) and the drift b_emp that
    reproduces the training set (c = 1); the optimum of a temperature has c = 1 - rho (T1). It is measured where b_emp
    is known, as in the monitor ``theory``; the report says why where it isn't.

    Held-out data, where ``evaluate.data`` names some, are only looked at for a third number: the mean distance of a
    sample to the nearest training datum over that to the nearest of as many held-out data.

    Args:
        count: samples to generate at an evaluation.
        points: training data to compare with, at most: a random part where there are more.
        feature: maps events to the vectors whose distances count; by default the flattened event itself.

    Raises:
        ConfigError: in use, for training data that are a law or fewer than 4.

    Reference: Meehan, Chaudhuri and Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
    arXiv:2004.05675, for distances to training data as a sign of copies; Szekely and Rizzo (2013), Energy statistics,
    Eq. 2.5; theory, section 4 (the memorising drift).

    Example:
        >>> import gftkit
        >>> gftkit.load().create("monitor", "memorisation", count=200).points
        2000
    """

    def __init__(
        self,
        count: Annotated[int, Field(ge=20)] = 1000,
        points: Annotated[int, Field(ge=LEAST)] = 2000,
        feature: Feature | None = None,
    ) -> None:
        self.count, self.points, self.feature = count, points, feature
        self._training: Batch | None = None
        self._reference: Tensor | None = None
        self._exact: tuple[Any, Tensor, Tensor] | None = None
        self._obstacle = ""
        """Why b_emp isn't known; empty where it is."""

    @torch.no_grad()
    def observe(self, state: TrainingState) -> dict[str, Any]:
        """Measurements of an evaluation by name; at step 0 also the setting."""
        if self._training is None:
            self._prepare(state)
        assert self._training is not None
        measured: dict[str, Any] = {"temperature": state.temperature, "retention": retention(state.temperature)}
        samples = self._vectors(self._samples(state))
        data = self._vectors(self._training.x1)
        generator = stream(state.seed, NAME, "groups")
        measured |= with_stderr("distance_ratio", distance_ratio(samples, data, generator))
        measured |= self._energy(samples, data, stream(state.seed, NAME, "energy"))
        if self._reference is not None:
            measured |= with_stderr("held_out_ratio", held_out_ratio(samples, data, self._reference, generator))
        if self._exact is not None:
            measured |= with_stderr("position", self._position(state))
        if state.step == 0:
            measured |= {"oracle": self._obstacle or "applies", "points": len(data), "samples": self.count}
        return measured

    def finish(self, folder: Path) -> None:
        """Nothing to write: the measurements are in metrics.jsonl."""

    def sections(self, lines: Sequence[Mapping[str, Any]]) -> "list[Section]":
        """The run's part of a report: both gauges beside the temperature, as a picture and in words."""
        from gftkit_verification.monitors.memorisation.report import build_sections

        return build_sections(lines)

    def _prepare(self, state: TrainingState) -> None:
        """Read the training data, and what the oracle needs once."""
        size = state.dataset.size
        if size is None or size < LEAST:
            kind = "a law to draw from" if size is None else f"a set of {size}"
            raise ConfigError(
                f"monitors: '{NAME}' compares samples with a finite training set of at least {LEAST}; this run has "
                f"{kind}. Remove the monitor from the config."
            )
        indices = torch.randperm(size, generator=stream(state.seed, NAME, "points"))[: self.points]
        self._training = state.dataset.at(indices)
        if state.config.evaluate.data is not None:
            self._reference = self._vectors(state.reference.x1)
        self._obstacle = next(iter(oracle_obstacles(state)), "")
        if self._obstacle or state.anchor is None:
            self._obstacle = self._obstacle or "a pretraining has no drift that it started from"
            return
        batches = [state.draw(STATES, stream(state.seed, NAME, "states", k)) for k in range(BATCHES)]
        try:
            exact = exact_drift(state, batches)
        except ValueError as error:
            self._obstacle = str(error)
            return
        states = concatenate([first_states(batch, len(exact) // BATCHES) for batch in batches])
        self._exact = states, evaluate_in_chunks(state.anchor, states), exact

    def _samples(self, state: TrainingState) -> Tensor:
        """Samples of the EMA weights, from the same noise at every evaluation."""
        assert self._training is not None
        evaluation = Evaluation(
            drift=with_guidance(state.ema, state.config.evaluate.guidance),
            path=state.path,
            scheme=state.evaluation.scheme,
            source=state.source,
            reference=self._training,
            count=self.count,
            seed=stream(state.seed, NAME, "samples").initial_seed(),
            device=state.device,
        )
        return evaluation.samples()

    def _energy(self, samples: Tensor, data: Tensor, generator: torch.Generator) -> dict[str, Any]:
        """The energy distance to the training data, with what a listener needs for paired differences along the run."""
        distances = energy_distances([samples], data, generator, groups=group_count(data), leave_nearest=True)
        left_out = distances.left_out[:, 0].tolist()
        return {**with_stderr("energy", distances.estimate(torch.squeeze)), "energy_left_out": left_out}

    def _vectors(self, x: Tensor) -> Tensor:
        """(n, *event) -> (n, d) of float64."""
        return (x.flatten(1) if self.feature is None else self.feature(x)).double()

    def _position(self, state: TrainingState) -> Estimate:
        assert self._exact is not None
        states, anchor, exact = self._exact
        weight = None if state.weight is None else state.weight(states.t)
        return position(evaluate_in_chunks(state.drift, states), anchor, exact, weight)


def with_stderr(name: str, estimate: Estimate) -> dict[str, float]:
    """An estimate as it is logged."""
    return {name: estimate.value, f"{name}_stderr": estimate.stderr}


def position(drift: Tensor, anchor: Tensor, exact: Tensor, weight: Tensor | None = None) -> Estimate:
    """``c = <b - b_pre, b_emp - b_pre>_w/|b_emp - b_pre|_w^2``, its error over BATCHES batches; nan where both agree.

    Args:
        drift: b, (batches * n, *event).
        anchor: b_pre, likewise.
        exact: b_emp, likewise.
        weight: w(t), (batches * n,), or None for 1.
    """
    gap = (exact - anchor).flatten(1).double()
    products = torch.stack([((drift - anchor).flatten(1) * gap).sum(1), gap.square().sum(1)])
    if weight is not None:
        products = products * weight
    along, whole = products.reshape(2, BATCHES, -1).mean(2)
    return ratio_estimate(along, whole)


def distance_ratio(samples: Tensor, data: Tensor, generator: torch.Generator) -> Estimate:
    """The distance of samples to training data over that of these to each other, see ``nearest``.

    Args:
        samples: (m, d).
        data: training data, (n, d), n >= 4.
        generator: of the groups for the standard error (``gftkit.estimation.jackknife``), on the CPU.
    """
    across, within = torch.cdist(samples, data), torch.cdist(data, data)

    def statistic(sample_indices: Tensor, data_indices: Tensor) -> float:
        to_data, among_data = nearest(across[sample_indices][:, data_indices], within[data_indices][:, data_indices])
        return float(to_data / among_data)

    indices = [torch.arange(len(samples)), torch.arange(len(data))]
    return jackknife_estimate(statistic, indices, generator, group_count(data))


def group_count(data: Tensor) -> int:
    """Groups of a jackknife over the data: each of at least two, so that the nearest and one more are left."""
    return min(GROUPS, len(data) // 2)


def nearest(across: Tensor, within: Tensor) -> tuple[Tensor, Tensor]:
    """The mean distance of a sample to the nearest of all data but one, and of a datum to the nearest other one.

    For a sample the datum that is left out is a random one, in expectation: ((n - 1) d_1 + d_2)/n with the distances
    d_1 <= d_2 to its two nearest data. So both are minima over n - 1 points, and for samples of the data's own law,
    independent of the data, both have one expectation.

    Args:
        across: distances from samples to data, (..., m, n).
        within: distances among the data, (..., n, n).

    Returns:
        The two means, (...) each.
    """
    n = within.shape[-1]
    first, second = across.topk(2, largest=False).values.mean(-2).unbind(-1)
    others = within.masked_fill(torch.eye(n, dtype=torch.bool, device=within.device), torch.inf).min(-1).values.mean(-1)
    return ((n - 1) * first + second) / n, others


def held_out_ratio(samples: Tensor, data: Tensor, held_out: Tensor, generator: torch.Generator) -> Estimate:
    """The mean distance of a sample to the nearest of n training data over that to the nearest of n held-out data."""
    n = min(len(data), len(held_out))
    near = torch.cdist(samples, data[:n]).min(1).values
    far = torch.cdist(samples, held_out[:n]).min(1).values

    def statistic(indices: Tensor) -> float:
        return float(near[indices].mean() / far[indices].mean())

    return jackknife_estimate(statistic, [torch.arange(len(samples))], generator)
