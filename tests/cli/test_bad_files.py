"""Weights that are damaged, foreign or unsafe, and places where nothing can be written: refused, nothing lost."""

import errno
import os
import pickle
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import save_file

from gftkit.api import Run
from gftkit.kernel.errors import WeightsError
from gftkit.networks.foreign_weights import read_weights_file as weights_read
from gftkit.runs import checkpoint


class Evil:
    """Unpickled, it makes a file."""

    def __init__(self, marker):
        self.marker = marker

    def __reduce__(self):
        return (Path.touch, (Path(self.marker),))


def snapshot(folder):
    return {path: path.read_bytes() for path in sorted(folder.rglob("*")) if path.is_file()}


# Weights


@pytest.fixture
def weights(tmp_path, pretrained):
    """Writes a weights file and gives what a fine-tune from it needs."""

    def write(name, change=lambda state: state):
        state = change(Run.open(pretrained).weights()[0])
        (save_file if name.endswith(".safetensors") else torch.save)(state, tmp_path / name)
        return {"pretrained": name, "drift": {"name": "mlp", "width": 16, "depth": 1}}

    return write


@pytest.mark.parametrize("name", ["w.safetensors", "w.pt"])
def test_sound_weights_are_taken(gft, weights, write_config, finetune_config, name):
    config = write_config({**finetune_config, **weights(name)})
    assert gft("finetune", config, "--out", "new", "--json").code == 0


def test_weights_that_do_not_fit_name_their_keys(finetuning, weights):
    message = finetuning(**{**weights("w.safetensors"), "drift": {"name": "mlp", "width": 8, "depth": 1}})
    assert "the weights don't fit the drift" in message
    assert "wrong shape: from_state.weight is (16, 2), wanted (8, 2)" in message
    message = finetuning(**{**weights("w.safetensors"), "drift": {"name": "mlp", "width": 16, "depth": 2}})
    assert "missing: body.1.bias" in message or "missing: body.3.weight" in message
    message = finetuning(
        **weights("w.pt", lambda state: {key.replace("state", "stat"): held for key, held in state.items()})
    )
    assert "missing: from_state.weight (16, 2)" in message
    assert "unknown: from_stat.weight" in message


def test_another_drift_than_the_pretrained_runs_is_refused(finetuning):
    assert "wrong shape: from_state.weight" in finetuning(drift={"name": "mlp", "width": 8, "depth": 1})


def test_weights_that_are_not_finite_are_refused(finetuning, weights):
    message = finetuning(**weights("w.pt", lambda state: {key: held / 0 for key, held in state.items()}))
    assert "weights are not finite: body.1.bias" in message


def test_truncated_and_foreign_weights_are_refused(finetuning, weights, tmp_path):
    for name in ("w.safetensors", "w.pt"):
        spec = weights(name)
        whole = (tmp_path / name).read_bytes()
        for content in (whole[:100], whole[:-7], b"", b"#!/bin/sh\n" * 20):
            (tmp_path / name).write_bytes(content)
            assert name in finetuning(**spec)
    (tmp_path / "w.h5").write_bytes(b"\x89HDF")
    assert "wanted .safetensors, .pt, .pth, .bin, .ckpt, got '.h5'" in finetuning(**{**spec, "pretrained": "w.h5"})
    assert "neither a run folder nor a weights file" in finetuning(**{**spec, "pretrained": "none.pt"})
    torch.save({"state_dict": {}, "epoch": 3}, tmp_path / "w.pt")
    assert "wanted a state dict (name -> tensor)" in finetuning(**spec)


def test_foreign_notes_in_a_weights_file_do_no_harm(gft, weights, write_config, finetune_config, tmp_path):
    spec = weights("w.safetensors")
    save_file(weights_of(tmp_path / "w.safetensors"), tmp_path / "w.safetensors", metadata={"author": "somebody else"})
    assert gft("finetune", write_config({**finetune_config, **spec}), "--out", "new", "--json").code == 0


def weights_of(path):
    from safetensors.torch import load_file

    return load_file(path)


@pytest.mark.parametrize("protocol", ["zip", "plain"])
def test_a_pickle_as_weights_is_never_run(finetuning, tmp_path, protocol):
    marker = tmp_path / "marker"
    if protocol == "zip":
        torch.save({"from_state.weight": Evil(marker)}, tmp_path / "x.pt")
    else:
        (tmp_path / "x.pt").write_bytes(pickle.dumps(Evil(marker)))
    message = finetuning(pretrained="x.pt", drift={"name": "mlp"})
    assert "x.pt: wanted a state dict that loads without executing code" in message
    assert "nothing in it was executed" in message
    assert not marker.exists()


def test_half_of_a_file_of_torch_save_is_cut_off(finetuning, tmp_path):
    torch.save({"from_state.weight": torch.zeros(100, 100)}, tmp_path / "x.pt")
    (tmp_path / "x.pt").write_bytes((tmp_path / "x.pt").read_bytes()[:10_000])
    assert "x.pt: the file is incomplete" in finetuning(pretrained="x.pt", drift={"name": "mlp"})


def test_torch_does_not_warn_before_a_plain_pickle_is_refused(tmp_path):
    """A warning is an error in these tests."""
    (tmp_path / "x.pt").write_bytes(pickle.dumps({"weight": [1.0]}, protocol=4))
    with pytest.raises(WeightsError, match=r"x\.pt: wanted a state dict"):
        weights_read(tmp_path / "x.pt")


