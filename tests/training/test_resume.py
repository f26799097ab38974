"""A resumed run equals an undisturbed one; damaged checkpoints, and other data or configurations, are noticed."""

import os
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch
from support.run_results import MLP, result, tuned
from support.runs_on_moons import PRETRAIN, STEPS, interrupt, model, same
from torch import nn

import gftkit
from gftkit.kernel.errors import RunError
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config
from gftkit.storage.files import LOCK
from gftkit.storage.tensors import read_tensors, write_tensors


@pytest.fixture
def with_dropout(registry):
    """A registry with a drift that uses torch's global generator in training."""

    class Plugin:
        @gftkit.hookimpl
        def gftkit_drifts(self):
            return {"with-dropout": make_dropout}

    return gftkit.load(plugins={"dropout": Plugin()})


class WithDropout(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size + 1, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, size))

    def forward(self, t, x):
        return self.net(torch.cat([t[:, None], x], dim=1))


def make_dropout(event_shape: tuple[int, ...]) -> nn.Module:
    """A drift with dropout."""
    return WithDropout(event_shape[0])


@pytest.mark.parametrize(
    "optimizer", ["adam", {"name": "sgd", "momentum": 0.9}, "adamw", {"name": "schedulefree:AdamWScheduleFree"}]
)
@pytest.mark.parametrize("stop", [8, 16])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, with_dropout, stop, optimizer):
    config = {**PRETRAIN, "drift": {"name": "with-dropout"}, "train": {**PRETRAIN["train"], "optimizer": optimizer}}
    whole = gftkit.pretrain(config, tmp_path / "whole", registry=with_dropout).folder
    broken = gftkit.pretrain(config, tmp_path / "broken", registry=with_dropout).folder
    interrupt(broken, stop)
    gftkit.pretrain(config, broken, registry=with_dropout, resume=True)
    assert same(model(whole), model(broken))
    for name in ("metrics.jsonl", "config.yaml"):
        assert (whole / name).read_text() == (broken / name).read_text()
    last = [checkpoint.latest(folder / "checkpoints")[0] for folder in (whole, broken)]
    assert same(last[0].tensors, last[1].tensors)


def test_a_run_stopped_before_its_first_checkpoint_or_at_its_last_step_resumes(tmp_path, registry):
    whole = gftkit.pretrain(PRETRAIN, tmp_path / "whole", registry=registry).folder
    for stop in (0, STEPS):
        broken = gftkit.pretrain(PRETRAIN, tmp_path / str(stop), registry=registry).folder
        (broken / "model.safetensors").unlink()
        for path in checkpoint.checkpoints_of(broken / "checkpoints") if stop == 0 else []:
            path.unlink()
        gftkit.pretrain(PRETRAIN, broken, registry=registry, resume=True)
        assert same(model(whole), model(broken))
        assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def test_resume_passes_over_a_damaged_checkpoint(tuning, tmp_path, registry, capsys):
    whole = gftkit.finetune(tuning, tmp_path / "whole", registry=registry).folder
    broken = gftkit.finetune(tuning, tmp_path / "broken", registry=registry).folder
    interrupt(broken, 16)
    newest = checkpoint.checkpoints_of(broken / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    gftkit.finetune(tuning, broken, registry=registry, resume=True)
    assert same(model(whole), model(broken))
    assert f"{newest.name} is damaged" in capsys.readouterr().err


def test_resume_with_another_configuration_or_anchor_is_refused(tuning, tmp_path, registry):
    out = gftkit.finetune(tuning, tmp_path / "run", registry=registry).folder
    interrupt(out, 8)
    with pytest.raises(RunError, match=r"another configuration: train differ"):
        gftkit.finetune(tuning, out, registry=registry, resume=True, overrides=["train.learning_rate=0.1"])
    path = checkpoint.checkpoints_of(out / "checkpoints")[-1]
    tensors, notes = read_tensors(path)
    write_tensors(path, tensors, {**notes, "anchors": ["another"]})
    with pytest.raises(RunError, match="has changed since this run started"):
        gftkit.finetune(tuning, out, registry=registry, resume=True)
    with pytest.raises(RunError, match="no run to resume"):
        gftkit.finetune(tuning, tmp_path / "none", registry=registry, resume=True)


def flip(path, place):
    raw = bytearray(path.read_bytes())
    raw[place] ^= 16
    path.write_bytes(raw)


def test_resume_from_before_a_damaged_checkpoint_gives_the_same_result(stopped, finished, registry, capsys):
    newest = checkpoint.checkpoints_of(stopped / "checkpoints")[-1]
    flip(newest, -1)
    gftkit.pretrain(MLP, stopped, registry=registry, resume=True)
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert result(stopped) == result(finished)


def test_resume_with_every_checkpoint_damaged_is_refused(stopped, registry):
    folder = stopped / "checkpoints"
    for path in checkpoint.checkpoints_of(folder):
        flip(path, -3)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="wanted a checkpoint to resume from, and none can be read") as caught:
        gftkit.pretrain(MLP, stopped, registry=registry, resume=True)
    assert all(path.name in str(caught.value) for path in checkpoint.checkpoints_of(folder))
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


