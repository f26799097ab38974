"""The metric memorisation: 1 where nothing is known, less for copies."""

import math

import numpy as np
import pytest
import torch
from support.evaluations import Made, draw, measure


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


def test_memorisation_is_1_where_nothing_is_known_and_less_for_copies():
    made = [
        measure("memorisation", Made(draw(80, 2, seed=3 * s), draw(60, 2, seed=3 * s + 1), draw(60, 2, seed=3 * s + 2)))
        for s in range(40)
    ]
    logs = np.log([each.value for each in made])
    assert abs(logs.mean()) < 4 * logs.std(ddof=1) / math.sqrt(40)
    assert sum(each.interval[0] <= 1 <= each.interval[1] for each in made) >= 34
    old, new, fresh = (draw(60, 2, seed=seed) for seed in (1, 2, 3))
    half = torch.cat([old[:30] + 1e-3 * draw(30, 2, seed=4), fresh[:30]])
    found = measure("memorisation", Made(half, new, old))
    assert found.interval[1] < 1
    near = [np.mean([min(math.dist(a, b) for b in of.tolist()) for a in half.tolist()]) for of in (old, new)]
    assert found.value == pytest.approx(near[0] / near[1], rel=1e-8)


def test_memorisation_compares_equal_numbers():
    """More training data would lie nearer by their number alone."""
    x, new, old = draw(100, 2, seed=0), draw(40, 2, seed=1), draw(4000, 2, seed=2)
    found = measure("memorisation", Made(x, new, old))
    whole = torch.cdist(x, old).amin(1).mean() / torch.cdist(x, new).amin(1).mean()
    assert whole < 0.3
    assert found.interval[0] < 1 < found.interval[1]


def test_memorisation_wants_held_out_data():
    x, y = pair()
    for made in (Made(x, y, y, held_out=False), Made(x, y)):
        with pytest.raises(ValueError, match="none are held out"):
            measure("memorisation", made)
    with pytest.raises(ValueError, match="copy of a held-out"):
        measure("memorisation", Made(y, y, x))
