"""Sampling on several processes: the samples of one, also after they were killed."""

import pytest
import torch
from support import process_groups as several
from support.bulk_samples import COUNT, NOISY, ROUND_OFF, apart, samples

from gftkit.generation import write as bulk
from gftkit.generation.parts import Parts
from gftkit.generation.sampler import Request, RunSampler
from gftkit.kernel.errors import ConfigError


@pytest.mark.slow
@pytest.mark.parametrize("processes", [2, 4])
def test_processes_make_the_samples_that_one_makes(flow, tmp_path, processes):
    """Four processes have three blocks to share: one of them is idle."""
    request = {"count": COUNT, "seed": 3, "solver": NOISY}
    several.run(several.sample, flow.folder, tmp_path / "s.npz", request, processes=processes)
    assert apart(samples(tmp_path / "s.npz"), flow.samples(COUNT, 3, NOISY)[0]) < ROUND_OFF
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz"]


@pytest.mark.slow
def test_processes_that_count_apart_are_seen(flow, tmp_path):
    request = {"count": COUNT, "seed": 3}
    several.run(several.sample, flow.folder, tmp_path / "s.npz", request, False, True)
    whole = flow.samples(COUNT, 3)[0]
    assert apart(samples(tmp_path / "s.npz")[:64], whole[:64]) < ROUND_OFF
    assert apart(samples(tmp_path / "s.npz"), whole) > 0.1


@pytest.mark.slow
def test_processes_resume_parts_that_one_process_left(flow, tmp_path):
    request = {"count": COUNT, "seed": 3}
    parts = Parts(tmp_path / "s.npz", RunSampler(flow, Request(**request)).identity)
    parts.begin()
    parts.write(64, torch.zeros(64, 2), 1.0)
    several.run(several.sample, flow.folder, tmp_path / "s.npz", request, True)
    found, whole = samples(tmp_path / "s.npz"), flow.samples(COUNT, 3)[0]
    assert not found[64:128].any()
    assert max(apart(found[:64], whole[:64]), apart(found[128:], whole[128:])) < ROUND_OFF


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half", "whole"])
def test_killed_processes_are_resumed(flow, tmp_path, moment):
    request = {"count": 300, "seed": 3, "solver": NOISY, "batch_size": 64}
    asked = (flow.folder, tmp_path / "s.npz", request)
    several.killed(several.start(several.sample, *asked, False, False, moment), 0)
    assert not (tmp_path / "s.npz").exists()
    left = [path.name for path in (tmp_path / "s.npz.parts").iterdir()]
    assert bool([name for name in left if name.startswith("samples-")]) or moment == "half"
    several.run(several.sample, *asked, True)
    assert apart(samples(tmp_path / "s.npz"), flow.samples(300, 3, NOISY)[0]) < ROUND_OFF
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz"]


def test_processes_of_which_accelerate_would_do_more_are_refused(flow, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="leave mixed_precision at no"):
        bulk.write(flow, Request(3), tmp_path / "s.npz", device="cpu")
    assert not list(tmp_path.iterdir())
