"""The metric forgetting: the distance from the old distribution."""

import pytest
import torch
from support.evaluations import REGISTRY, Made, draw, measure, measures

from gftkit.kernel.contracts import Batch


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


def test_forgetting_is_the_distance_from_the_old_distribution():
    x, y = pair(shift=4.0)
    old = draw(50, 3, seed=9)
    asked = []

    def inherited(count):
        asked.append(count)
        return Batch(old)

    found = measures("forgetting", Made(x, y, inherited=inherited))
    wanted = measures("energy", Made(x, old))["energy"]
    assert found == {"forgetting_energy": wanted}
    assert asked == [40]
    assert wanted.value != pytest.approx(measure("energy", Made(x, y)).value, rel=0.1)
    other = measures("forgetting", Made(x, y, inherited=inherited), metric={"name": "kernel-distance", "steps": 4})
    assert list(other) == ["forgetting_kernel_distance_4_steps"]


def test_forgetting_scales_the_data_that_it_is_given():
    images = draw(30, 1, 8, 8, seed=0).clamp(-1, 1)
    made = Made(images, images)
    found = measure("forgetting", made, data={"name": "digits", "count": 30})
    digits = REGISTRY.create("dataset", "digits", count=30)
    scaled = digits.batch(torch.arange(30)).x1 / 8 - 1
    assert found.value == pytest.approx(measure("energy", Made(images, scaled.double())).value, rel=1e-5)
    with pytest.raises(ValueError, match="isn't known"):
        measure("forgetting", made)
