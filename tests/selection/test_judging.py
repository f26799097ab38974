"""Comparisons of profiles: paired, simultaneous, and by distances only."""

import math
from dataclasses import dataclass

import pytest
import torch
from support.evaluations import draw

from gftkit.estimation.distances import energy_distances
from gftkit.estimation.jackknife import Replicates
from gftkit.kernel.contracts import Batch, Estimate
from gftkit.kernel.errors import ConfigError
from gftkit.selection.blended_run import Settings
from gftkit.selection.family import constant
from gftkit.selection.judging import best, check_distance, compare, metric_values

SETTINGS = Settings(seed=3)


@dataclass
class Given:
    """A model with given samples."""

    x: torch.Tensor

    def samples(self, steps=None):
        return self.x


class Judge:
    """A metric of one or several functions of samples and data."""

    def __init__(self, **functions):
        self.functions = functions

    def measure(self, evaluation, generator):
        x, y = evaluation.samples(None), evaluation.reference.x1
        return {name: Estimate(float(function(x, y)), 0.0) for name, function in self.functions.items()}


def models(n=60):
    x = draw(n, 2, seed=0)
    return [Given(x + 1), Given(x), Given(x + 0.5)]


def test_every_metric_is_jackknifed_as_the_energy_distance_is(registry):
    """That has a faster way of its own, which must give the same."""
    reference = Batch(draw(50, 2, seed=1))
    fast = metric_values(models(), reference, None, SETTINGS)
    slow = metric_values(models(), reference, registry.create("metric", "energy"), SETTINGS)
    assert torch.allclose(fast.values, slow.values)
    assert torch.allclose(fast.left_out, slow.left_out)
    other = metric_values(models(), reference, registry.create("metric", "frechet"), SETTINGS)
    assert not torch.allclose(fast.values, other.values, rtol=0.01)


def test_pairing_makes_the_error_of_a_gain_small():
    reference = Batch(draw(80, 2, seed=1))
    x = draw(80, 2, seed=0)
    paired = [Given(x + 0.6), Given(x + 0.5)]
    unpaired = [Given(x + 0.6), Given(draw(80, 2, seed=5) + 0.5)]
    errors = []
    for pair in (paired, unpaired):
        (found,) = compare({"a": constant(-0.1)}, [metric_values(pair, reference, None, SETTINGS)], ["a"])
        errors.append(found.gain.stderr)
    assert errors[0] < 0.5 * errors[1]


def test_intervals_of_a_gain_hold_their_level():
    """Two blends that err by as much on both sides: the gain is 0, and its interval holds it in about 95 %."""
    inside, narrow = 0, 0
    for seed in range(200):
        x, y = draw(40, 1, seed=2 * seed), draw(40, 1, seed=2 * seed + 1)
        values = energy_distances([x + 0.4, x - 0.4], y, torch.Generator().manual_seed(seed))
        (found,) = compare({"a": constant(-0.1)}, [values], ["a"])
        low, high = found.gain.interval
        inside += low <= 0 <= high
        narrow += low / 2 <= 0 <= high / 2 and abs(found.gain.value) <= found.gain.stderr
    assert 0.9 <= inside / 200 <= 1.0
    assert narrow / 200 < 0.8


def replicates(gains, spread=0.1, groups=20):
    """Values at retention 0 and at a profile for each gain, which is known to about the spread."""
    generator = torch.Generator().manual_seed(1)
    values = torch.tensor([0.0, *(-gain for gain in gains)], dtype=torch.float64)
    noise = spread / math.sqrt(groups) * torch.randn(groups, len(values), generator=generator, dtype=torch.float64)
    noise[:, 0] = 0
    return Replicates(values, values + noise)


def test_intervals_are_wider_the_more_profiles_are_compared():
    lengths = []
    for k in (1, 2, 6):
        names = [f"p{row}" for row in range(k)]
        tables = {name: constant(-0.1 * (row + 1)) for row, name in enumerate(names)}
        low, high = compare(tables, [replicates([0.3] * k)], names)[0].gain.interval
        lengths.append(high - low)
    assert lengths[0] < lengths[1] < lengths[2]
    (one,) = compare({"p0": constant(-0.1)}, [replicates([0.3])], ["p0"])
    assert (lengths[0] / 2) / one.gain.stderr == pytest.approx(2.093, abs=1e-3)  # Student, 19 degrees
    six = compare(tables, [replicates([0.3] * 6)], names)[0]
    assert (lengths[2] / 2) / six.gain.stderr == pytest.approx(2.938, abs=0.02)  # at 0.05/6


def test_the_best_significant_profile_wins_and_zero_where_there_is_none():
    names = ["large and uncertain", "good", "small"]
    tables = {name: constant(-0.1 * (row + 1)) for row, name in enumerate(names)}
    found = compare(tables, [replicates([0.5, 0.3, 0.2])], names)
    uncertain = found[0].__class__("x", tables["small"], found[0].value, Estimate(9.0, 9.0, (-1.0, 19.0)))
    assert best([uncertain, *found[1:]]).name == "good"
    assert best(compare(tables, [replicates([0.05, 0.01, -0.5])], names)) is None
    assert best([]) is None


def test_folds_are_averaged():
    names, tables = ["a"], {"a": constant(-0.1)}
    folds = [replicates([0.2]), replicates([0.4])]
    (mean,) = compare(tables, folds, names)
    (first,), (second,) = (compare(tables, [fold], names) for fold in folds)
    assert mean.gain.value == pytest.approx(0.3)
    assert mean.gain.stderr == pytest.approx(math.hypot(first.gain.stderr, second.gain.stderr) / 2)
    assert mean.gain.stderr < first.gain.stderr


def test_distances_pass_and_other_metrics_are_refused(registry):
    data, noise = draw(80, 2, seed=0) * 0.3 + 2, draw(80, 2, seed=1)
    for name in ("energy", "frechet", "sliced-wasserstein"):
        check_distance(registry.create("metric", name), data, noise, SETTINGS)
    higher = Judge(closeness=lambda x, y: -(x.mean() - y.mean()).abs())
    spread = Judge(diversity=lambda x, y: x.std())
    for metric in (higher, spread):
        with pytest.raises(ConfigError, match="isn't lower between samples of one law"):
            check_distance(metric, data, noise, SETTINGS)
    with pytest.raises(ConfigError, match="wanted one value"):
        check_distance(Judge(a=lambda x, y: 0, b=lambda x, y: 1), data, noise, SETTINGS)
    with pytest.raises(ConfigError, match="needs more than samples and data"):
        check_distance(registry.create("metric", "path-length"), data, noise, SETTINGS)
    with pytest.raises(ConfigError, match="at least 20"):
        check_distance(registry.create("metric", "energy"), data[:20], noise[:20], SETTINGS)
