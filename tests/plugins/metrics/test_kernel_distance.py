"""The kernel distance against the unbiased MMD; unbiased distances of equal laws."""

import numpy as np
import pytest
from sklearn.metrics.pairwise import polynomial_kernel
from support.evaluations import Made, draw, measure

ROUND_OFF = 1e-9


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


def mmd(x, y, unbiased=True, degree=3, gamma=None):
    """Binkowski et al., by scikit-learn's kernel."""
    xx, yy, xy = (polynomial_kernel(a, b, degree, gamma, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    n, m = xy.shape
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * xy.mean()


def test_kernel_distance_is_the_unbiased_mmd_of_the_cubic_kernel():
    x, y = pair(30, 45, shift=0.5)
    found = measure("kernel-distance", Made(x, y))
    assert found.value == pytest.approx(mmd(x, y), rel=ROUND_OFF)
    assert found.interval[0] < found.value < found.interval[1]
    for wrong in (mmd(x, y, unbiased=False), mmd(x, y, degree=2), mmd(x, y, gamma=1.0)):
        assert found.value != pytest.approx(wrong, rel=1e-3)


def test_kernel_distance_over_subsets():
    x, y = pair(40, 40, shift=0.5)
    whole = measure("kernel-distance", Made(x, y), subset=40, subsets=2)
    assert whole.value == pytest.approx(mmd(x, y), rel=1e-6)
    halves = [measure("kernel-distance", Made(x, y), seed=seed, subset=20, subsets=200) for seed in (0, 1)]
    spread = abs(halves[0].value - halves[1].value)
    assert spread < 0.5 * halves[0].stderr  # the same data: only the choice of subsets differs
    assert abs(halves[0].value - mmd(x, y)) < halves[0].stderr
    with pytest.raises(ValueError, match="wanted at least 60 samples for a subset, got 40"):
        measure("kernel-distance", Made(x, y), subset=60)
