"""The Frechet distance against scipy and closed forms; wrong twins are rejected."""

import math

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from support.evaluations import REGISTRY, Made, draw, measure

from gftkit_plugins.metrics.frechet import covariance, frechet_distance

ROUND_OFF = 1e-8  # relative; float64 through two eigendecompositions
STANDARD_ERRORS = 4.0  # two-sided false-alarm rate 6e-5
SEEDS = 50
SPREAD = 0.35  # a spread over 50 seeds is known to 10 %, a mean of 50 standard errors to 2 %; the rest is bias


def random_covariance(d, seed, rank=None):
    factor = draw(d, rank or d, seed=seed)
    return factor @ factor.T / d


def by_scipy(mean1, cov1, mean2, cov2):
    root = linalg.sqrtm(cov1.numpy() @ cov2.numpy())
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root).real)


def by_commuting(mean1, cov1, mean2, cov2):
    """Wrong unless the covariances commute: |S1^(1/2) - S2^(1/2)|^2."""
    roots = [torch.from_numpy(linalg.sqrtm(cov.numpy()).real) for cov in (cov1, cov2)]
    return float((mean1 - mean2).square().sum() + (roots[0] - roots[1]).square().sum())


def without_factor_two(mean1, cov1, mean2, cov2):
    right = by_scipy(mean1, cov1, mean2, cov2)
    plain = float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace())
    return (plain + right) / 2


def standard_deviation_for_variance(mean1, cov1, mean2, cov2):
    roots = [torch.from_numpy(linalg.sqrtm(cov.numpy()).real) for cov in (cov1, cov2)]
    return by_scipy(mean1, roots[0], mean2, roots[1])


@settings(max_examples=20, deadline=None)
@given(d=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_frechet_is_scipys_for_covariances_that_do_not_commute(d, seed):
    given = (
        draw(d, seed=seed),
        random_covariance(d, seed + 1, 2 * d),
        draw(d, seed=seed + 2),
        random_covariance(d, seed + 3),
    )
    scale = float(given[1].trace() + given[3].trace())
    assert frechet_distance(*given) == pytest.approx(by_scipy(*given), abs=ROUND_OFF * scale)


@pytest.mark.parametrize("wrong", [by_commuting, without_factor_two, standard_deviation_for_variance])
def test_wrong_frechets_are_rejected(wrong):
    given = draw(4, seed=0), random_covariance(4, 1), draw(4, seed=2), random_covariance(4, 3)
    assert frechet_distance(*given) != pytest.approx(wrong(*given), rel=1000 * ROUND_OFF)


def test_frechet_of_two_dimensional_covariances_by_hand():
    """tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)) in two dimensions."""
    first = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.9], [-0.9, 3.0]], dtype=torch.float64)
    assert not torch.allclose(first @ second, second @ first)
    cross = torch.sqrt((first @ second).trace() + 2 * torch.sqrt(first.det() * second.det()))
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    expected = float(5 + first.trace() + second.trace() - 2 * cross)
    assert frechet_distance(mean, first, 0 * mean, second) == pytest.approx(expected, rel=ROUND_OFF)


def test_frechet_is_symmetric_zero_on_equals_and_takes_singular_covariances():
    mean, full, singular = draw(6, seed=0), random_covariance(6, 1), random_covariance(6, 2, rank=2)
    there, back = frechet_distance(mean, full, -mean, singular), frechet_distance(-mean, singular, mean, full)
    assert there == pytest.approx(back, abs=1e-6)  # square roots of round-off: 1e-8 for each singular direction
    assert frechet_distance(mean, full, mean, full) == pytest.approx(0, abs=ROUND_OFF)
    assert frechet_distance(mean, singular, mean, singular) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(mean, 0 * full, -mean, 0 * full) == pytest.approx(4 * float(mean @ mean), rel=ROUND_OFF)


def test_covariance_is_numpys():
    x = draw(9, 3, seed=0)
    np.testing.assert_allclose(covariance(x).numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_frechet_metric_uses_events_features_and_steps():
    made = Made(draw(40, 1, 2, 2, seed=0), 1 + draw(50, 1, 2, 2, seed=1))
    x, y = made.x.flatten(1), made.y.flatten(1)
    expected = frechet_distance(x.mean(0), covariance(x), y.mean(0), covariance(y))
    assert measure("frechet", made, feature={"name": "identity"}).value == pytest.approx(expected, rel=ROUND_OFF)
    assert measure("frechet", made, feature=lambda z: 2 * z.flatten(1)).value == pytest.approx(4 * expected)
    assert measure("frechet", made, steps=4).value == pytest.approx(expected, rel=ROUND_OFF)
    assert made.steps_asked == 4


def test_reference_features_are_computed_once_for_each_reference():
    seen = []

    def feature(x):
        seen.append(x)
        return x

    metric = REGISTRY.create("metric", "frechet", feature=feature)
    made, other = Made(draw(30, 2, seed=0), draw(30, 2, seed=1)), Made(draw(30, 2, seed=0), draw(30, 2, seed=2))
    values = [metric.measure(each, torch.Generator().manual_seed(0))["frechet"].value for each in (made, made, other)]
    assert [sum(x is each.y for x in seen) for each in (made, other)] == [1, 1]
    assert len(seen) == 5
    assert values[0] == values[1] != values[2]


def test_frechet_standard_error_and_the_stated_bias():
    def spread(shift, d=3, n=200, m=300):
        made = [
            measure("frechet", Made(draw(n, d, seed=2 * s) + shift, draw(m, d, seed=2 * s + 1)), s)
            for s in range(SEEDS)
        ]
        return np.array([e.value for e in made]), np.array([e.stderr for e in made])

    bias = (1 / 200 + 1 / 300) * (3 + 3 * 4 / 4)
    values, errors = spread(1.0)
    off = abs(values.mean() - (3 + bias)) / (values.std(ddof=1) / math.sqrt(SEEDS))
    assert off < STANDARD_ERRORS
    assert abs(errors.mean() / values.std(ddof=1) - 1) < SPREAD
    values, _ = spread(0.0)
    assert abs(values.mean() / bias - 1) < 0.15  # 4 standard errors and the next order in 1/n
    assert abs(values.mean() / (bias / 2) - 1) > 0.45  # a wrong twin
