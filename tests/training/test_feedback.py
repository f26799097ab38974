"""Schedules that listen to a run, and rules that end it: hooks of the kernel, with components made here."""

import json

import pytest
import torch
from safetensors.torch import load_file

import gftkit
from gftkit.api import Run
from gftkit.kernel.errors import ConfigError, RunError, UnknownNameError
from gftkit.kernel.loading import load
from gftkit.runs import checkpoint
from gftkit.storage.tensors import read_tensors, write_tensors
from gftkit.theory.temperature import has_feedback
from gftkit.training.feedback import Feedback, by_monitor

STEPS, EVERY = 24, 5


class Count:
    """A monitor that tells the step and the temperature that it sees."""

    def observe(self, state):
        return {"at": state.step, "seen": state.temperature}

    def finish(self, folder):
        """Nothing."""


class Listener:
    """Remembers what it was told.

    Args:
        last: the step after which it is done.
    """

    needs = ("count",)

    def __init__(self, last: int = 10**6) -> None:
        self.last, self.heard = last, []

    @property
    def done(self):
        return bool(self.heard) and self.heard[-1][1] >= self.last

    @property
    def reason(self):
        return f"{self.heard[-1][1]} steps are enough." if self.done else ""

    def observe(self, progress, measurements):
        self.heard.append([progress, measurements["count"]["at"]])

    def state_dict(self):
        return {"heard": self.heard}

    def load_state_dict(self, state):
        self.heard = state["heard"]


class Halving(Listener):
    """Halves its temperature at each evaluation, and warms up once more after the third.

    Args:
        last: the step after which it is done.
        start: temperature.
        back: factor after the third.
    """

    def __init__(self, last: int = 10**6, start: float = 2.0, back: float = 1.0) -> None:
        super().__init__(last)
        self.start, self.back = start, back

    def temperature(self, progress):
        told = max(0, len(self.heard) - 1)
        return self.start * 0.5**told if told != 3 else self.start * self.back


class Deaf(Halving):
    """Forgets what it heard when it is resumed."""

    def load_state_dict(self, state):
        """Nothing is taken up."""


class Plugin:
    """An object with these hooks."""

    def __init__(self, **hooks):
        for kinds, given in hooks.items():
            setattr(self, f"gftkit_{kinds}", gftkit.hookimpl(lambda given=given: given))


@pytest.fixture(scope="module")
def listening():
    schedules = {"halving": Halving, "deaf": Deaf}
    return load(plugins={"mine": Plugin(monitors={"count": Count}, stops={"after": Listener}, schedules=schedules)})


@pytest.fixture
def config(finetune_config):
    return {
        **finetune_config,
        "schedule": {"name": "halving"},
        "objective": {"anchor_share": 0.25},
        "train": {"steps": STEPS, "batch_size": 16, "checkpoint_every": 10, "log_every": 1, "keep_checkpoints": 9},
        "evaluate": {"every": EVERY, "count": 32, "solver": {"name": "euler", "steps": 2}},
    }


def trained(run):
    return [line["temperature"] for line in run.history() if line["kind"] == "train"]


def test_a_schedule_hears_every_evaluation_and_answers_at_once(config, listening, tmp_path):
    """Anchors of several steps are evaluated together, and no temperature may be settled before it is known."""
    run = gftkit.finetune(config, tmp_path / "run", registry=listening)
    assert run.config.monitors == [{"name": "count"}]
    wanted = [2.0] * 5 + [1.0] * 5 + [0.5] * 5 + [2.0] * 5 + [0.125] * 4
    assert trained(run) == wanted
    seen = [line["seen"] for line in run.history() if line["kind"] == "monitor"]
    assert seen == [2.0, 2.0, 1.0, 0.5, 2.0, 0.125]  # what the run was trained at before the evaluation
    notes = checkpoint.latest(run.folder / "checkpoints")[0].notes
    assert notes["feedback"]["schedule"]["heard"] == [[n / STEPS, n] for n in (0, 5, 10, 15, 20, 24)]
    assert "stopped" not in json.loads((run.folder / "summary.json").read_text())


@pytest.mark.parametrize("where", ["schedule", "stop"])
def test_a_run_ends_where_it_is_done_and_says_why(config, listening, tmp_path, where):
    rule = {"name": "after", "last": 15}
    changed = {"schedule": {"name": "halving", "last": 15}} if where == "schedule" else {"stop": rule}
    run = gftkit.finetune({**config, **changed}, tmp_path / "run", registry=listening)
    summary = json.loads((run.folder / "summary.json").read_text())
    assert summary["stopped"] == {"of": STEPS, "reason": "15 steps are enough."}
    assert (summary["steps"], run.steps(), len(trained(run))) == (15, 15, 15)
    assert checkpoint.latest(run.folder / "checkpoints")[0].step == 15
    assert "after 15 steps" in (report := (run.folder / "report.html").read_text())
    assert f"Stopped before step {STEPS}: 15 steps are enough." in report
    assert Run.open(run.folder, listening).config.stop == changed.get("stop")


