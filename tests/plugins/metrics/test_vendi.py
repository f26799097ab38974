"""The Vendi score: the entropy of the kernel's eigenvalues."""

import math

import numpy as np
import pytest
from support.evaluations import Made, draw, measures


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


def vendi(x):
    x = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    values = np.linalg.eigvalsh(x @ x.T / len(x))
    values = values[values > 1e-12]
    return math.exp(-(values * np.log(values)).sum())


@pytest.mark.parametrize("d", [3, 70])
def test_vendi_is_the_entropy_of_the_kernels_eigenvalues(d):
    x, y = pair(40, 50, d)
    found = measures("vendi", Made(x, y))
    assert found["vendi"].value == pytest.approx(vendi(x), rel=1e-8)
    assert found["vendi_reference"].value == pytest.approx(vendi(y[:40]), rel=1e-8)
    assert found["vendi"].value != pytest.approx(vendi(x - x.mean(0)), rel=1e-4)
    assert found["vendi_reference"].value != pytest.approx(vendi(y), rel=1e-4)
    with pytest.raises(ValueError, match="feature of the samples is zero"):
        measures("vendi", Made(0 * x, y))


def test_a_collapse_lowers_the_vendi_score():
    y = draw(60, 6, seed=1)
    found = measures("vendi", Made(y[:3].repeat(20, 1), y))
    assert found["vendi"].value <= 3 + 1e-9
    assert found["vendi_reference"].value > 4.5
