"""Sampling into a file or folder: memory, interruption, resume, and what is refused before anything is written."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from support.bulk_samples import COUNT

import gftkit
from gftkit.generation import sampler as sampling
from gftkit.generation import write as bulk
from gftkit.generation.sampler import Request, RunSampler
from gftkit.kernel.errors import DivergenceError


def test_samples_that_are_not_finite_leave_no_parts(flow, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "draw_by_block", lambda *_: torch.full((COUNT, 2), float("nan")))
    with pytest.raises(DivergenceError, match="150 of 150 samples are not finite in the source"):
        bulk.write(flow, Request(COUNT), tmp_path / "s.npz", device="cpu")
    assert not list(tmp_path.iterdir())


PEAK = """
import sys
from pathlib import Path
from gftkit.generation import write as bulk
from gftkit.api import Run
from gftkit.generation.sampler import Request
bulk.write(Run.open(sys.argv[1]), Request(int(sys.argv[2]), batch_size=64), Path(sys.argv[3]), device="cpu")
print(next(line for line in open("/proc/self/status") if line.startswith("VmHWM")).split()[1])
"""
"""Samples, then prints the most memory that its process ever held, in KiB."""


@pytest.mark.slow
@pytest.mark.skipif(not Path("/proc/self/status").exists(), reason="reads the peak memory of a Linux process")
def test_the_memory_of_a_folder_does_not_grow_with_the_count(process, tmp_path):
    """Images of 48 KiB: 64 of them are 3 MiB, 1,920 are 90 MiB, which an array of all of them holds, or more."""
    np.save(tmp_path / "large.npy", np.random.default_rng(0).normal(size=(20, 3, 64, 64)).astype(np.float32))
    config = {
        "drift": {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "arrays", "file": str(tmp_path / "large.npy")},
        "coupling": {"name": "independent"},
        "train": {"steps": 1, "batch_size": 4},
        "evaluate": {"count": 4, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 1}},
    }
    run = gftkit.pretrain(config, tmp_path / "run", device="cpu")

    def peak(count, out):
        done = process(PEAK, run.folder, count, out, start=("-c",))
        assert done.code == 0, done.err
        return int(done.out.split()[-1]) / 1024

    few = peak(128, "few")
    assert len(list((tmp_path / "few").iterdir())) == 128
    assert peak(1920, "many") - few < 30
    assert peak(1920, "many.npz") - few > 60  # what the measurement must see


# Bad input


def test_sample_refuses_bad_requests_before_anything_is_written(flow, refused, tmp_path):
    np.savez(tmp_path / "c.npz", label=np.array([0]))
    ask = ("sample", flow.folder, "--out", "s.npz")
    assert "count: wanted at least 1, got -2" in refused(*ask, "--count", "-2")
    assert "batch_size: wanted at least 1, got 0" in refused(*ask, "--batch-size", "0")
    assert "--steps: wanted at least 1, got -1" in refused(*ask, "--steps", "-1")
    assert "precision: wanted float32, bfloat16, float16, got 'int8'" in refused(*ask, "--precision", "int8")
    assert "is no fine-tune, so it has no anchor" in refused(*ask, "--temperature", "0.3")
    assert "wanted a finite number above -1, got nan" in refused(*ask, "--temperature", "nan")
    assert "wanted .gif, .png, .webp, got '.mp4'" in refused(*ask, "--trajectory", "way.mp4")
    assert "requires a flow map, and this drift is a velocity" in refused(*ask, "--solver", "flow-map")
    assert "this drift takes none" in refused(*ask, "--conditions", "c.npz")
    (tmp_path / "way.gif").write_text("mine")
    assert "way.gif exists" in refused(*ask, "--trajectory", "way.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.npz", "way.gif"]


def test_an_interruption_says_how_to_resume(flow, gft, tmp_path, monkeypatch):
    part = RunSampler.part

    def interrupted(self, first, *rest):
        if first:
            raise KeyboardInterrupt
        return part(self, first, *rest)

    monkeypatch.setattr(RunSampler, "part", interrupted)
    ask = ("sample", flow.folder, "--count", 100, "--batch-size", 64, "--out", "s.npz")
    done = gft(*ask)
    assert (done.code, done.out) == (130, "")
    assert done.err.strip() == "Interrupted before s.npz was written. Continue with --resume."
    monkeypatch.undo()
    assert "Continue it with --resume" in gft("sample", flow.folder, "--out", tmp_path / "s.npz").err
    assert (tmp_path / "s.npz.parts").is_dir()


def test_resume_without_parts_starts_anew_and_says_so(flow, gft, tmp_path):
    done = gft("sample", flow.folder, "--count", 3, "--out", "s.npz", "--resume", "--json")
    assert done.code == 0
    assert "s.npz.parts contains no parts to continue: starting with the first sample" in done.err
    assert json.loads(done.out) == {"file": "s.npz", "count": 3, "seed": 0, "evaluations": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]
