"""The schedule ``gradual`` and the monitor that it listens to: where it goes, what is refused, and exact resume."""

import math
from dataclasses import replace

import pytest
import torch
from safetensors.torch import load_file

import gftkit
from gftkit.evaluation import preferred_retention
from gftkit.kernel.errors import ConfigError
from gftkit.runs import checkpoint
from gftkit_plugins import sample_retention
from gftkit_plugins.gradual import Gradual
from gftkit_plugins.sample_retention import measured_at

NONE = {"sample-retention": {}}
FOUND = {"sample-retention": {"early": -0.25, "late": 0.5, "cut": 0.7}}
T = torch.tensor([0.1, 0.9])


def test_it_cools_to_zero_and_stays_there_where_nothing_is_found():
    schedule = Gradual()
    for progress in (0.0, 0.25, 0.5, 1.0):
        schedule.observe(progress, NONE)
        schedule.observe(progress, {"sample-retention": {"early": 0.0, "late": 0.0, "cut": 0.7}})
    assert [schedule.temperature(s) for s in (0.0, 0.4, 0.5, 1.0)] == [4.0, 0.0, 0.0, 0.0]
    assert schedule.profile(1.0) is None
    assert not schedule.done


def test_it_goes_to_what_was_found_in_a_straight_line():
    schedule = Gradual()
    schedule.observe(0.5, FOUND)
    assert schedule.profile(0.5) is None  # still at zero
    for progress, share in ((0.55, 0.5), (0.6, 1.0), (1.0, 1.0)):
        rho = schedule.profile(progress).retention(T)
        assert torch.allclose(rho, share * torch.tensor([-0.25, 0.5]))
        mean = share * (0.7 * -0.25 + 0.3 * 0.5)
        assert gftkit.retention(schedule.temperature(progress)) == pytest.approx(mean)
    assert all(schedule.temperature(k / 100) >= schedule.floor for k in range(101))


def test_its_state_is_all_that_it_remembers():
    schedule, again = Gradual(), Gradual()
    schedule.observe(0.5, FOUND)
    assert again.temperature(1.0) == 0  # before
    again.load_state_dict(schedule.state_dict())
    assert torch.equal(again.profile(0.57).retention(T), schedule.profile(0.57).retention(T))
    with pytest.raises(KeyError):
        again.load_state_dict({"since": 0.5})


@pytest.fixture
def config(finetune_config):
    return {
        **finetune_config,
        "schedule": {"name": "gradual"},
        "monitors": [{"name": "sample-retention", "count": 60}],
        "train": {"steps": 60, "batch_size": 32, "checkpoint_every": 15, "keep_checkpoints": 9, "learning_rate": 0.01},
        "evaluate": {"every": 15, "count": 40, "solver": {"name": "euler", "steps": 4}},
    }


def test_a_run_goes_where_it_measured_and_is_resumed_bit_for_bit(config, registry, tmp_path, monkeypatch):
    def surely(samples_at, data, generator):
        """What is measured, as if it were significant."""
        found = preferred_retention(samples_at, data, generator)
        return replace(found, early=-0.25 - abs(found.minimum.value) / 4, late=0.4)

    monkeypatch.setattr(sample_retention, "preferred_retention", surely)
    whole = gftkit.finetune(config, tmp_path / "whole", registry=registry)
    lines = [line for line in whole.history() if line.get("monitor") == "sample-retention"]
    (measured,) = [line for line in lines if "early" in line]
    assert measured["step"] == 30
    assert -0.4 <= measured["early"] <= -0.25
    last = [line for line in whole.history() if line["kind"] == "train"][-1]
    assert last["retention_low"] == pytest.approx(measured["early"])
    assert last["retention_high"] == pytest.approx(measured["late"])
    assert "Samples want the retention" in (whole.folder / "report.html").read_text()
    again = gftkit.finetune(config, tmp_path / "again", registry=registry).folder
    for kept in (2, 1):  # resumed after the measurement, and before it
        (again / "model.safetensors").unlink()
        for path in checkpoint.checkpoints_of(again / "checkpoints")[kept:]:
            path.unlink()
        gftkit.finetune(config, again, registry=registry, resume=True)
        made, remade = (load_file(folder / "model.safetensors") for folder in (whole.folder, again))
        assert all(torch.equal(made[key], remade[key]) for key in made)
        assert (whole.folder / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()


@pytest.mark.parametrize(
    ("change", "complaint"),
    [
        ({"evaluate": {"every": 60}}, "that is at step 60. Set evaluate.every to a quarter of the steps or less"),
        ({"data": {"count": 3}}, "wanted|at least 4 training data, got 3"),
    ],
)
def test_a_run_that_could_not_be_measured_is_refused_at_once(config, registry, tmp_path, change, complaint):
    for section, values in change.items():
        config[section] = {**config[section], **values}
    with pytest.raises(ConfigError, match=complaint):
        gftkit.finetune(config, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run" / "config.yaml").exists()


def test_a_pretraining_is_refused(pretrain_config, registry, tmp_path):
    with pytest.raises(ConfigError, match="a pretraining has none"):
        gftkit.pretrain({**pretrain_config, "monitors": ["sample-retention"]}, tmp_path / "run", registry=registry)


@pytest.mark.parametrize(("steps", "every"), [(1500, 75), (1500, 400), (7, 2), (10, 10)])
def test_it_is_measured_at_the_first_evaluation_from_the_middle_on(steps, every):
    step = measured_at(steps, every)
    assert step % every == 0
    assert steps / 2 <= step < steps / 2 + every
    assert math.isfinite(step)
