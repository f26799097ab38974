"""A run that was killed at any moment goes on to the result of an undisturbed one, bit for bit."""

import errno
import io
import json
import os
import random
import resource
import shutil
import signal
import subprocess
import sys
import tarfile
from itertools import count

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import killing
from support.event_files import events, settle

import gftkit
from gftkit.kernel.errors import RunError, WeightsError
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config
from gftkit.storage.documents import write_text
from gftkit.storage.files import LOCK, lock_folder, remove_leftovers
from gftkit.storage.tensors import read_tensors, write_tensors

UNET = {
    "drift": {"name": "unet", "width": 4, "multipliers": [1, 2], "dropout": 0.2},
    "data": {"name": "digits", "count": 40},
    "coupling": {"name": "optimal-transport"},
    "train": {
        "steps": 12,
        "batch_size": 8,
        "pairing_batch": 16,
        "checkpoint_every": 3,
        "log_every": 2,
        "ema": 0.8,
        "channels_last": True,
    },
    "evaluate": {"every": 4, "count": 24, "solver": {"name": "euler", "steps": 2}},
    "seed": 3,
}
MLP = {
    "drift": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "two-moons"},
    "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "log_every": 2, "decay": "cosine", "warmup": 4},
    "evaluate": {"every": 6, "count": 24, "solver": {"name": "euler", "steps": 2}},
    "seed": 5,
}


def tuned(pretrained, **changes):
    """A fine-tune that everything random takes part in, with a monitor that has a memory."""
    return {
        **{key: MLP[key] for key in ("train", "evaluate", "seed")},
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 20},
        "coupling": {"name": "optimal-transport"},
        "schedule": {"name": "exponential"},
        "monitors": [{"name": "theory", "batches": 2}],
        **changes,
    }


def streamed(folder):
    """Labels that are left out at random, samples read from tar files in blocks, and a tracker."""
    numbers = np.random.default_rng(0)
    for shard in range(3):
        with tarfile.open(folder / f"{shard}.tar", "w") as file:
            for index in range(10):
                for ending, value in (("npy", numbers.normal(size=2).astype("f4")), ("cls", numbers.integers(3))):
                    held = io.BytesIO(str(value).encode())
                    if ending == "npy":
                        held = io.BytesIO()
                        np.save(held, value)
                    entry = tarfile.TarInfo(f"{shard}{index}.{ending}")
                    entry.size = len(held.getvalue())
                    file.addfile(entry, io.BytesIO(held.getvalue()))
    return {
        **MLP,
        "drift": {"name": "mlp", "width": 16, "depth": 1, "conditional": True},
        "data": {"name": "shards", "files": str(folder / "*.tar")},
        "train": {**MLP["train"], "condition_dropout": 0.3, "shuffle_buffer": 8},
        "track": ["tensorboard"],
    }


def result(folder):
    """All that a run is, apart from its seconds: weights, optimiser, log, monitors' files, names of checkpoints."""
    last, damaged = checkpoint.latest(folder / "checkpoints")
    assert not damaged
    summary = json.loads((folder / "summary.json").read_text())
    theory = folder / "theory.json"
    return {
        "model": values(load_file(folder / "model.safetensors")),
        "checkpoint": values(last.tensors),
        "optimizer": last.notes["optimizer"],
        "log": (folder / "metrics.jsonl").read_text(),
        "summary": {key: value for key, value in summary.items() if key != "seconds"},
        "theory": theory.read_text() if theory.exists() else None,
        "files": sorted(str(path.relative_to(folder)) for path in folder.rglob("*") if "tensorboard" not in path.parts),
        "events": {name: held for name, held in told(folder).items() if "/ema/" not in name},
    }


def told(folder):
    """What TensorBoard was told, numbers and pictures, by name."""
    if not (folder / "tensorboard").exists():
        return {}
    numbers, pictures = events(folder / "tensorboard")
    return pictures | {f"{name} {step}": values for (name, step), values in numbers.items()}


def values(tensors):
    """The bytes of tensors by name."""
    return {name: held.contiguous().reshape(-1).view(torch.uint8).numpy().tobytes() for name, held in tensors.items()}


def go_on(config, out, moment=None):
    """Resume, or start anew where the run hadn't begun."""
    settle(out)
    return killing.start(config, out, resume=(out / "config.yaml").is_file(), moment=moment)


def test_a_run_killed_at_a_step_and_within_a_checkpoint_goes_on_as_if_undisturbed(pretrained, tmp_path, registry):
    config = tuned(pretrained)
    gftkit.finetune(config, tmp_path / "whole", registry=registry)
    out = tmp_path / "killed"
    killing.finish(killing.start(config, out, moment=("at-a-step", 8)), -signal.SIGKILL)
    assert [found.name for found in checkpoint.checkpoints_of(out / "checkpoints")] == [
        f"step-{n:09d}.safetensors" for n in (3, 6)
    ]
    killing.finish(go_on(config, out, ("within-a-write", 1)), -signal.SIGKILL)
    assert killing.is_writing(out / "checkpoints")  # a leftover
    killing.finish(go_on(config, out))
    assert result(out) == result(tmp_path / "whole")


