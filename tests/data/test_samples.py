"""Samples: a few of many are drawn without replacement."""

import math

import torch

from gftkit.data.samples import permuted_indices
from gftkit.runtime.randomness import stream


def test_a_few_of_many_are_different_and_spread_out():
    size = 2**40
    few = permuted_indices(5000, size, stream(0, "few"))
    assert len(few.unique()) == 5000
    assert abs(float(few.double().mean()) / size - 0.5) < 5 * math.sqrt(1 / 12 / 5000)
    assert torch.equal(few, permuted_indices(5000, size, stream(0, "few")))


def test_a_few_of_many_draw_again_where_some_coincide(monkeypatch):
    monkeypatch.setattr("gftkit.data.samples.MANY", 10)
    for seed in range(50):
        few = permuted_indices(8, 16, stream(seed, "few"))
        assert len(few.unique()) == len(few) == 8
        assert 0 <= few.min() <= few.max() < 16
    counts = torch.cat([permuted_indices(8, 16, stream(seed, "few")) for seed in range(2000)]).bincount(minlength=16)
    assert (counts - 1000).abs().max() < 5 * math.sqrt(2000 / 4)
