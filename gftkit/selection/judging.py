"""Paired comparisons of profiles with retention 0, by a metric of samples: simultaneous intervals, one decision."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from operator import itemgetter

import torch
from torch import Tensor

from gftkit.estimation.distances import energy_distances
from gftkit.estimation.jackknife import GROUPS, Replicates, jackknife_replicates
from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Batch, Estimate, Metric
from gftkit.kernel.errors import ConfigError
from gftkit.selection.blended_run import Settings
from gftkit.selection.family import Table

LEVEL = 0.95
"""Probability that the intervals of all profiles together hold their true gains."""


@dataclass(frozen=True)
class Compared:
    """A profile that was compared with retention 0.

    Attributes:
        name: of the profile.
        table: its retentions.
        value: of the metric.
        gain: what the profile lowers the metric by; the interval holds at once with those of all others.
    """

    name: str
    table: Table
    value: Estimate
    gain: Estimate

    @property
    def is_significant(self) -> bool:
        """True where the whole interval of the gain lies above 0."""
        return self.gain.interval is not None and self.gain.interval[0] > 0


@dataclass(frozen=True)
class View:
    """Samples and data as a metric sees them, parts of a model's; nothing else of the model is to be had.

    Attributes:
        samples: the samples by a number of solver steps, None for the evaluation's own.
        reference: data that the model wasn't trained on.
    """

    samples: Callable[[int | None], Tensor]
    reference: Batch
    held_out: bool = True


def metric_values(
    evaluations: Sequence[Evaluation], reference: Batch, metric: Metric | None, settings: Settings
) -> Replicates:
    """A metric of several blends against the same data, jackknifed together.

    Args:
        evaluations: with the same source samples and noise.
        reference: data that neither the blends nor the profiles were fitted on.
        metric: lower is better; None for the energy distance.
        settings: have the seed of the groups, and of what the metric draws.

    Raises:
        ConfigError: for a metric with other values than one, or that needs more than samples and data.
    """
    groups = min(GROUPS, len(reference))
    generator = settings.generator("groups")
    if metric is None:
        samples = [each.samples().flatten(1) for each in evaluations]
        return energy_distances(samples, reference.x1.flatten(1), generator, groups=groups)

    def values(rows: Tensor, kept: Tensor) -> list[float]:
        data = reference[kept]
        return [metric_value(metric, View(partial(_part, each, rows), data), settings) for each in evaluations]

    count = len(evaluations[0].samples())
    return jackknife_replicates(values, [torch.arange(count), torch.arange(len(reference))], generator, groups)


def metric_value(metric: Metric, view: View, settings: Settings) -> float:
    """The only value of a metric.

    Raises:
        ConfigError: where it has several, or needs more than samples and data.
    """
    try:
        measured = metric.measure(view, settings.generator("metric"))  # type: ignore[arg-type]
    except AttributeError as error:
        raise ConfigError(
            f"--metric: {type(metric).__name__} needs more than samples and data ({error}). Choose a distance between "
            f"them, such as energy or frechet."
        ) from error
    except ValueError as error:
        raise ConfigError(f"--metric: {error}") from error
    if len(measured) != 1:
        raise ConfigError(
            f"--metric: wanted one value to compare by, and {type(metric).__name__} has {', '.join(measured)}. Choose "
            f"a distance, such as energy or frechet."
        )
    return next(iter(measured.values())).value


def check_distance(metric: Metric, data: Tensor, noise: Tensor, settings: Settings) -> None:
    """Refuse a metric that isn't a distance: one that doesn't find like nearer to like.

    Args:
        metric: to check.
        data: two halves of it are alike, (n, *event).
        noise: source samples, likewise, of another law.
        settings: have the seed of what the metric draws.

    Raises:
        ConfigError: such as for a metric of which higher values are better.
    """

    def value(x: Tensor, y: Tensor) -> float:
        return metric_value(metric, View(lambda _: x, Batch(y)), settings)

    (one, other), (first, second) = data.chunk(2), noise.chunk(2)
    if not (value(one, other) < value(first, other) and value(first, second) < value(one, second)):
        raise ConfigError(
            f"--metric: {type(metric).__name__} isn't lower between samples of one law than between samples of "
            f"different laws (data and source), so it can't choose. Choose a distance, such as energy or frechet."
        )


def compare(tables: Mapping[str, Table], replicates: Sequence[Replicates], names: Sequence[str]) -> list[Compared]:
    """The gains of profiles over retention 0, averaged over independent folds, with simultaneous intervals.

    The intervals are Student's, by Bonferroni's correction: at level 1 - 0.05/k each for k profiles.

    Args:
        tables: the profiles to judge, by name.
        replicates: one for each fold; the values are those of retention 0, then of each name.
        names: of the values after the first.

    Reference: Dunn (1961), Multiple comparisons among means, JASA 56, 52-64.
    """
    from scipy.special import stdtrit

    degrees = sum(len(each.left_out) - 1 for each in replicates)
    quantile = float(stdtrit(degrees, 1 - (1 - LEVEL) / (2 * max(len(tables), 1))))
    compared = []
    for name, table in tables.items():
        place = 1 + names.index(name)
        value = _mean([each.estimate(itemgetter(place)) for each in replicates])
        gain = _mean([each.estimate(partial(_gain, place=place)) for each in replicates])
        ends = gain.value - quantile * gain.stderr, gain.value + quantile * gain.stderr
        compared.append(Compared(name, table, value, Estimate(gain.value, gain.stderr, ends)))
    return compared


def best(compared: Sequence[Compared]) -> Compared | None:
    """The significant profile of the largest gain; None where no gain is significant."""
    significant = [each for each in compared if each.is_significant]
    return max(significant, key=lambda each: each.gain.value) if significant else None


def _part(evaluation: Evaluation, rows: Tensor, steps: int | None = None) -> Tensor:
    """Some of the samples of a model."""
    return evaluation.samples(steps)[rows]


def _gain(values: Tensor, place: int) -> Tensor:
    """What a profile lowers the metric by, from its values at retention 0 and at all profiles."""
    return values[0] - values[place]


def _mean(estimates: Sequence[Estimate]) -> Estimate:
    """The mean of estimates from independent data."""
    k = len(estimates)
    error = math.sqrt(sum(each.stderr**2 for each in estimates)) / k
    return Estimate(sum(each.value for each in estimates) / k, error)