def test_what_the_comparison_sees(finished, tmp_path):
    """Its wrong twins: a weight that is off by one bit, in either file; a line too many; a file left over."""
    whole, copy = result(finished), shutil.copytree(finished, tmp_path / "copy")
    assert result(copy) == whole
    (copy / ".x.part").touch()
    with (copy / "metrics.jsonl").open("a") as log:
        log.write("{}\n")
    for path in (copy / "model.safetensors", checkpoint.checkpoints_of(copy / "checkpoints")[-1]):
        tensors, notes = read_tensors(path)
        next(held for held in tensors.values() if held.ndim).view(-1).view(torch.int32)[0] ^= 1
        write_tensors(path, tensors, notes)
    assert [key for key in whole if whole[key] != result(copy)[key]] == ["model", "checkpoint", "log", "files"]


@pytest.fixture(scope="module")
def variants(pretrained, tmp_path_factory):
    """Configurations by name, each with the folder of an undisturbed run and its seconds."""
    found = {}
    for name, config in {
        "pretraining": MLP,
        "unet, dropout, optimal transport": UNET,
        "fine-tune, monitored": tuned(pretrained),
        "penalty, stepwise, momentum": tuned(
            pretrained,
            objective={"form": "penalty", "weight": "1 - t"},
            schedule={"name": "stepwise", "temperatures": [3.0, 1.0, 0.0]},
            train={**MLP["train"], "optimizer": {"name": "sgd", "momentum": 0.9}, "keep_checkpoints": 1},
        ),
        "bfloat16, parts, workers, anchor on a share": tuned(
            pretrained,
            objective={"anchor_share": "retention"},
            train={**MLP["train"], "precision": "bfloat16", "accumulate": 2, "workers": 2, "pairing_batch": 16},
        ),
        "streamed, labels left out, tracked": streamed(tmp_path_factory.mktemp("shards")),
    }.items():
        whole = tmp_path_factory.mktemp("whole") / "run"
        found[name] = (config, whole, killing.seconds_of(killing.start(config, whole)))
    return found


NAMES = (
    "pretraining",
    "unet, dropout, optimal transport",
    "fine-tune, monitored",
    "penalty, stepwise, momentum",
    "bfloat16, parts, workers, anchor on a share",
    "streamed, labels left out, tracked",
)


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_twenty_kills_at_random_moments(variants, tmp_path, name):
    """Twenty at least; a quarter as soon as a checkpoint is being written, until one was within a write; the others
    anywhere, also in the start and the end.
    """
    config, whole, seconds = variants[name]
    wanted, kills, leftovers, runs = result(whole), 0, 0, 0
    waits, choice = killing.moments(11, seconds), random.Random(13)
    for runs in count():
        out = tmp_path / str(runs)
        while not (out / "model.safetensors").exists():
            process = go_on(config, out)
            if kills >= (20 if leftovers else 60):
                killing.finish(process)
            elif kills % 4 == 3:
                kills += killing.kill_while_writing(process, out / "checkpoints", choice.randrange(3))
                leftovers += killing.is_writing(out / "checkpoints")
            else:
                kills += killing.kill_after(process, next(waits))
        assert result(out) == wanted
        shutil.rmtree(out)
        if kills >= (20 if leftovers else 60):
            break
    assert leftovers


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("moment", list(killing.MOMENTS))
def test_a_kill_at_every_kind_of_moment(variants, tmp_path, name, moment):
    config, whole, _ = variants[name]
    out = tmp_path / "run"
    for times in (2, 1) if moment != "before-the-model" else (1, 1):
        killing.finish(go_on(config, out, (moment, times)), -signal.SIGKILL)
    killing.finish(go_on(config, out))
    assert result(out) == result(whole)
    assert told(out) == told(whole)  # of the EMA weights too


# Damaged checkpoints


@pytest.fixture(scope="module")
def finished(tmp_path_factory, registry):
    """A finished run of ``MLP``."""
    return gftkit.pretrain(MLP, tmp_path_factory.mktemp("finished") / "run", registry=registry).folder


