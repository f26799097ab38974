"""Run folders that commit 90b8bb5 wrote open now: weights, samples, going on, fine-tuning, blending."""

import json
import shutil

import pytest
import torch
from support import same_seed
from support.paths import ROOT

import gftkit

FOLDER = ROOT / "tests/support/earlier_runs"
RECORDED = json.loads((ROOT / "tests/support/same_seed.json").read_text())
ROUNDING = 1e-4
"""Absolute difference of weights and samples between processors."""


@pytest.fixture
def runs(tmp_path):
    """A copy of the folders, with the place of the pretrained run filled in."""
    copied = shutil.copytree(FOLDER, tmp_path / "runs")
    config = copied / "finetune-lora/config.yaml"
    config.write_text(config.read_text().replace("PRETRAINED", str(copied / "pretrain")))
    return copied


def equal(one, other):
    """Whether tensors are the same: bit for bit where the digests were taken, up to rounding elsewhere."""
    exact = same_seed.machine() in RECORDED
    return torch.equal(one, other) if exact else torch.allclose(one, other, atol=ROUNDING)


@pytest.mark.parametrize("name", ["pretrain", "finetune-lora"])
def test_an_earlier_run_opens_and_gives_its_samples(runs, name):
    run = gftkit.Run.open(runs / name)
    assert run.finished
    assert run.steps() == 20
    assert [line["step"] for line in run.history() if line["kind"] == "evaluation"] == [0, 10, 20, 20]
    weights, facts = run.weights()
    known = next(iter(RECORDED.values()))[name]
    assert same_seed.digest(weights) == known["weights"]
    assert facts.event_shape == (2,)
    samples, _ = run.samples(100, seed=1)
    assert abs(float(samples.double().norm()) - known["figures"][2]) < ROUNDING * known["figures"][2]
    if same_seed.machine() in RECORDED:
        assert same_seed.digest({"samples": samples}) == RECORDED[same_seed.machine()][name]["samples"]


@pytest.mark.parametrize("name", ["pretrain", "finetune-lora"])
def test_an_earlier_run_goes_on_from_its_checkpoint(runs, name):
    whole = gftkit.Run.open(runs / name).weights()[0]
    folder = runs / name
    (folder / "model.safetensors").unlink()
    (folder / "checkpoints/step-000000020.safetensors").unlink()
    _, start, config = same_seed.CASES[name]
    options = config if start is None else {**config, "pretrained": str(runs / start)}
    train = gftkit.pretrain if start is None else gftkit.finetune
    resumed = train(options, folder, device="cpu", resume=True).weights()[0]
    assert all(equal(tensor, resumed[key]) for key, tensor in whole.items())


def test_an_earlier_run_is_fine_tuned_blended_and_measured(runs, tmp_path):
    start = gftkit.Run.open(runs / "finetune-lora")
    blended, _ = start.samples(64, seed=1, temperature=1.0)
    plain, _ = start.samples(64, seed=1)
    assert not torch.equal(blended, plain)
    assert set(start.evaluate()) >= {"energy", "energy_stderr"}
    config = {**same_seed.TUNE, "pretrained": str(start.folder), "anchor": "frozen"}
    tuned = gftkit.finetune(config, tmp_path / "tuned", device="cpu")
    assert len(tuned.notes["anchors"]) == 2
