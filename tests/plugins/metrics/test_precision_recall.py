"""Precision, recall, density and coverage against the papers' definitions."""

import math

import numpy as np
import pytest
import torch
from sklearn.neighbors import NearestNeighbors
from support.evaluations import Made, draw, measures

from gftkit_plugins.metrics.precision_recall import shares

ROUND_OFF = 1e-9


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


def by_neighbours(x, y, k):
    """The four numbers by scikit-learn's neighbours and loops."""
    reach = {}
    for name, of in (("x", x), ("y", y)):
        reach[name] = NearestNeighbors(n_neighbors=k + 1).fit(of).kneighbors(of)[0][:, k]
    near = [[math.dist(a, b) for b in y.tolist()] for a in x.tolist()]
    inside = [[near[i][j] <= reach["y"][j] for j in range(len(y))] for i in range(len(x))]
    return {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean([any(near[i][j] <= reach["x"][i] for i in range(len(x))) for j in range(len(y))]),
        "density": np.sum(inside) / (k * len(x)),
        "coverage": np.mean(np.any(inside, axis=0)),
    }


def test_precision_recall_density_and_coverage_are_those_of_the_papers():
    x, y = pair(30, 45, 2, shift=0.8)
    found = measures("precision-recall", Made(x, y), neighbours=3)
    wanted = by_neighbours(x, y, 3)
    assert {name: each.value for name, each in found.items()} == pytest.approx(wanted, rel=ROUND_OFF)
    turned = by_neighbours(y, x, 3)
    assert turned["precision"] == pytest.approx(wanted["recall"])
    assert wanted["precision"] != wanted["recall"]
    without_itself = by_neighbours(x, y, 2)
    assert all(found[name].value != pytest.approx(without_itself[name], rel=1e-6) for name in ("density", "coverage"))


def test_density_and_coverage_of_equal_laws_are_naeems():
    n, m, k = 50, 30, 3
    made = np.array([
        shares(*(torch.cdist(a, b) for a, b in ((x, x), (y, y), (x, y))), k)
        for x, y in (pair(n, m, 2, seed=seed) for seed in range(200))
    ])  # fmt: skip
    errors = made.std(0, ddof=1) / math.sqrt(len(made))
    wanted = 1 - math.comb(m - 1, k) / math.comb(n + m - 1, k)
    assert abs(made[:, 2].mean() - 1) < 4 * errors[2]
    assert abs(made[:, 3].mean() - wanted) < 4 * errors[3]
    assert abs(made[:, 3].mean() - (1 - math.comb(n - 1, k) / math.comb(n + m - 1, k))) > 12 * errors[3]


def test_a_lost_mode_lowers_recall_and_coverage_and_noise_lowers_precision_and_density():
    _, y = pair(80, 80, 2)
    y[:40] += 20
    lost = measures("precision-recall", Made(draw(80, 2, seed=5), y))
    noisy = measures("precision-recall", Made(torch.cat([draw(40, 2, seed=6) * 30 + 200, y[:40] + 0.01]), y))
    assert lost["recall"].value <= 0.55
    assert lost["coverage"].value <= 0.55
    assert lost["precision"].value > 0.8
    assert noisy["precision"].value <= 0.55
    assert noisy["density"].value <= 0.7
    for each in (*lost.values(), *noisy.values()):
        assert each.interval is None or 0 <= each.interval[0] <= each.value <= each.interval[1] <= 1


@pytest.mark.parametrize("which", ["samples", "data"])
def test_features_that_coincide_are_refused(which):
    x, y = pair(40, 40, 2)
    one = torch.ones_like(x)
    made = Made(one, y) if which == "samples" else Made(x, one)
    with pytest.raises(ValueError, match=f"features of the {which} coincide.*one class"):
        measures("precision-recall", made)
    with pytest.raises(ValueError, match="20 neighbours require at least 42"):
        measures("precision-recall", Made(x, y), neighbours=20)
