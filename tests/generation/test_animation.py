"""Animated pictures of a trajectory, from noise to data."""

import numpy as np
import pytest
import torch
from PIL import Image
from support.bulk_samples import ROUND_OFF, apart, samples

from gftkit.generation import write as bulk
from gftkit.generation.animation import frames
from gftkit.generation.sampler import Request, RunSampler


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_a_trajectory_goes_from_noise_to_data(images, tmp_path, suffix):
    request = Request(40, 1, solver={"name": "euler", "steps": 5})
    bulk.write(images, request, tmp_path / "s.npz", trajectory=tmp_path / f"way{suffix}", device="cpu")
    sampler = RunSampler(images, request)
    states = sampler.states(36)
    assert apart(states[-1], samples(tmp_path / "s.npz")[:36]) < ROUND_OFF * 16
    with Image.open(tmp_path / f"way{suffix}") as picture:
        assert picture.n_frames == 6
        assert picture.size == (4 * (6 * 9 - 1), 4 * (6 * 9 - 1))
        for frame in (0, 5):
            picture.seek(frame)
            seen = torch.tensor(np.asarray(picture.convert("L"), dtype=float)[:32:4, :32:4])
            shown = [(state[0, 0] / 16).clip(0, 1) * 255 for state in states]
            gaps = [float((seen - wanted).abs().mean()) for wanted in shown]
            assert gaps.index(min(gaps)) == frame


def test_points_move_on_axes_that_stay():
    states = torch.stack([torch.tensor([[0.0, 0.0], [1.0, 1.0]]), torch.tensor([[1.0, 0.0], [1.0, 1.0]])])
    first, second = (frame.astype(float).mean(2) for frame in frames(states, None))
    assert first.shape == second.shape
    moved = np.argwhere(np.abs(first - second) > 20)
    assert moved[:, 1].max() - moved[:, 1].min() > 100  # one point, from left to right
    assert moved[:, 0].max() - moved[:, 0].min() < 20
    assert len(frames(torch.rand(200, 4, 1, 2, 2), None)) == 60
