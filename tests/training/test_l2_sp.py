"""L2-SP: a pull of the weights to where a fine-tune starts."""

import json
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

import gftkit
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.runs import checkpoint
from gftkit.training.l2_sp import StartingPoint


def tuned(config, folder, strength, resume=False, **changes):
    given = {**config, **changes, "objective": {"l2_sp": strength}}
    return gftkit.finetune(given, folder, device="cpu", resume=resume).folder


def weights(folder):
    return load_file(Path(folder) / "model.safetensors")


def distance(one, other):
    return float(torch.cat([(one[name] - other[name]).flatten() for name in one]).norm())


def test_l2_sp_pull_is_the_gradient_of_the_penalty():
    weight = torch.nn.Parameter(torch.tensor([1.0, -2.0]))
    idle = torch.nn.Parameter(torch.ones(1))
    start = StartingPoint([weight, idle], 0.5)
    with torch.no_grad():
        weight += torch.tensor([0.5, 4.0])
    penalty = 0.25 * (weight - torch.tensor([1.0, -2.0])).square().sum()
    (wanted,) = torch.autograd.grad(penalty, weight)
    weight.grad = torch.tensor([10.0, 20.0])
    start.pull()
    assert torch.equal(weight.grad, torch.tensor([10.0, 20.0]) + wanted)
    assert not torch.equal(wanted, 0.5 * weight)  # a pull to zero, weight decay, would be another
    assert idle.grad is None


def test_gradient_descent_settles_between_start_and_optimum():
    """Of (lambda/2) |w - w*|^2 + (alpha/2) |w - w_0|^2 the least is at (lambda w* + alpha w_0)/(lambda + alpha)."""
    weight = torch.nn.Parameter(torch.tensor([3.0], dtype=torch.float64))
    start, optimizer = StartingPoint([weight], 2.0), torch.optim.SGD([weight], lr=0.1)
    for _ in range(200):
        optimizer.zero_grad()
        (0.5 * 1.0 * (weight + 1.0) ** 2).sum().backward()
        start.pull()
        optimizer.step()
    assert torch.allclose(weight.detach(), torch.tensor([(-1.0 + 2 * 3.0) / 3], dtype=torch.float64))


def test_a_stronger_pull_keeps_nearer_and_none_is_plain(finetune_config, pretrained, tmp_path):
    before = weights(pretrained)
    moved = []
    for strength in (0.0, 0.1, 1.0):
        folder = tuned(finetune_config, tmp_path / str(strength), strength, schedule={"name": "zero"})
        moved.append(distance(weights(folder), before))
    assert moved[0] > moved[1] > moved[2] > 0
    plain = gftkit.finetune({**finetune_config, "schedule": {"name": "zero"}}, tmp_path / "plain", device="cpu").folder
    assert distance(weights(plain), weights(tmp_path / "0.0")) == 0


def test_a_resumed_run_is_pulled_to_its_start_weights(finetune_config, tmp_path, monkeypatch):
    whole = tuned(finetune_config, tmp_path / "whole", 0.5)
    for name in ("broken", "wrong"):
        folder = tuned(finetune_config, tmp_path / name, 0.5)
        (folder / "model.safetensors").unlink()
        checkpoint.checkpoints_of(folder / "checkpoints")[-1].unlink()
    tuned(finetune_config, tmp_path / "broken", 0.5, resume=True)
    assert distance(weights(whole), weights(tmp_path / "broken")) == 0
    assert (whole / "metrics.jsonl").read_text() == (tmp_path / "broken/metrics.jsonl").read_text()

    pull = StartingPoint.pull  # the wrong twin: pulled to where the resumed run went on

    def late(self):
        self._start = [weight.detach().clone() for weight in self._parameters]
        monkeypatch.setattr(StartingPoint, "pull", pull)
        pull(self)

    monkeypatch.setattr(StartingPoint, "pull", late)
    tuned(finetune_config, tmp_path / "wrong", 0.5, resume=True)
    assert distance(weights(whole), weights(tmp_path / "wrong")) > 0


def test_resume_with_other_start_weights_is_refused(finetune_config, run_copy, pretrained, tmp_path):
    anchor = {"name": "external", "pretrained": str(pretrained)}  # so that the anchor doesn't tell
    config = {**finetune_config, "pretrained": str(run_copy), "anchor": anchor}
    folder = tuned(config, tmp_path / "tuned", 0.5)
    (folder / "model.safetensors").unlink()
    checkpoint.checkpoints_of(folder / "checkpoints")[-1].unlink()
    gftkit.pretrain(
        {**json.loads(json.dumps(gftkit.Run.open(pretrained).config.to_dict())), "seed": 9}, tmp_path / "other"
    )
    (run_copy / "model.safetensors").write_bytes((tmp_path / "other/model.safetensors").read_bytes())
    with pytest.raises(RunError, match="weights that are pulled towards those of"):
        tuned(config, tmp_path / "tuned", 0.5, resume=True)


def test_a_pull_without_a_place_to_go_is_refused(finetune_config, pretrain_config, tmp_path):
    with pytest.raises(ConfigError, match=r"objective.l2_sp: only a fine-tune has pretrained weights"):
        gftkit.pretrain({**pretrain_config, "objective": {"l2_sp": 1.0}}, tmp_path / "run")
    with pytest.raises(ConfigError, match=r"objective.l2_sp: pulls all weights .* adapters"):
        tuned(finetune_config, tmp_path / "run", 1.0, adapters={"name": "lora", "rank": 2})
    with pytest.raises(ConfigError, match=r"objective.l2_sp: wanted float, >= 0"):
        tuned(finetune_config, tmp_path / "run", -1.0)
