"""The schedule ``recorded``: the temperatures and the end of a finished run."""

import json

import pytest

import gftkit
from gftkit.kernel.errors import RunError
from gftkit_plugins.stops import CopyingStop


@pytest.fixture
def config(finetune_config):
    return {
        **finetune_config,
        "data": {"name": "gaussian-mixture", "count": 20},
        "schedule": {"name": "adaptive"},
        "train": {"steps": 60, "batch_size": 32, "checkpoint_every": 10, "learning_rate": 1e-2, "keep_checkpoints": 9},
        "evaluate": {"every": 10, "count": 24, "solver": {"name": "euler", "steps": 2}},
        "monitors": [{"name": "theory", "batches": 4}, {"name": "memorisation", "count": 40}],
    }


@pytest.fixture
def chosen(config, registry, tmp_path, monkeypatch):
    """A run that chose its temperatures and, as its rule is made to end it when it first listens, its end."""
    monkeypatch.setattr(CopyingStop, "done", property(lambda rule: bool(rule._history)))
    return gftkit.finetune(config, tmp_path / "chosen", registry=registry)


def test_a_recorded_schedule_has_the_temperatures_and_the_end_of_its_run(chosen, config, registry, tmp_path):
    assert 10 <= chosen.steps() < 60
    config |= {"schedule": {"name": "recorded", "run": str(chosen.folder)}, "data": {"name": "two-moons", "count": 25}}
    run = gftkit.finetune(config, tmp_path / "refit", registry=registry)
    assert run.steps() == chosen.steps()
    assert "ended there" in json.loads((run.folder / "summary.json").read_text())["stopped"]["reason"]
    one, other = (
        [(line["step"], line["temperature"]) for line in r.history() if line["kind"] == "train"] for r in (run, chosen)
    )
    assert one == other
    longer = gftkit.finetune({**config, "train": {**config["train"], "steps": 120}}, tmp_path / "l", registry=registry)
    assert longer.steps() == 2 * chosen.steps()


def test_a_recorded_schedule_steps_where_its_run_did(chosen, monkeypatch):
    lines = [{"step": step, "kind": "train", "temperature": beta} for step, beta in ((10, 4.0), (20, 1.0), (60, 0.5))]
    monkeypatch.setattr("gftkit.runs.folder.RunFolder.history", lambda run: lines)
    schedule = gftkit.load().create("schedule", "recorded", run=chosen.folder)
    assert [schedule.temperature(step / 60) for step in (0, 9, 10, 19, 20, 59)] == [4.0, 4.0, 1.0, 1.0, 0.5, 0.5]


def test_only_a_finished_fine_tune_is_recorded(registry, pretrained):
    with pytest.raises(RunError, match="wanted a finished fine-tune"):
        registry.create("schedule", "recorded", run=pretrained)
