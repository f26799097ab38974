"""Intervals of 95 %: what they hold in repeated samples, and wrong ones that don't."""

import math

import numpy as np
import pytest
import torch
from scipy import stats
from support.evaluations import draw

from gftkit.estimation.intervals import bootstrap_weights, log_normal, percentiles, proportion
from gftkit.kernel.contracts import Estimate


def generator(seed=0):
    return torch.Generator().manual_seed(seed)


def test_weights_are_dirichlets():
    n, replicates = 8, 20_000
    drawn = bootstrap_weights(n, replicates, generator()) / n
    torch.testing.assert_close(drawn.sum(1), torch.ones(replicates, dtype=torch.float64))
    law = stats.dirichlet([1.0] * n)
    errors = drawn.std(0) / math.sqrt(replicates)
    assert ((drawn.mean(0) - torch.from_numpy(law.mean())).abs() < 4.5 * errors).all()
    np.testing.assert_allclose(drawn.var(0).numpy(), law.var(), rtol=0.08)
    assert stats.kstest(drawn[:, 0].numpy(), stats.beta(1, n - 1).cdf).pvalue > 1e-4
    uniform = torch.rand(replicates, n, generator=generator())
    assert stats.kstest((uniform / uniform.sum(1, keepdim=True))[:, 0].numpy(), stats.beta(1, n - 1).cdf).pvalue < 1e-9


def test_weighted_means_hold_the_mean_as_often_as_they_say():
    held, narrow, trials = 0, 0, 400
    for seed in range(trials):
        x = draw(60, seed=seed).exp()  # skewed
        replicates = bootstrap_weights(60, 300, generator(seed)) @ x / 60
        low, high = percentiles(replicates)
        held += low < math.exp(0.5) < high
        narrow += percentiles(replicates[:3])[0] < math.exp(0.5) < percentiles(replicates[:3])[1]
    assert 0.84 < held / trials < 0.97  # 95 % less the undercoverage that a bootstrap has for skewed means
    assert narrow / trials < 0.7


@pytest.mark.parametrize(("share", "count"), [(0.0, 40), (0.3, 40), (1.0, 25), (0.98, 200)])
def test_a_share_has_wilsons_interval(share, count):
    found = proportion(share, math.sqrt(share * (1 - share) / count), count)
    wanted = stats.binomtest(round(share * count), count).proportion_ci(0.95, "wilson")
    assert found.interval == pytest.approx((wanted.low, wanted.high), abs=1e-9)
    assert found.interval != pytest.approx((share - 2 * found.stderr, share + 2 * found.stderr), abs=1e-3)


def test_dependent_draws_count_as_fewer():
    wide = proportion(0.3, 2 * math.sqrt(0.21 / 400), 400)  # four times the variance
    assert wide.interval == pytest.approx(proportion(0.3, math.sqrt(0.21 / 100), 100).interval)
    lucky = proportion(0.3, 1e-9, 400)  # an error too small to be true
    assert lucky.interval == pytest.approx(proportion(0.3, math.sqrt(0.21 / 400), 400).interval)


def test_a_ratio_has_an_interval_above_0():
    low, high = log_normal(Estimate(0.2, 0.15)).interval
    assert 0 < low < 0.2 < high
    assert low * high == pytest.approx(0.04)
    assert math.log(high / 0.2) == pytest.approx(stats.t(19).ppf(0.975) * 0.75)
    assert log_normal(Estimate(0.0, 0.1)).interval is None
    assert log_normal(Estimate(0.5, math.nan)).interval is None