@pytest.mark.parametrize("change", ["values", "count"])
def test_resume_with_other_data_is_refused(registry, tmp_path, change):
    """The same file with other values in it: what they would lead to is neither run's result."""
    data = np.random.default_rng(0).normal(size=(30, 2)).astype("f4")
    np.save(tmp_path / "x.npy", data)
    config = {**MLP, "data": {"name": "arrays", "file": str(tmp_path / "x.npy")}}
    out = tmp_path / "run"
    gftkit.pretrain(config, out, registry=registry)
    (out / "model.safetensors").unlink()
    gftkit.pretrain(config, out, registry=registry, resume=True)  # of the same ones it goes on
    (out / "model.safetensors").unlink()
    np.save(tmp_path / "x.npy", data + 1 if change == "values" else data[:29])
    with pytest.raises(RunError, match="the data have changed since this run started: 30 samples"):
        gftkit.pretrain(config, out, registry=registry, resume=True)


HOLDER = """
import fcntl, sys
file = open(sys.argv[1], "w")
fcntl.lockf(file, fcntl.LOCK_EX)
file.write("process 1 on another")
file.flush()
print("held", flush=True)
sys.stdin.read()
"""


def test_a_run_folder_locked_by_another_process_is_refused(registry, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    command = [sys.executable, "-c", HOLDER, str(out / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=r"another process is using this folder \(process 1 on another\)"):
            gftkit.pretrain(MLP, out, registry=registry)
        assert os.listdir(out) == [LOCK]
        other.kill()
    gftkit.pretrain(MLP, out, registry=registry)  # a lock dies with its process
    assert not (out / LOCK).exists()


def older(folder):
    """A run folder as it was before data sets had the option ``skip``."""
    path = folder / "config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line.strip() != "skip: 0"))
    assert "skip" not in path.read_text()


def test_resume_fills_in_the_default_of_a_new_option(stopped, registry):
    older(stopped)
    gftkit.pretrain(MLP, stopped, registry=registry, resume=True)
    older(stopped)
    other = {**MLP, "data": {**MLP["data"], "count": 9}}
    with pytest.raises(RunError, match="another configuration: data differ"):  # the negative control
        gftkit.pretrain(other, stopped, registry=registry, resume=True)


def test_a_run_from_before_an_option_is_inherited_from_without_a_warning(finished, registry, tmp_path):
    start = shutil.copytree(finished, tmp_path / "start")
    older(start)
    coupling = {"name": "independent"}
    warnings = resolve_config(tuned(start, coupling=coupling), "finetune", registry).warnings
    assert warnings == []
