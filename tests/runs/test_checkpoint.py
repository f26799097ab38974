"""Checkpoints: damaged ones are passed over, sound ones are kept, also on a full disk."""

import os
import resource

import pytest
import torch

from gftkit.kernel.errors import RunError
from gftkit.runs import checkpoint


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 16
    path.write_bytes(raw)


DAMAGES = {
    "truncated": lambda path: os.truncate(path, path.stat().st_size // 2),
    "a byte short": lambda path: os.truncate(path, path.stat().st_size - 1),
    "empty": lambda path: os.truncate(path, 0),
    "a bit of the length": lambda path: flip(path, 1),
    "a bit of the header": lambda path: flip(path, 40),
    "a bit of the last tensor": lambda path: flip(path, -1),
    "a bit of the first tensor": lambda path: flip(path, 8 + int.from_bytes(path.read_bytes()[:8], "little")),
    "another file": lambda path: path.write_bytes(b"#!/bin/sh\n" * 100),
}


@pytest.mark.parametrize("damage", DAMAGES)
def test_a_damaged_checkpoint_is_passed_over_for_the_one_before(stopped, damage):
    newest = checkpoint.checkpoints_of(stopped / "checkpoints")[-1]
    DAMAGES[damage](newest)
    found, warnings = checkpoint.latest(stopped / "checkpoints")
    assert found.step == 9
    assert [warning.split(":")[0] for warning in warnings] == [f"checkpoint {newest.name} is damaged and was skipped"]


def test_damaged_checkpoints_do_not_push_out_sound_ones(tmp_path):
    tensors = torch.nn.Linear(1, 1).state_dict()
    for step in (10, 20, 30):
        checkpoint.write(tmp_path, step, tensors, {}, keep=3)
    for path in checkpoint.checkpoints_of(tmp_path)[1:]:
        flip(path, -1)
    assert checkpoint.latest(tmp_path)[0].step == 10
    checkpoint.write(tmp_path, 20, tensors, {}, keep=1)
    assert checkpoint.latest(tmp_path)[0].step == 20
    checkpoint.write(tmp_path, 30, tensors, {}, keep=1)
    assert [path.name for path in checkpoint.checkpoints_of(tmp_path)] == ["step-000000030.safetensors"]


def test_a_disk_that_takes_no_more_keeps_the_earlier_checkpoint(tmp_path):
    """The system's own refusal, not a played one: no file may grow beyond a limit."""
    tensors = torch.nn.Linear(128, 64).state_dict()
    checkpoint.write(tmp_path, 1, tensors, {}, keep=1)
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, hard))
    try:
        with pytest.raises(RunError, match=r"cannot write .*step-000000002\.safetensors"):
            checkpoint.write(tmp_path, 2, tensors, {}, keep=1)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))
    assert os.listdir(tmp_path) == ["step-000000001.safetensors"]
    assert checkpoint.latest(tmp_path)[0].step == 1