def test_damaged_run_folders_are_refused(finetuning, refused, run_copy):
    model = run_copy / "model.safetensors"
    model.write_bytes(model.read_bytes()[:200])
    assert "model.safetensors: wanted a safetensors file, got 200 bytes" in finetuning(pretrained="run")
    assert "model.safetensors: wanted a safetensors file, got 200 bytes" in refused("sample", "run")
    model.unlink()
    assert "the run isn't finished" in finetuning(pretrained="run")
    assert "the run isn't finished" in refused("sample", "run")
    (run_copy / "config.yaml").write_text("drift: {name: mlp}\n")
    assert "config.yaml: " in finetuning(pretrained="run")
    assert "config.yaml: " in refused("evaluate", "run")


def test_a_folder_without_a_run_is_refused(refused, tmp_path):
    for command in ("sample", "evaluate"):
        assert "is no run folder: config.yaml is missing" in refused(command, tmp_path)


# Where results go


def test_a_folder_that_holds_a_run_is_left_alone(refused, run_copy, write_config, pretrain_config):
    before = snapshot(run_copy)
    message = refused("pretrain", write_config(pretrain_config), "--out", run_copy)
    assert "already contains a run" in message
    assert "--out" in message
    assert snapshot(run_copy) == before
    config = write_config({**pretrain_config, "seed": 2})
    assert "another configuration: seed differ" in refused("pretrain", config, "--out", run_copy, "--resume")
    assert snapshot(run_copy) == before


def test_other_files_in_the_run_folder_are_kept(gft, write_config, pretrain_config, tmp_path):
    (tmp_path / "new").mkdir()
    (tmp_path / "new" / "notes.txt").write_text("mine")
    assert gft("pretrain", write_config(pretrain_config), "--out", "new", "--json").code == 0
    assert (tmp_path / "new" / "notes.txt").read_text() == "mine"


def test_resume_without_a_run_is_refused(refused, write_config, pretrain_config):
    assert "new contains no run to resume" in refused(
        "pretrain", write_config(pretrain_config), "--out", "new", "--resume"
    )


def test_a_run_folder_that_cannot_be_made_is_refused(refused, write_config, pretrain_config, tmp_path):
    (tmp_path / "file").write_text("mine")
    config = write_config(pretrain_config)
    for out in ("file", "file/run"):
        assert f"cannot write {out}. A file stands where a folder is wanted" in refused(
            "pretrain", config, "--out", out
        )
    assert (tmp_path / "file").read_text() == "mine"


@pytest.mark.parametrize(
    ("number", "cause"),
    [(errno.EROFS, "read-only"), (errno.EACCES, "Permission denied"), (errno.ENOSPC, "The disk is full")],
)
def test_a_run_folder_that_cannot_be_written_is_refused(
    refused, write_config, pretrain_config, tmp_path, monkeypatch, number, cause
):
    """Root may write anywhere: the system's refusal is played."""
    config = write_config(pretrain_config)

    def refuse(*arguments, **options):
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("tempfile.mkstemp", refuse)
    message = refused("pretrain", config, "--out", "new")
    assert message.startswith("cannot write new")
    assert cause in message
    assert not (tmp_path / "new").exists()


def test_too_little_space_is_seen_before_the_training(refused, write_config, pretrain_config, tmp_path, monkeypatch):
    monkeypatch.setattr(shutil, "disk_usage", lambda folder: shutil._ntuple_diskusage(10**9, 10**9, 10**5))
    message = refused("pretrain", write_config(pretrain_config), "--out", "new")
    assert "the run needs about 10 MB, and 0 MB are free" in message
    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("where", ["os.fsync", "os.replace", "gftkit.storage.tensors.save_file"])
def test_a_disk_that_fills_up_loses_no_checkpoint(
    refused, gft, write_config, pretrain_config, tmp_path, monkeypatch, where
):
    real, full = {"os.fsync": os.fsync, "os.replace": os.replace}.get(where, save_file), True

    def fill(*arguments, **options):
        of_folder = where == "os.fsync" and os.path.isdir(f"/proc/self/fd/{arguments[0]}")  # nothing is written then
        if full and not of_folder and (tmp_path / "new/checkpoints/step-000000010.safetensors").exists():
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(*arguments, **options)

    monkeypatch.setattr(where, fill)
    config = write_config(pretrain_config)
    message = refused("pretrain", config, "--out", "new", "--json")
    assert message.startswith("cannot write new/checkpoints/step-000000020.safetensors. The disk is full")
    folder = tmp_path / "new" / "checkpoints"
    assert os.listdir(folder) == ["step-000000010.safetensors"]
    assert checkpoint.latest(folder)[0].step == 10
    full = False
    assert gft("pretrain", config, "--out", "new", "--resume", "--json").code == 0


def test_samples_that_cannot_be_written_are_an_error(refused, pretrained, tmp_path):
    (tmp_path / "file").touch()
    assert "cannot write file/s.npz" in refused("sample", pretrained, "--out", "file/s.npz", "--count", "2")
    assert "wanted .npz, .safetensors, .png or a folder" in refused("sample", pretrained, "--out", "s.txt")
    assert "are not images" in refused("sample", pretrained, "--out", "pictures")


def test_sample_and_evaluate_refuse_wrong_options(refused, pretrained):
    assert "--steps: wanted at least 1" in refused("sample", pretrained, "--steps", "0")
    assert "count: wanted at least 1" in refused("sample", pretrained, "--count", "0")
    assert "Did you mean 'heun'" in refused("sample", pretrained, "--solver", "huen")
    assert "--weights: wanted ema or raw" in refused("sample", pretrained, "--weights", "best")
    assert "label: this drift is not conditional on a label" in refused("sample", pretrained, "--label", "1")
    assert "Did you mean 'count'" in refused("evaluate", pretrained, "--set", "evaluate.cuont=3")
