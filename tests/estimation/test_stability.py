"""Stability statistics of a run's evaluations."""

import itertools
import math

import numpy as np

from gftkit.estimation.stability import first_reaching, instant_variance, largest_setback, spearman


def test_spearman_is_the_correlation_of_ranks():
    steps, values = [1, 2, 3, 4, 5], [5.0, 9.0, 3.0, 2.0, 1.0]
    ranks = np.argsort(np.argsort(values))
    assert math.isclose(spearman(steps, values), np.corrcoef(steps, ranks)[0, 1])
    assert spearman(steps, [v**3 for v in values]) == spearman(steps, values)  # any rising map of the values
    assert math.isnan(spearman([1, 2], [3.0, 4.0]))
    assert math.isnan(spearman(steps, [1.0] * 5))


def test_instant_variance_is_the_noise_about_a_trend():
    generator = np.random.default_rng(0)
    steps = np.arange(1, 4001)
    noise = 0.3 * generator.standard_normal(4000)
    measured = instant_variance(steps, 5 - steps + noise)
    assert math.isclose(measured, 0.09, rel_tol=0.06)  # 3 standard errors, as neighbouring windows share points
    assert math.isclose(measured, instant_variance(steps, noise), rel_tol=1e-6)  # a line changes nothing
    windows = np.lib.stride_tricks.sliding_window_view(5 - steps + noise, 5)
    assert windows.var(axis=1, ddof=1).mean() > 2  # where the line isn't removed, it would
    early = np.where(steps <= 800, 100.0 * generator.standard_normal(4000), noise)
    assert math.isclose(instant_variance(steps, early), 0.09, rel_tol=0.06)  # the first fifth is left out
    assert math.isnan(instant_variance(steps[:5], noise[:5]))
    whole = instant_variance(steps, early, left_out=0)
    windows = np.lib.stride_tricks.sliding_window_view(early, 5)
    assert math.isclose(whole, windows.var(axis=1, ddof=1).mean(), rel_tol=0.05)  # a line takes little of such noise
    assert math.isclose(instant_variance(range(5), [1.0, -1, 1, -1, 1], left_out=0), 1.6)


def test_the_largest_setback_is_above_the_lowest_before():
    values = [9.0, 5.0, 7.5, 4.0, 4.5, 8.0, 1.0, 2.0]
    wanted = max(v - u for i, u in enumerate(values) for v in values[i:])
    assert largest_setback(values) == wanted == 4.0
    assert wanted != max(v - u for u, v in itertools.pairwise(values))  # a single step's rise
    assert wanted != max(values) - min(values)
    assert largest_setback(sorted(values, reverse=True)) == 0
    assert math.isnan(largest_setback([]))


def test_a_threshold_is_reached_at_the_first_evaluation_at_or_below_it():
    steps, values = [2, 4, 6, 8], [5.0, 3.0, 4.0, 1.0]
    assert [first_reaching(steps, values, at) for at in (9.0, 3.0, 2.9)] == [2, 4, 8]
    assert math.isnan(first_reaching(steps, values, 0.5))
