"""Sharded weights: whole tensors are left as they are."""

import torch

from gftkit.runtime import sharding


def test_whole_tensors_are_left_as_they_are():
    tensors = {"w": torch.ones(2)}
    assert sharding.gather_tensors(tensors)["w"] is tensors["w"]
    assert sharding.gather_tensors(tensors, keep=False) == {}
    assert sharding.full_tensor(tensors["w"]) is sharding.local_part(tensors["w"]) is tensors["w"]
    assert sharding.shard_like(tensors["w"], torch.zeros(2)) is tensors["w"]
