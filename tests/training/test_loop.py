"""The loop: seeds, monitors, averaged weights, every path and form, and what stops a run."""

import pytest
import torch
from support.runs_on_moons import PRETRAIN, interrupt, model, same

import gftkit
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.runs import checkpoint


def test_the_same_seed_gives_the_same_weights_and_another_gives_others(tuning, tmp_path, registry):
    runs = [gftkit.finetune(tuning, tmp_path / name, registry=registry).folder for name in ("a", "b")]
    assert same(model(runs[0]), model(runs[1]))
    other = gftkit.finetune({**tuning, "seed": 6}, tmp_path / "c", registry=registry).folder
    assert not same(model(runs[0]), model(other))


def test_the_global_generator_neither_matters_nor_moves(tuning, tmp_path, registry):
    torch.manual_seed(1)
    before = torch.get_rng_state()
    one = gftkit.finetune(tuning, tmp_path / "a", registry=registry).folder
    assert torch.equal(torch.get_rng_state(), before)
    torch.manual_seed(2)
    assert same(model(one), model(gftkit.finetune(tuning, tmp_path / "b", registry=registry).folder))


def test_monitors_do_not_change_a_run(tuning, tmp_path, registry):
    plain = gftkit.finetune(tuning, tmp_path / "plain", registry=registry).folder
    watched = gftkit.finetune({**tuning, "monitors": ["anchor-distance"]}, tmp_path / "watched", registry=registry)
    assert same(model(plain), model(watched.folder))
    seen = [line for line in watched.history() if line["kind"] == "monitor"]
    assert [line["step"] for line in seen] == [0, 8, 16, 24]
    assert seen[0]["anchor_distance"] == 0
    assert seen[-1]["anchor_distance"] > 0


def test_ema_default_and_update(tmp_path, registry):
    config = gftkit.pretrain(PRETRAIN, tmp_path / "a", registry=registry).config
    assert config.train.ema == 0.9  # 1 - 10/24 is below the range
    averaged, raw = model(tmp_path / "a"), checkpoint.latest(tmp_path / "a" / "checkpoints")[0].part("drift.")
    assert not same(averaged, raw)
    none = gftkit.pretrain(PRETRAIN, tmp_path / "b", registry=registry, overrides=["train.ema=0"]).folder
    assert same(model(none), raw)


def test_a_loss_that_is_not_finite_stops_the_run_and_keeps_the_last_good_checkpoint(tuning, tmp_path, registry):
    tuning["train"] |= {"optimizer": "sgd", "learning_rate": 1e30, "clip": None}
    with pytest.raises(DivergenceError, match=r"not finite at step \d+, temperature \d") as caught:
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    assert caught.value.exit_code == 1
    assert not (tmp_path / "run" / "model.safetensors").exists()

    tuning["train"] |= {"learning_rate": 1e-3}
    good = gftkit.finetune(tuning, tmp_path / "good", registry=registry).folder
    interrupt(good, 8)
    found = checkpoint.latest(good / "checkpoints")[0]
    assert found.step == 8


@pytest.mark.parametrize("form", ["blended", "penalty"])
@pytest.mark.parametrize("path", ["linear", "trigonometric", "affine", "brownian-bridge"])
def test_every_path_and_form_trains_samples_and_is_evaluated(tmp_path, registry, path, form):
    overrides = ["train.steps=4", f"path={{name: {path}}}", "evaluate.solver=null"]
    before = gftkit.pretrain(PRETRAIN, tmp_path / "pre", registry=registry, overrides=overrides)
    config = {
        "pretrained": str(before.folder),
        "data": {"name": "gaussian-mixture"},
        "schedule": {"name": "cosine"},
        "train": {"steps": 4, "batch_size": 8},
        "evaluate": {"count": 40},
        "objective": {"form": form, "weight": "1 - t"},
    }
    run = gftkit.finetune(config, tmp_path / "run", registry=registry)
    assert run.config.path == before.config.path
    assert run.samples(5)[0].shape == (5, 2)
    assert run.evaluate()["energy"] > 0


def test_conditional_drifts_get_labels(tmp_path, registry):
    config = {**PRETRAIN, "drift": {"name": "mlp", "width": 16, "depth": 1, "conditional": True}}
    run = gftkit.pretrain(config, tmp_path / "run", registry=registry)
    samples, given = run.samples(6)
    assert given["label"].tolist() == [0, 1, 0, 1, 0, 1]
    assert run.samples(6, label=1)[1]["label"].tolist() == [1] * 6
    with pytest.raises(ConfigError, match="wanted 0 to 1"):
        run.samples(6, label=2)
    assert not torch.equal(samples[1::2], run.samples(6, label=0)[0][1::2])


def test_a_batch_may_exceed_the_data(tuning, tmp_path, registry):
    tuning["train"] |= {"batch_size": 64, "pairing_batch": 128}
    assert gftkit.finetune(tuning, tmp_path / "run", registry=registry).finished


@pytest.mark.cuda
def test_training_and_sampling_on_cuda(tuning, tmp_path, registry):
    run = gftkit.finetune(tuning, tmp_path / "run", registry=registry, device="cuda")
    assert run.samples(8, device="cuda")[0].shape == (8, 2)
    interrupt(run.folder, 16)
    before = checkpoint.latest(run.folder / "checkpoints")[0]
    assert before.step == 16
    assert gftkit.finetune(tuning, run.folder, registry=registry, device="cuda", resume=True).finished