@pytest.fixture
def stopped(finished, tmp_path):
    """The same, not finished, with its checkpoints of steps 9 and 12."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "model.safetensors").unlink()
    return folder


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
    assert [warning.split(":")[0] for warning in warnings] == [f"{newest.name} is damaged and was passed over"]


def test_a_run_goes_on_from_before_a_damaged_checkpoint_to_the_same_result(stopped, finished, registry, capsys):
    newest = checkpoint.checkpoints_of(stopped / "checkpoints")[-1]
    flip(newest, -1)
    gftkit.pretrain(MLP, stopped, registry=registry, resume=True)
    assert f"{newest.name} is damaged" in capsys.readouterr().err
    assert result(stopped) == result(finished)


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


def test_with_every_checkpoint_damaged_nothing_starts_anew(stopped, registry):
    folder = stopped / "checkpoints"
    for path in checkpoint.checkpoints_of(folder):
        flip(path, -3)
    before = {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()}
    with pytest.raises(RunError, match="wanted a checkpoint to go on from, and none can be read") as caught:
        gftkit.pretrain(MLP, stopped, registry=registry, resume=True)
    assert all(path.name in str(caught.value) for path in checkpoint.checkpoints_of(folder))
    assert {path: path.read_bytes() for path in stopped.rglob("*") if path.is_file()} == before


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


@pytest.mark.parametrize("change", ["values", "count"])
def test_other_data_are_refused(registry, tmp_path, change):
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
    with pytest.raises(RunError, match="the data aren't those that this run started with: 30 samples"):
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


def test_a_folder_that_another_process_is_at_work_in_is_refused(registry, tmp_path):
    out = tmp_path / "run"
    out.mkdir()
    command = [sys.executable, "-c", HOLDER, str(out / LOCK)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout.readline() == b"held\n"
        with pytest.raises(RunError, match=r"another process is at work in it \(process 1 on another\)"):
            gftkit.pretrain(MLP, out, registry=registry)
        assert os.listdir(out) == [LOCK]
        other.kill()
    gftkit.pretrain(MLP, out, registry=registry)  # a lock dies with its process
    assert not (out / LOCK).exists()


def test_a_folder_is_let_go_of_and_left_as_it_was(tmp_path):
    with pytest.raises(RunError, match="gone wrong"), lock_folder(tmp_path / "new" / "deep"):
        raise RunError("gone wrong")
    assert os.listdir(tmp_path) == []


# What is left over, and a disk that is full


def test_leftovers_are_removed_and_nothing_else(tmp_path):
    kept = ["step-000000003.safetensors", ".hidden", "x.part", ".notes-abcdefgh.txt"]
    for name in (*kept, ".step-000000006-abcdefgh.part.safetensors", ".config-12345678.part.yaml", ".tmpT8EkcD"):
        (tmp_path / name).touch()
    remove_leftovers(tmp_path)
    assert sorted(os.listdir(tmp_path)) == sorted(kept)
    remove_leftovers(tmp_path / "none")


def write_large(path):
    write_tensors(path, {"x": torch.zeros(50_000_000)}, {})


def test_what_a_killed_write_left_is_removed_whoever_named_it(tmp_path):
    """safetensors writes into a file of its own first."""
    killing.preload()
    process = killing.CONTEXT.Process(target=write_large, args=(tmp_path / "step-000000001.safetensors",))
    process.start()
    while not any(path.stat().st_size for path in tmp_path.iterdir()):
        assert process.is_alive()
    killing.kill_after(process, 0)
    assert os.listdir(tmp_path)
    remove_leftovers(tmp_path)
    assert not os.listdir(tmp_path)


def test_the_name_of_a_new_file_is_synced_too(tmp_path, monkeypatch):
    synced, fsync = [], os.fsync

    def watched(handle):
        synced.append((os.path.realpath(f"/proc/self/fd/{handle}"), os.listdir(tmp_path)))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", watched)
    write_text(tmp_path / "a.txt", "text")
    (file, before), (folder, after) = synced
    assert ".part" in file
    assert len(before) == 1
    assert "a.txt" not in before
    assert (folder, after) == (str(tmp_path.resolve()), ["a.txt"])


@pytest.mark.parametrize("number", [errno.EINVAL, errno.EIO])
def test_a_file_system_that_cannot_sync_folders_is_borne(tmp_path, monkeypatch, number):
    fsync = os.fsync

    def refuse(handle):
        if os.path.isdir(f"/proc/self/fd/{handle}"):
            raise OSError(number, os.strerror(number))
        fsync(handle)

    monkeypatch.setattr(os, "fsync", refuse)
    if number == errno.EINVAL:
        write_text(tmp_path / "a.txt", "text")
    else:
        with pytest.raises(RunError, match="cannot write"):
            write_text(tmp_path / "a.txt", "text")
    assert (tmp_path / "a.txt").read_text() == "text"


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


def older(folder):
    """A run folder as it was before data sets had the option ``skip``."""
    path = folder / "config.yaml"
    path.write_text("".join(line for line in path.read_text().splitlines(True) if line.strip() != "skip: 0"))
    assert "skip" not in path.read_text()


def test_an_option_that_is_new_counts_with_its_default(stopped, registry):
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
