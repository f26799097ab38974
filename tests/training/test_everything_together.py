"""One run in which everything meets: processes, adapters, bf16, labels, streamed data, workers and TensorBoard."""

import io
import json
import re
import tarfile

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support import killing
from support import process_groups as several
from support.event_files import agree, events, logged, settle

import gftkit
from gftkit.runs import checkpoint
from gftkit.storage.documents import read_json
from gftkit.storage.log import read_log
from gftkit.training.steps import Steps

STEPS = 12


@pytest.fixture(scope="module")
def shards(tmp_path_factory):
    """Gives tar files of 8x8 images, brighter by their label: sixty in four shards."""
    folder = tmp_path_factory.mktemp("shards")
    numbers = np.random.default_rng(0)
    for shard in range(4):
        with tarfile.open(folder / f"{shard}.tar", "w") as file:
            for index in range(15):
                label = int(numbers.integers(3))
                image = np.tanh(label - 1 + 0.3 * numbers.normal(size=(1, 8, 8))).astype("f4")
                held = io.BytesIO()
                np.save(held, image)
                for ending, value in (("npy", held.getvalue()), ("cls", str(label).encode())):
                    entry = tarfile.TarInfo(f"{shard}-{index}.{ending}")
                    entry.size = len(value)
                    file.addfile(entry, io.BytesIO(value))
    return str(folder / "*.tar")


@pytest.fixture(scope="module")
def before(shards, tmp_path_factory):
    """A pretrained conditional U-Net."""
    config = {
        "drift": {"name": "unet", "width": 8, "multipliers": [1, 2], "conditional": True},
        "data": {"name": "shards", "files": shards},
        "train": {"steps": 4, "batch_size": 8, "condition_dropout": 0.2},
        "evaluate": {"count": 24, "solver": {"name": "euler", "steps": 2}},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("before") / "run", device="cpu").folder


@pytest.fixture
def config(before, shards):
    return {
        "pretrained": str(before),
        "data": {"name": "shards", "files": shards},
        "coupling": {"name": "optimal-transport"},
        "schedule": {"name": "exponential"},
        "adapters": {"name": "lora", "write_base": True, "rank": 4},
        "objective": {"form": "penalty", "anchor_share": "retention"},
        "train": {
            "steps": STEPS,
            "batch_size": 16,
            "pairing_batch": 32,
            "accumulate": 2,
            "precision": "bfloat16",
            "channels_last": True,
            "gradient_checkpointing": True,
            "condition_dropout": 0.3,
            "shuffle_buffer": 8,
            "workers": 1,
            "checkpoint_every": 4,
            "keep_checkpoints": 2,
            "log_every": 2,
            "ema": 0.8,
            "learning_rate": 0.003,
        },
        "evaluate": {"every": 6, "count": 24, "guidance": 2.0, "solver": {"name": "euler", "steps": 2}},
        "monitors": ["anchor-distance"],
        "track": ["tensorboard"],
        "seed": 5,
    }


def checked(config, out, resume=False, moments=None):
    """The run, with what all of its steps have to be like looked at where they are taken."""
    take = Steps.take

    def seen(self, step):
        assert self.accelerator.num_processes == 2
        assert self.accelerator.distributed_type == "MULTI_CPU"
        assert not isinstance(self.batches, type(self.pairs))  # a worker makes them
        assert self.anchor.kind == "adapters-off"
        types, trained = set(), []

        def asked(drift, given, named):
            if drift.training:
                trained.append((len(given[0]), named["label"].dtype))

        layer = next(layer for layer in self.drift.modules() if isinstance(layer, torch.nn.Conv2d))
        handles = [
            layer.register_forward_hook(lambda *held: types.add(held[-1].dtype)),
            self.drift.register_forward_pre_hook(asked, with_kwargs=True),
        ]
        result = take(self, step)
        for handle in handles:
            handle.remove()
        assert types == {torch.bfloat16}
        assert trained == [(4, torch.int64)] * 2  # this process's half of the batch, in two parts
        return result

    Steps.take = seen
    several.train(config, out, resume, moments)


@pytest.mark.slow
def test_a_run_with_everything_is_killed_and_resumed(config, before, tmp_path):
    whole, killed = tmp_path / "whole", tmp_path / "killed"
    several.run(checked, config, whole)

    several.killed(several.start(checked, config, killed, False, {1: ("at-a-step", 7)}), first=1)
    assert [found.stem for found in checkpoint.checkpoints_of(killed / "checkpoints")] == ["step-000000004"]
    settle(killed)
    several.killed(several.start(checked, config, killed, True, {0: ("within-a-write", 1)}), first=0)
    assert killing.is_writing(killed / "checkpoints")
    settle(killed)
    several.run(checked, config, killed, True)
    for name in ("model.safetensors", "adapter/adapter_model.safetensors", f"checkpoints/step-{STEPS:09d}.safetensors"):
        one, other = load_file(whole / name), load_file(killed / name)
        assert one.keys() == other.keys()
        assert all(torch.equal(one[key], other[key]) for key in one), name
    assert (whole / "metrics.jsonl").read_text() == (killed / "metrics.jsonl").read_text()

    environment = read_json(killed / "environment.json")
    assert (environment["processes"], environment["distributed"]) == (2, "MULTI_CPU")
    for folder in (whole, killed):
        numbers, pictures = events(folder / "tensorboard")
        assert agree(numbers, logged(folder))
        assert pictures
        assert all(steps[-1] == STEPS for steps in pictures.values())
    assert [line["loss"] for line in read_log(whole / "metrics.jsonl") if line["kind"] == "train"]

    # What came of it is a network that the label moves, and of the pretrained one only adapted layers have changed.
    run, old = gftkit.Run.open(killed), gftkit.Run.open(before)
    t, x = torch.full((3,), 0.5), torch.zeros(3, 1, 8, 8)
    with torch.no_grad():
        told = run.drift()(t, x, label=torch.arange(3)).flatten(1)
        told_before = old.drift()(t, x, label=torch.arange(3)).flatten(1)
    assert (told[0] - told[2]).abs().max() > 1e-3
    assert (told - told_before).abs().max() > 1e-3
    adapted = json.loads((killed / "adapter/adapter_config.json").read_text())["target_modules"]
    one, other = load_file(killed / "model.safetensors"), load_file(before / "model.safetensors")
    changed = {name.rpartition(".")[0] for name in other if not torch.equal(one[name], other[name])}
    assert changed
    assert all(re.fullmatch(adapted, name) for name in changed)


@pytest.mark.slow
def test_a_run_with_everything_differs_where_one_thing_does(config, tmp_path):
    """Negative control: the comparison above would see labels, a precision or an order of the data that got lost."""
    results, other = [], {"labels": {"condition_dropout": 0.9}, "order": {"shuffle_buffer": 20}}
    for name, changes in {"whole": {}, **other, "precision": {"precision": "float32"}}.items():
        several.run(several.train, {**config, "train": {**config["train"], **changes}}, tmp_path / name)
        results.append(load_file(tmp_path / name / "model.safetensors"))
    for other in results[1:]:
        assert any(not torch.equal(results[0][key], other[key]) for key in other)
