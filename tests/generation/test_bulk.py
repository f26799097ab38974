"""Sampling in bulk: a sample is a function of seed and index, whoever makes it and after whatever end."""

import itertools
import json
import shutil
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
import yaml
from PIL import Image
from support import processes as several

import gftkit
from gftkit.api import Run
from gftkit.generation import requested_conditions as asking
from gftkit.generation import sampler as sampling
from gftkit.generation import write as bulk
from gftkit.generation.animation import frames
from gftkit.generation.parts import Parts
from gftkit.generation.sampler import Request, Sampler
from gftkit.kernel.errors import ConfigError, DivergenceError, RunError, WeightsError
from gftkit.sampling import noise
from gftkit.storage.tensors import read_tensors, write_tensors

COUNT = 150
"""Two whole blocks of 64, and a part of a third."""
ROUND_OFF = 1e-5
"""What a sample may differ by in float32 where its batch does."""
NOISY = {"name": "euler-maruyama", "steps": 3, "diffusion": {"name": "constant"}}


@pytest.fixture(scope="module")
def flow(pretrained, tmp_path_factory):
    """A finished run that says its pairs are independent, so that it can be sampled with noise too."""
    folder = shutil.copytree(pretrained, tmp_path_factory.mktemp("bulk") / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "coupling": {"name": "independent"}}))
    return Run.open(folder)