def test_the_command_line_says_why_a_run_ended(config, listening, tmp_path, monkeypatch, write_config, gft):
    monkeypatch.setattr("gftkit.training.train.load", lambda: listening)
    done = gft("finetune", write_config({**config, "stop": {"name": "after", "last": 5}}), "--out", "run")
    assert done.code == 0
    assert f"Stopped after step 5 of {STEPS}: 5 steps are enough." in done.out
    plain = gft("finetune", write_config({**config, "stop": {"name": "after", "last": 5}}), "--out", "more", "--json")
    assert json.loads(plain.out)["stopped"]["of"] == STEPS


def test_a_pretraining_may_be_stopped_too(pretrain_config, listening, tmp_path):
    config = {**pretrain_config, "stop": {"name": "after", "last": 10}}
    run = gftkit.pretrain(config, tmp_path / "run", registry=listening, overrides=["evaluate.every=10"])
    assert run.steps() == 10


def unfinished(folder, step):
    """Take a run back to the checkpoint of a step."""
    (folder / "model.safetensors").unlink()
    for path in checkpoint.checkpoints_of(folder / "checkpoints"):
        if int(path.stem.split("-")[1]) > step:
            path.unlink()


@pytest.mark.parametrize("step", [0, 10, 15])
def test_a_resumed_run_restores_what_its_schedule_heard(config, listening, tmp_path, step):
    config |= {"stop": {"name": "after", "last": 15}}
    whole = gftkit.finetune(config, tmp_path / "whole", registry=listening).folder
    again = gftkit.finetune(config, tmp_path / "again", registry=listening).folder
    unfinished(again, step)
    gftkit.finetune(config, again, registry=listening, resume=True)
    assert (whole / "metrics.jsonl").read_text() == (again / "metrics.jsonl").read_text()
    made, remade = (load_file(folder / "model.safetensors") for folder in (whole, again))
    assert all(torch.equal(made[key], remade[key]) for key in made)


def test_a_schedule_that_forgets_on_resume_is_seen(config, listening, tmp_path):
    """The negative control of the test above."""
    config |= {"schedule": {"name": "deaf"}}
    whole = gftkit.finetune(config, tmp_path / "whole", registry=listening)
    before = trained(whole)
    unfinished(whole.folder, 10)
    assert trained(gftkit.finetune(config, whole.folder, registry=listening, resume=True)) != before


def test_a_checkpoint_without_what_was_heard_is_refused(config, listening, tmp_path):
    folder = gftkit.finetune(config, tmp_path / "run", registry=listening).folder
    unfinished(folder, 10)
    path = checkpoint.checkpoints_of(folder / "checkpoints")[-1]
    tensors, notes = read_tensors(path)
    write_tensors(path, tensors, {key: value for key, value in notes.items() if key != "feedback"})
    with pytest.raises(RunError, match="the state of the schedule is missing or damaged"):
        gftkit.finetune(config, folder, registry=listening, resume=True)


def test_a_temperature_above_the_start_is_refused(config, listening, tmp_path):
    config |= {"schedule": {"name": "halving", "back": 1.5}}
    with pytest.raises(ConfigError, match=r"'halving' rises above its start after step 15, from 2 to 3"):
        gftkit.finetune(config, tmp_path / "run", registry=listening)


def test_monitors_that_are_listened_to(config, listening, tmp_path):
    there = {**config, "monitors": ["count"]}
    assert gftkit.finetune(there, tmp_path / "run", registry=listening).config.monitors == [{"name": "count"}]
    with pytest.raises(ConfigError, match="'count' occurs twice"):
        gftkit.finetune({**config, "monitors": ["count", "count"]}, tmp_path / "new", registry=listening)
    listening.component("schedule", "halving").factory.needs = ("cuont",)
    try:
        with pytest.raises(UnknownNameError, match="Did you mean 'count'"):
            gftkit.finetune(config, tmp_path / "new", registry=listening)
    finally:
        del Halving.needs
    assert not (tmp_path / "new").exists()


def test_a_distillation_is_not_stopped(pretrained, listening, tmp_path):
    with pytest.raises(UnknownNameError, match="stop"):
        gftkit.distill({"pretrained": str(pretrained), "stop": {"name": "after"}}, tmp_path / "run", registry=listening)


def test_lines_of_a_log_become_measurements():
    lines = [("evaluation", {"energy": 1.0}), ("monitor", {"monitor": "count", "at": 3})]
    assert by_monitor(lines) == {"count": {"at": 3}}


def test_components_that_listen_are_recognised():
    schedules = gftkit.load()
    assert not has_feedback(None)
    assert not has_feedback(schedules.create("schedule", "zero"))
    assert has_feedback(Halving())
    alone = Feedback(schedules.create("schedule", "zero"), None, "zero", 10)
    assert (alone.listeners, alone.done, alone.reason, alone.state()) == ({}, False, "", {})
