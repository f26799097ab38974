"""A run that was killed at any moment goes on to the result of an undisturbed one, bit for bit."""

import io
import random
import shutil
import signal
import tarfile
from itertools import count

import numpy as np
import pytest
import torch
from support import killing
from support.event_files import settle
from support.run_results import MLP, result, told, tuned

import gftkit
from gftkit.runs import checkpoint
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


def go_on(config, out, moment=None):
    """Resume, or start anew where the run hadn't begun."""
    settle(out)
    return killing.start(config, out, resume=(out / "config.yaml").is_file(), moment=moment)


def test_a_run_killed_at_a_step_and_within_a_checkpoint_is_resumed_bit_for_bit(pretrained, tmp_path, registry):
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


def test_the_comparison_of_runs_sees_every_difference(finished, tmp_path):
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