@pytest.fixture(scope="module")
def images(tmp_path_factory):
    """A finished run on images, given labels."""
    config = {
        "drift": {"name": "mlp", "width": 8, "depth": 1, "conditional": True},
        "data": {"name": "digits", "count": 30},
        "train": {"steps": 2, "batch_size": 8},
        "evaluate": {"every": 2, "count": 8, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("bulk-images") / "run", device="cpu")


def samples(path):
    return np.load(path)["samples"]


def apart(one, other):
    return float(np.abs(np.asarray(one) - np.asarray(other)).max())


# By index


class Adaptive:
    """A library's solver: how many steps it takes depends on all samples that it is given."""

    ode_order, strong_order, weak_order = 1.0, 0.5, 1.0

    def brownian(self, x, t_end, generator):
        noise = torch.randn(x.shape, generator=generator)
        return lambda s, t: (t - s) * noise

    def integrate(self, drift, diffusion, times, x, brownian):
        yield x
        for t, later in itertools.pairwise(times):
            steps = 1 + int(10 * x.abs().max())
            h = (later - t) / steps
            for k in range(steps):
                x = x + h * drift(t + k * h, x)
            yield x if brownian is None else x + diffusion(t) * brownian(t, later)


@pytest.fixture
def adaptive(monkeypatch):
    """Every solver is that one."""
    build = sampling.scheme_of
    monkeypatch.setattr(sampling, "scheme_of", lambda *asked: replace(build(*asked), solver=Adaptive()))


DOPRI5 = {"name": "dopri5", "steps": 1}
SRK = {"name": "srk", "steps": 2, "diffusion": {"name": "constant"}}


@pytest.mark.parametrize("solver", [DOPRI5, pytest.param(SRK, marks=pytest.mark.slow)], ids=lambda s: s["name"])
def test_the_libraries_solvers_give_an_index_the_same_sample(flow, solver):
    whole = flow.samples(COUNT, 3, solver)[0]
    assert apart(flow.samples(70, 3, solver, batch_size=64)[0], whole[:70]) < ROUND_OFF
    assert apart(Sampler(flow, Request(COUNT, 3, solver)).part(64, 50), whole[64:114]) < ROUND_OFF


@pytest.mark.parametrize("solver", [{"name": "heun", "steps": 2}, NOISY], ids=lambda solver: solver["name"])
def test_an_index_gives_the_same_sample_whatever_the_batch_and_the_count(flow, solver):
    whole = flow.samples(COUNT, 3, solver)[0]
    for size in (7, 64, 100, 1000):
        assert apart(flow.samples(COUNT, 3, solver, batch_size=size)[0], whole) < ROUND_OFF
    assert apart(flow.samples(70, 3, solver)[0], whole[:70]) < ROUND_OFF
    part = Sampler(flow, Request(COUNT, 3, solver)).part(64, 50)
    assert apart(part, whole[64:114]) < ROUND_OFF
    assert apart(flow.samples(COUNT, 4, solver)[0], whole) > 0.1


@pytest.mark.parametrize("solver", [None, NOISY])
def test_a_librarys_solver_is_given_whole_blocks(flow, adaptive, solver, monkeypatch):
    whole = flow.samples(COUNT, 3, solver)[0]
    for size in (64, 100, 1000):
        assert apart(flow.samples(COUNT, 3, solver, batch_size=size)[0], whole) < ROUND_OFF
    assert apart(flow.samples(70, 3, solver)[0], whole[:70]) < ROUND_OFF
    sampler = Sampler(flow, Request(70, 3, solver))
    sampler.samples()
    assert sampler.integrated == 128
    assert sampler.evaluations == sampler.evaluated / 128 > 6
    with pytest.raises(ConfigError, match="batch_size: wanted at least 64, got 10"):
        flow.samples(COUNT, 3, solver, batch_size=10)
    # A wrong twin: only those that were asked for are integrated.
    monkeypatch.setattr(sampling, "Integrator", type(None))
    assert apart(flow.samples(70, 3, solver)[0], whole[:70]) > 100 * ROUND_OFF


@pytest.mark.parametrize("wrong", ["source", "noise"])
def test_numbers_that_a_batch_draws_anew_are_seen(flow, monkeypatch, wrong):
    """Wrong twins: the source, or the noise, of a batch is that of the first one."""
    whole = flow.samples(COUNT, 3, NOISY)[0]
    if wrong == "source":
        monkeypatch.setattr(sampling, "by_block", lambda draw, seed, _, count: noise.by_block(draw, seed, 0, count))
    else:
        monkeypatch.setattr(sampling, "ByBlock", lambda seed, device, _: noise.ByBlock(seed, device))
    assert apart(Sampler(flow, Request(COUNT, 3, NOISY)).part(64, 50), whole[64:114]) > 0.1


def test_conditions_are_taken_in_turn_by_index(images):
    sampler = Sampler(images, Request(COUNT))
    assert sampler.conditions(64, 5)["label"].tolist() == [4, 5, 6, 7, 8]
    assert apart(sampler.part(64, 50), images.samples(COUNT)[0][64:114]) < ROUND_OFF * 16
    other = Sampler(images, Request(COUNT, label=3))
    assert apart(other.part(64, 50), images.samples(COUNT)[0][64:114]) > 0.01


def test_evaluations_are_counted(flow, images):
    for steps, name, each in ((4, "euler", 4), (3, "heun", 6)):
        sampler = Sampler(flow, Request(70, solver={"name": name, "steps": steps}))
        sampler.samples()
        assert (sampler.evaluated, sampler.evaluations) == (70 * each, each)


# Precision


def test_bfloat16_stays_near_float32_and_states_are_float32(flow, monkeypatch):
    """Near: 2 percent of the samples' spread, where one value of bfloat16 has a rounding error of 0.4 percent."""
    wanted = flow.samples(COUNT, 3)[0]
    seen = set()
    build = sampling.scheme_of

    def watched(*arguments):
        scheme = build(*arguments)
        step = scheme.solver.step
        monkeypatch.setattr(
            scheme.solver.__class__,
            "step",
            lambda self, drift, g, t, h, x, dw: seen.add((x.dtype, drift(t, x).dtype)) or step(drift, g, t, h, x, dw),
        )
        return scheme

    monkeypatch.setattr(sampling, "scheme_of", watched)
    found = flow.samples(COUNT, 3, precision="bfloat16")[0]
    assert seen == {(torch.float32, torch.float32)}
    assert found.dtype == torch.float32
    assert 1e-4 < apart(found, wanted) < 0.02 * float(wanted.std())


def test_layers_are_evaluated_in_the_precision_of_choice(flow, monkeypatch):
    seen = set()
    forward = torch.nn.Linear.forward

    def watched(self, x):
        out = forward(self, x)
        seen.add(out.dtype)
        return out

    monkeypatch.setattr(torch.nn.Linear, "forward", watched)
    flow.samples(2, precision="float32")
    assert seen == {torch.float32}
    seen.clear()
    flow.samples(2, precision="bfloat16")
    assert torch.bfloat16 in seen


@pytest.mark.cuda
@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_on_a_device(flow, precision):
    wanted = flow.samples(COUNT, 3)[0]
    found = flow.samples(COUNT, 3, device="cuda", precision=precision)[0]
    assert found.dtype == torch.float32
    assert apart(found, wanted) < 0.02 * float(wanted.std())
    assert apart(flow.samples(COUNT, 3, device="cuda")[0], wanted) < 1e-3


# Parts


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
def test_an_end_is_resumed_and_only_what_is_missing_is_made(images, tmp_path, monkeypatch, name):
    bulk.write(images, Request(COUNT, batch_size=64), tmp_path / "whole.npz", device="cpu")
    whole = samples(tmp_path / "whole.npz")
    part = Sampler.part
    made = []

    def interrupted(self, first, *rest):
        if first == 64 and len(made) < 2:
            made.append(first)
            raise KeyboardInterrupt
        made.append(first)
        return part(self, first, *rest)

    monkeypatch.setattr(Sampler, "part", interrupted)
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
    parts = Parts(out, Sampler(flow, Request(**usual)).identity)
    parts.begin()
    parts.write(0, torch.zeros(64, 2), 1.0)
    changes = {
        "count": {"count": 151},
        "seed": {"seed": 4},
        "solver": {"solver": {"name": "euler", "steps": 3}},
        "precision": {"precision": "bfloat16"},
    }
    for name, change in changes.items():
        with pytest.raises(RunError, match=f"parts of other samples: {name}"):
            bulk.write(flow, Request(**{**usual, **change}), out, device="cpu", resume=True)
    with pytest.raises(RunError, match="parts of other samples: weights"):
        bulk.write(other, Request(**usual), out, device="cpu", resume=True)
    with pytest.raises(RunError, match="Go on with them by --resume"):
        bulk.write(flow, Request(**usual), out, device="cpu")
    bulk.write(flow, Request(**usual), out, device="cpu", resume=True)
    assert not samples(out)[:64].any()  # the part was taken
    assert samples(out)[64:].any()


def test_a_damaged_part_is_made_again_and_said(flow, tmp_path, capfd):
    out = tmp_path / "s.npz"
    request = Request(COUNT, 3, batch_size=64)
    sampler = Sampler(flow, request)
    parts = Parts(out, sampler.identity)
    parts.begin()
    for first in (0, 64):
        parts.write(first, sampler.part(first, 64), 2.0)
    damaged = sorted(parts.folder.glob("samples-*"))[1]
    damaged.write_bytes(damaged.read_bytes()[:-20] + b"\xff" * 20)
    with pytest.raises(WeightsError, match="its content isn't what was written"):
        list(parts.read())
    bulk.write(flow, request, out, device="cpu", resume=True)
    assert "a damaged part is made again" in capfd.readouterr().err
    assert apart(samples(out), flow.samples(COUNT, 3)[0]) < ROUND_OFF


def test_a_part_of_something_else_is_not_taken(flow, tmp_path):
    """Two programs write into one folder."""
    parts, others = Parts(tmp_path / "s.npz", {"seed": 1}), Parts(tmp_path / "s.npz", {"seed": 2})
    parts.begin()
    others.write(0, torch.zeros(64, 2), 1.0)
    with pytest.raises(RunError, match="holds other samples"):
        list(parts.read())


def test_a_target_that_was_half_written_is_written_again(images, tmp_path):
    out, request = tmp_path / "folder", Request(10)
    parts = Parts(out, Sampler(images, request).identity)
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


def test_samples_that_are_not_finite_leave_no_parts(flow, tmp_path, monkeypatch):
    monkeypatch.setattr(sampling, "by_block", lambda *_: torch.full((COUNT, 2), float("nan")))
    with pytest.raises(DivergenceError, match="150 of 150 samples are not finite in the source"):
        bulk.write(flow, Request(COUNT), tmp_path / "s.npz", device="cpu")
    assert not list(tmp_path.iterdir())


PEAK = """
import sys
from pathlib import Path
from gftkit.sampling import bulk
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


# Several processes


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
def test_processes_go_on_with_what_one_left(flow, tmp_path):
    request = {"count": COUNT, "seed": 3}
    parts = Parts(tmp_path / "s.npz", Sampler(flow, Request(**request)).identity)
    parts.begin()
    parts.write(64, torch.zeros(64, 2), 1.0)
    several.run(several.sample, flow.folder, tmp_path / "s.npz", request, True)
    found, whole = samples(tmp_path / "s.npz"), flow.samples(COUNT, 3)[0]
    assert not found[64:128].any()
    assert max(apart(found[:64], whole[:64]), apart(found[128:], whole[128:])) < ROUND_OFF


@pytest.mark.slow
@pytest.mark.parametrize("moment", ["half", "whole"])
def test_processes_that_are_killed_go_on(flow, tmp_path, moment):
    request = {"count": 300, "seed": 3, "solver": NOISY, "batch_size": 64}
    asked = (flow.folder, tmp_path / "s.npz", request)
    several.killed(several.start(several.sample, *asked, False, False, moment), 0)
    assert not (tmp_path / "s.npz").exists()
    left = [path.name for path in (tmp_path / "s.npz.parts").iterdir()]
    assert bool([name for name in left if name.startswith("samples-")]) or moment == "half"
    several.run(several.sample, *asked, True)
    assert apart(samples(tmp_path / "s.npz"), flow.samples(300, 3, NOISY)[0]) < ROUND_OFF
    assert sorted(path.name for path in tmp_path.iterdir()) == ["s.npz"]


# Animated pictures


@pytest.mark.parametrize("suffix", [".gif", ".png", ".webp"])
def test_a_trajectory_goes_from_noise_to_data(images, tmp_path, suffix):
    request = Request(40, 1, solver={"name": "euler", "steps": 5})
    bulk.write(images, request, tmp_path / "s.npz", tmp_path / f"way{suffix}", device="cpu")
    sampler = Sampler(images, request)
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


# Bad input


def test_what_cannot_be_is_refused_before_anything_is_written(flow, refused, tmp_path):
    np.savez(tmp_path / "c.npz", label=np.array([0]))
    ask = ("sample", flow.folder, "--out", "s.npz")
    assert "count: wanted at least 1, got -2" in refused(*ask, "--count", "-2")
    assert "batch_size: wanted at least 1, got 0" in refused(*ask, "--batch-size", "0")
    assert "--steps: wanted at least 1, got -1" in refused(*ask, "--steps", "-1")
    assert "precision: wanted float32, bfloat16, float16, got 'int8'" in refused(*ask, "--precision", "int8")
    assert "is no fine-tune and has no anchor" in refused(*ask, "--temperature", "0.3")
    assert "wanted a finite number >= 0, got nan" in refused(*ask, "--temperature", "nan")
    assert "wanted .gif, .png, .webp, got '.mp4'" in refused(*ask, "--trajectory", "way.mp4")
    assert "jumps by a flow map, and this drift is a velocity" in refused(*ask, "--solver", "flow-map")
    assert "this drift is given none" in refused(*ask, "--conditions", "c.npz")
    (tmp_path / "way.gif").write_text("mine")
    assert "way.gif exists" in refused(*ask, "--trajectory", "way.gif")
    assert sorted(path.name for path in tmp_path.iterdir()) == ["c.npz", "way.gif"]


def test_conditions_that_are_not_finite_are_refused():
    drift = torch.nn.Identity()
    drift.conditions = ("age",)
    for wrong in (float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="'age' holds NaN or infinity in row 1"):
            asking.conditions(drift, {"age": torch.tensor([0.0, wrong])}, None, None, {"age": ()})


def test_an_interruption_says_how_to_go_on(flow, gft, tmp_path, monkeypatch):
    part = Sampler.part

    def interrupted(self, first, *rest):
        if first:
            raise KeyboardInterrupt
        return part(self, first, *rest)

    monkeypatch.setattr(Sampler, "part", interrupted)
    ask = ("sample", flow.folder, "--count", 100, "--batch-size", 64, "--out", "s.npz")
    done = gft(*ask)
    assert (done.code, done.out) == (130, "")
    assert done.err.strip() == "Interrupted: s.npz isn't written. Go on by --resume."
    monkeypatch.undo()
    assert "Go on with them by --resume" in gft("sample", flow.folder, "--out", tmp_path / "s.npz").err
    assert (tmp_path / "s.npz.parts").is_dir()


def test_resume_without_parts_starts_anew_and_says_so(flow, gft, tmp_path):
    done = gft("sample", flow.folder, "--count", 3, "--out", "s.npz", "--resume", "--json")
    assert done.code == 0
    assert "s.npz.parts holds no parts to go on with: starting with the first sample" in done.err
    assert json.loads(done.out) == {"file": "s.npz", "count": 3, "seed": 0, "evaluations": 2.0}
    assert [path.name for path in tmp_path.iterdir()] == ["s.npz"]


def test_processes_of_which_accelerate_would_do_more_are_refused(flow, monkeypatch, tmp_path):
    monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
    with pytest.raises(ConfigError, match="leave mixed_precision at no"):
        bulk.write(flow, Request(3), tmp_path / "s.npz", device="cpu")
    assert not list(tmp_path.iterdir())
