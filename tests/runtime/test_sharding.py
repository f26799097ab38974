"""Sharded weights: whole tensors are left as they are."""

import torch

from gftkit.runtime import sharding


def test_whole_tensors_are_left_as_they_are():
    tensors = {"w": torch.ones(2)}
    assert sharding.gathered(tensors)["w"] is tensors["w"]
    assert sharding.gathered(tensors, keep=False) == {}
    assert sharding.whole(tensors["w"]) is sharding.local(tensors["w"]) is tensors["w"]
    assert sharding.shared_out(tensors["w"], torch.zeros(2)) is tensors["w"]
