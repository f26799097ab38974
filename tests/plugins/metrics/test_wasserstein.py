"""Wasserstein and sliced Wasserstein distances against POT and closed forms."""

import math

import numpy as np
import ot
import pytest
import torch
from support.evaluations import Made, draw, measure


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (24, 37)])
def test_wasserstein_is_pots(p, n, m):
    x, y = pair(n, m, 2, shift=0.7)
    found = measure("wasserstein", Made(x, y), p=p)
    cost = ot.dist(x.numpy(), y.numpy(), "euclidean") ** p
    wanted = ot.emd2(ot.unif(n), ot.unif(m), cost) ** (1 / p)
    assert found.value == pytest.approx(wanted, rel=1e-8)
    assert found.stderr > 0
    assert found.value != pytest.approx(cost.mean() ** (1 / p), rel=0.01)  # the independent plan


def test_unequal_numbers_want_pot(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Set evaluate.count to 24, or install it: pip install 'gftkit\[transport\]'"):
        measure("wasserstein", Made(*pair(24, 37)))
    assert measure("wasserstein", Made(*pair(24, 24))).value > 0


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (24, 37)])
def test_sliced_wasserstein_is_pots_and_exact_on_a_line(p, n, m):
    x, y = pair(n, m, 4, shift=0.7)
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    wanted = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.T.numpy(), p=p)
    assert measure("sliced-wasserstein", Made(x, y), 3, p=p, projections=50).value == pytest.approx(wanted, rel=1e-8)
    line = measure("sliced-wasserstein", Made(x[:, :1], y[:, :1]), p=p).value
    exact = ot.wasserstein_1d(x[:, 0].numpy(), y[:, 0].numpy(), p=p) ** (1 / p)
    assert line == pytest.approx(exact, rel=1e-8)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    x = draw(200, 5, seed=0)
    shift = draw(5, seed=1)
    found = measure("sliced-wasserstein", Made(x, x + shift), projections=1000).value
    assert found == pytest.approx(float(shift.norm()) / math.sqrt(5), rel=0.1)
    assert found != pytest.approx(float(shift.norm()), rel=0.5)


@pytest.mark.parametrize("name", ["wasserstein", "sliced-wasserstein"])
def test_errors_of_transport_distances_are_their_spread(name):
    made = [measure(name, Made(*pair(60, 60, 2, shift=1.5, seed=seed)), seed) for seed in range(40)]
    spread = np.std([each.value for each in made], ddof=1)
    assert np.mean([each.stderr for each in made]) / spread == pytest.approx(1, abs=0.4)
