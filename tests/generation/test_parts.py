"""Parts of samples: what is missing, resumed and damaged ones, and parts of other samples."""

import shutil

import numpy as np
import pytest
import torch
from PIL import Image
from support.bulk_samples import COUNT, ROUND_OFF, apart, samples

from gftkit.api import Run
from gftkit.generation import write as bulk
from gftkit.generation.parts import Parts
from gftkit.generation.sampler import Request, RunSampler
from gftkit.kernel.errors import RunError, WeightsError
from gftkit.storage.tensors import read_tensors, write_tensors


def test_parts_cover_what_is_missing(tmp_path):
    parts = Parts(tmp_path / "s.npz", {})
    assert parts.missing(150, 128) == [(0, 128), (128, 22)]
    assert parts.missing(150, 512, 2) == [(0, 128), (128, 22)]
    assert parts.missing(150, 512, 3) == [(0, 64), (64, 64), (128, 22)]
    assert parts.missing(150, 512, 8) == [(0, 64), (64, 64), (128, 22)]  # the others are idle
    assert parts.missing(150, 7) == [(0, 64), (64, 64), (128, 22)]
    parts.write(64, torch.zeros(64, 2), 1.0)
    assert parts.missing(300, 128) == [(0, 64), (128, 128), (256, 44)]
    assert parts.missing(128, 128) == [(0, 64)]


@pytest.mark.parametrize("name", ["s.npz", "s.safetensors", "folder"])
def test_resume_makes_only_the_missing_samples(images, tmp_path, monkeypatch, name):
    bulk.write(images, Request(COUNT, batch_size=64), tmp_path / "whole.npz", device="cpu")
    whole = samples(tmp_path / "whole.npz")
    part = RunSampler.part
    made = []

    def interrupted(self, first, *rest):
        if first == 64 and len(made) < 2:
            made.append(first)
            raise KeyboardInterrupt
        made.append(first)
        return part(self, first, *rest)

    monkeypatch.setattr(RunSampler, "part", interrupted)
    request, out = Request(COUNT, batch_size=64), tmp_path / name
    with pytest.raises(KeyboardInterrupt):
        bulk.write(images, request, out, device="cpu")
    assert not out.exists()
    assert [path.name for path in sorted(tmp_path.iterdir())] == sorted(["whole.npz", f"{name}.parts"])
    bulk.write(images, Request(COUNT, batch_size=128), out, device="cpu", resume=True)
    assert made == [0, 64, 64]  # the second time 86 samples in one part
    assert not (tmp_path / f"{name}.parts").exists()
    if name == "folder":
        assert sorted(path.name for path in out.iterdir()) == [f"{index:06d}.png" for index in range(COUNT)]
        with Image.open(out / "000149.png") as picture:
            seen = np.asarray(picture.convert("L"), dtype=float)
        assert apart(seen, (whole[149, 0] / 16).clip(0, 1) * 255) < 1
        assert apart(seen, (whole[148, 0] / 16).clip(0, 1) * 255) > 1
    elif name == "s.npz":
        assert apart(samples(out), whole) < ROUND_OFF * 16


def test_parts_of_other_samples_are_refused(flow, tmp_path):
    """Each of what determines them, by name."""
    other = Run.open(shutil.copytree(flow.folder, tmp_path / "other"))
    weights, notes = read_tensors(other.folder / "model.safetensors")
    write_tensors(other.folder / "model.safetensors", {name: 2 * held for name, held in weights.items()}, notes)
    out, usual = tmp_path / "s.npz", {"count": COUNT, "seed": 3}
    parts = Parts(out, RunSampler(flow, Request(**usual)).identity)
    parts.begin()
    parts.write(0, torch.zeros(64, 2), 1.0)
    changes = {
        "count": {"count": 151},
        "seed": {"seed": 4},
        "solver": {"solver": {"name": "euler", "steps": 3}},
        "precision": {"precision": "bfloat16"},
    }
    for name, change in changes.items():
        with pytest.raises(RunError, match=f"parts of other samples, which differ in {name}"):
            bulk.write(flow, Request(**{**usual, **change}), out, device="cpu", resume=True)
    with pytest.raises(RunError, match="parts of other samples, which differ in weights"):
        bulk.write(other, Request(**usual), out, device="cpu", resume=True)
    with pytest.raises(RunError, match="Continue it with --resume"):
        bulk.write(flow, Request(**usual), out, device="cpu")
    bulk.write(flow, Request(**usual), out, device="cpu", resume=True)
    assert not samples(out)[:64].any()  # the part was taken
    assert samples(out)[64:].any()


def test_a_damaged_part_is_made_again_with_a_warning(flow, tmp_path, capfd):
    out = tmp_path / "s.npz"
    request = Request(COUNT, 3, batch_size=64)
    sampler = RunSampler(flow, request)
    parts = Parts(out, sampler.identity)
    parts.begin()
    for first in (0, 64):
        parts.write(first, sampler.part(first, 64), 2.0)
    damaged = sorted(parts.folder.glob("samples-*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-20] + b"\xff" * 20)
    with pytest.raises(WeightsError, match="the content doesn't match its digest"):
        list(parts.read())
    bulk.write(flow, request, out, device="cpu", resume=True)
    assert "a damaged part is sampled again" in capfd.readouterr().err
    assert apart(samples(out), flow.samples(COUNT, 3)[0]) < ROUND_OFF


def test_a_part_of_something_else_is_not_taken(flow, tmp_path):
    """Two programs write into one folder."""
    parts, others = Parts(tmp_path / "s.npz", {"seed": 1}), Parts(tmp_path / "s.npz", {"seed": 2})
    parts.begin()
    others.write(0, torch.zeros(64, 2), 1.0)
    with pytest.raises(RunError, match="contains other samples"):
        list(parts.read())


def test_a_target_that_was_half_written_is_written_again(images, tmp_path):
    out, request = tmp_path / "folder", Request(10)
    parts = Parts(out, RunSampler(images, request).identity)
    parts.begin()
    parts.write(0, torch.zeros(10, 1, 8, 8), 1.0)
    out.mkdir()
    (out / "000000.png").write_text("half")
    with pytest.raises(RunError, match="exists"):
        bulk.write(images, request, out, device="cpu", resume=True)
    parts.begin_writing()
    bulk.write(images, request, out, device="cpu", resume=True)
    with Image.open(out / "000000.png") as picture:
        assert picture.size == (8, 8)
