"""Blending at inference: what is sampled between a fine-tune and its anchor, and what is refused."""

import shutil

import pytest
import torch
import yaml
from torch import nn

import gftkit
from gftkit.generation.blending import Blended, drift_and_anchor
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.storage.tensors import read_tensors, write_tensors
from gftkit.theory.objective import blend

ROUND_OFF = 1e-5
"""Of float32, between merged and unmerged adapters, and after some solver steps."""
STEPS = {"name": "euler", "steps": 3}


def at(count=7):
    generator = torch.Generator().manual_seed(0)
    return torch.rand(count, generator=generator), torch.randn(count, 2, generator=generator)


@pytest.mark.parametrize("weights", ["ema", "raw"])
@pytest.mark.parametrize("anchor", ["frozen", "external", "adapters-off"])
def test_the_two_networks_are_the_trained_and_the_pretrained_one(blendable, pretrained, anchor, weights):
    run = blendable(anchor)
    (drift, held), _ = drift_and_anchor(run, weights, "cpu")
    assert held.kind == anchor
    wanted, before = run.drift(weights)(*at()), gftkit.Run.open(pretrained).drift()(*at())
    assert (drift(*at()) - wanted).abs().max() < ROUND_OFF
    assert (held(*at()) - before).abs().max() < ROUND_OFF
    assert (drift(*at()) - wanted).abs().max() < ROUND_OFF  # also after the anchor was asked
    assert (wanted - before).abs().max() > 1e-2
    other = run.drift("raw" if weights == "ema" else "ema")(*at())
    assert (other - wanted).abs().max() > 1e-4
    if anchor == "adapters-off":
        assert isinstance(drift, nn.Module)
        assert held._adapted.drift is drift  # one network, two states


@pytest.mark.parametrize("anchor", ["frozen", "adapters-off"])
def test_the_temperature_is_a_dial_from_the_run_to_its_anchor(blendable, pretrained, anchor):
    run, seen = blendable(anchor), {}
    for beta in (0.0, 1e-7, 0.3, 3.0, 1e7):
        seen[beta] = run.samples(6, temperature=beta)[0]
    before = gftkit.Run.open(pretrained).samples(6, solver=STEPS)[0]
    assert torch.equal(seen[0.0], run.samples(6)[0])
    assert (seen[1e-7] - seen[0.0]).abs().max() < ROUND_OFF
    assert (seen[1e7] - before).abs().max() < ROUND_OFF
    apart = [float((seen[beta] - before).norm()) for beta in (0.0, 0.3, 3.0)]
    assert apart[0] > 1.1 * apart[1] > 1.2 * apart[2] > 0
    assert run.evaluate(temperature=3.0) != run.evaluate()


def test_a_blend_gives_the_anchor_only_what_it_is_told():
    class Told(nn.Module):
        conditions = ("label", "age")

        def forward(self, t, x, label, age):
            return x * label[:, None] + age[:, None]

    class Half(nn.Module):
        conditions = ("age",)

        def forward(self, t, x, age):
            return t[:, None] * x - age[:, None]

    t, x = at(3)
    given = {"label": torch.tensor([1.0, 2.0, 3.0]), "age": torch.tensor([0.5, 0.0, -1.0])}
    made = Blended(Told(), Half(), 0.2)
    assert made.conditions == ("label", "age")
    wanted = blend(Told()(t, x, **given), Half()(t, x, given["age"]), 0.25)
    assert torch.equal(made(t, x, **given), wanted)


def test_a_run_without_an_anchor_is_not_blended(pretrained, blendable):
    run = gftkit.Run.open(pretrained)
    with pytest.raises(ConfigError, match="is no fine-tune, so it has no anchor"):
        run.samples(2, temperature=0.3)
    with pytest.raises(ConfigError, match="is no fine-tune"):
        run.evaluate(temperature=0.3)
    for wrong in (-1.0, float("nan"), float("inf")):
        with pytest.raises(ConfigError, match="finite number above -1"):
            blendable("frozen").samples(2, temperature=wrong)


def test_a_blend_is_not_sampled_with_chosen_noise(blendable, tmp_path):
    """The reason is T12; the run says that its pairs are independent, so that its own score is known."""
    folder = shutil.copytree(blendable("frozen").folder, tmp_path / "tuned")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "coupling": {"name": "independent"}}))
    noisy = {"name": "euler-maruyama", "steps": 3, "diffusion": {"name": "constant"}}
    run = gftkit.Run.open(folder)
    assert run.samples(2, solver=noisy)[0].shape == (2, 2)
    with pytest.raises(ConfigError, match="T12"):
        run.samples(2, solver=noisy, temperature=0.3)


@pytest.mark.parametrize("anchor", ["frozen", "adapters-off"])
def test_an_anchor_that_has_changed_is_refused(blendable, run_copy, tmp_path, anchor):
    """Other weights stand where the run's start was."""
    run = shutil.copytree(blendable(anchor).folder, tmp_path / "tuned")
    weights, notes = read_tensors(run_copy / "model.safetensors")
    write_tensors(run_copy / "model.safetensors", {name: 2 * held for name, held in weights.items()}, notes)
    config = yaml.safe_load((run / "config.yaml").read_text())
    (run / "config.yaml").write_text(yaml.safe_dump({**config, "pretrained": str(run_copy)}))
    opened = gftkit.Run.open(run)
    assert opened.samples(2)[0].shape == (2, 2)
    with pytest.raises(
        RunError, match=r"the anchor has changed since this run was trained|the weights there have changed"
    ):
        opened.samples(2, temperature=0.3)


def test_adapters_that_are_gone_or_not_their_own_are_refused(blendable, tmp_path):
    run = gftkit.Run.open(shutil.copytree(blendable("adapters-off").folder, tmp_path / "tuned"))
    (tmp_path / "tuned/adapter/adapter_model.safetensors").unlink()
    assert run.samples(2)[0].shape == (2, 2)
    with pytest.raises(gftkit.GftkitError, match="no such weights file"):
        run.samples(2, temperature=0.3)


@pytest.mark.parametrize("dropout", [0.0, pytest.param(0.2, marks=pytest.mark.slow)])
def test_an_anchor_that_never_trained_without_conditions_is_not_guided(
    pretrain_config, finetune_config, tmp_path, dropout
):
    """The fine-tune did; the pretraining only the second time."""
    pretrain_config["data"] = {"name": "gaussian-mixture", "count": 40}
    pretrain_config["drift"]["conditional"] = True
    pretrain_config["train"]["condition_dropout"] = dropout
    gftkit.pretrain(pretrain_config, tmp_path / "pre", device="cpu")
    finetune_config["pretrained"] = str(tmp_path / "pre")
    finetune_config["train"]["condition_dropout"] = 0.2
    run = gftkit.finetune(finetune_config, tmp_path / "tuned", device="cpu")
    assert run.samples(3, guidance=2.0)[0].shape == (3, 2)
    assert run.samples(3, temperature=0.3)[0].shape == (3, 2)
    if dropout:
        assert run.samples(3, temperature=0.3, guidance=2.0)[0].shape == (3, 2)
        return
    with pytest.raises(ConfigError, match="wasn't trained for that"):
        run.samples(3, temperature=0.3, guidance=2.0)
    with pytest.raises(ConfigError, match="wasn't trained for that"):
        run.evaluate(["evaluate.guidance=2"], temperature=0.3)
