"""The jackknife against closed forms and the spread over seeds; wrong twins are rejected."""

import math

import numpy as np
import pytest
import torch
from support.evaluations import draw

from gftkit.estimation.jackknife import jackknife_estimate

ROUND_OFF = 1e-8  # relative; float64 through two eigendecompositions
STANDARD_ERRORS = 4.0  # two-sided false-alarm rate 6e-5
SEEDS = 50


def mean_of(x):
    return float(x.mean())


def without_the_factor(statistic, samples, generator, groups):
    """Wrong: the (G - 1)/G is missing."""
    error = jackknife_estimate(statistic, samples, generator, groups).stderr
    return error * math.sqrt(groups / (groups - 1))


def spread_of_left_out(statistic, samples, generator, groups):
    """Wrong: the standard deviation of the left-out values, as of a bootstrap."""
    return jackknife_estimate(statistic, samples, generator, groups).stderr / (groups - 1) * math.sqrt(groups)


def right(statistic, samples, generator, groups):
    return jackknife_estimate(statistic, samples, generator, groups).stderr


def exact_error(method):
    """How far the delete-one standard error of a mean is from s/sqrt(n), which it equals."""
    x = draw(12, seed=0)
    exact = float(x.std()) / math.sqrt(12)
    return abs(method(mean_of, [x], torch.Generator().manual_seed(1), 12) / exact - 1)


def test_jackknife_of_a_mean_is_exact_with_single_draws_as_groups():
    assert exact_error(right) < ROUND_OFF


@pytest.mark.parametrize("wrong", [without_the_factor, spread_of_left_out])
def test_wrong_jackknives_are_rejected(wrong):
    assert exact_error(wrong) > 1000 * ROUND_OFF


def test_jackknife_of_a_mean_is_sigma_over_root_n():
    sigma, n, groups = 3.0, 200, 20
    squares = [
        right(mean_of, [sigma * draw(n, seed=seed)], torch.Generator().manual_seed(seed), groups) ** 2
        for seed in range(SEEDS)
    ]
    relative_error = math.sqrt(2 / (groups - 1) / SEEDS)  # of a mean of 50 chi-squares with 19 degrees of freedom
    assert abs(np.mean(squares) / (sigma**2 / n) - 1) < STANDARD_ERRORS * relative_error


def test_jackknife_adds_the_variances_of_independent_samples():
    x, y = draw(40, seed=1), draw(80, seed=2)
    difference = [
        jackknife_estimate(lambda a, b: float(a.mean() - b.mean()), [x, y], torch.Generator().manual_seed(seed)).stderr
        ** 2
        for seed in range(SEEDS)
    ]
    expected = float(x.var() / 40 + y.var() / 80)
    assert abs(np.mean(difference) / expected - 1) < STANDARD_ERRORS * math.sqrt(2 / 19 / SEEDS)


def test_jackknife_follows_its_generator():
    x = draw(40, seed=1)
    first, again, other = (jackknife_estimate(mean_of, [x], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert first.stderr != other.stderr


@pytest.mark.parametrize(("count", "groups"), [(10, 1), (10, 11)])
def test_jackknife_refuses_too_few(count, groups):
    with pytest.raises(ValueError, match="Make more samples"):
        jackknife_estimate(mean_of, [draw(count, seed=0)], torch.Generator(), groups)
