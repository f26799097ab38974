"""Files of tensors: a flipped bit anywhere is seen."""

import random

import pytest
import torch

from gftkit.kernel.errors import WeightsError
from gftkit.storage.tensors import read_tensors, write_tensors


def test_a_bit_anywhere_in_a_file_is_seen(tmp_path):
    path = tmp_path / "w.safetensors"
    write_tensors(path, {"w": torch.ones(2, 2), "n": torch.arange(2)}, {"step": 3, "optimizer": {}})
    whole = path.read_bytes()
    read_tensors(path, ours=True)
    for bit in random.Random(1).sample(range(8 * len(whole)), 400):
        raw = bytearray(whole)
        raw[bit // 8] ^= 1 << bit % 8
        path.write_bytes(raw)
        with pytest.raises(WeightsError):
            read_tensors(path, ours=True)
