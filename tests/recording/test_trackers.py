"""Trackers: what they are told is what metrics.jsonl holds, once, also after a resume; and they never stop a run."""

import importlib.machinery
import json
import re
import sys
import types
from collections import Counter

import numpy as np
import pytest
import yaml
from safetensors.torch import load_file
from support.event_files import agree, events, logged, settle

import gftkit
from gftkit.kernel.errors import RunError
from gftkit.recording import trackers as tracking
from gftkit.recording.trackers import Trackers
from gftkit.runs.resolve import resolve_config
from gftkit.storage.log import read_log
from gftkit.training import loop

CONFIG = {
    "drift": {"name": "mlp", "width": 8, "depth": 1},
    "data": {"name": "two-moons"},
    "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 3, "log_every": 2},
    "evaluate": {"every": 4, "count": 20, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
    "seed": 5,
}
EVALUATIONS = [0, 4, 8, 12]


def run(out, registry, track, resume=False, **changes):
    return gftkit.pretrain({**CONFIG, "track": track, **changes}, out, registry=registry, device="cpu", resume=resume)


@pytest.fixture
def interrupted(registry, monkeypatch, tmp_path):
    """A run that is interrupted at a step, or by name of what the loop calls at its end, and then resumed."""

    def go(at, before, after=None):
        owner, name = (loop.Steps, "take") if isinstance(at, int) else (loop, at)
        real = getattr(owner, name)

        def stopped(*arguments):
            if at in (name, arguments[-1]):
                raise KeyboardInterrupt
            return real(*arguments)

        with monkeypatch.context() as patch:
            patch.setattr(owner, name, stopped)
            with pytest.raises(KeyboardInterrupt):
                run(tmp_path / "run", registry, before)
        settle(tmp_path / "run")
        return run(tmp_path / "run", registry, before if after is None else after, resume=True).folder

    return go


# TensorBoard


def test_tensorboard_holds_every_line_of_the_log_and_pictures(pretrained, tmp_path, registry, with_pictures):
    config = {
        **{key: CONFIG[key] for key in ("train", "evaluate", "seed")},
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 20},
        "schedule": {"name": "exponential"},
        "monitors": [{"name": "theory", "batches": 2}, "anchor-distance"],
    }
    out = gftkit.finetune({**config, "track": ["tensorboard"]}, tmp_path / "run", registry=registry).folder
    numbers, images = events(out / "tensorboard")
    wanted = logged(out)
    assert {name.rpartition("/")[0] for name, _ in wanted} == {
        "train",
        "evaluation",
        "evaluation/ema",
        "monitor/theory",
        "monitor/anchor-distance",
    }
    for key, value in wanted.items():
        assert np.allclose(numbers[key], value, rtol=1e-6), key
    assert images == {"evaluation/samples": EVALUATIONS, "evaluation/ema/samples": [12]}
    (parameters,) = (yaml.safe_load(path.read_text()) for path in out.glob("tensorboard/*/hparams.yml"))
    assert parameters["train.batch_size"] == 8
    assert parameters["schedule.name"] == "exponential"

    plain = gftkit.finetune(config, tmp_path / "plain", registry=registry).folder
    one, other = (load_file(folder / "model.safetensors") for folder in (out, plain))
    assert all(one[name].equal(other[name]) for name in one)
    assert (out / "metrics.jsonl").read_text() == (plain / "metrics.jsonl").read_text()


@pytest.mark.parametrize("at", [2, 8, "write_model"])
def test_a_resumed_run_leaves_no_event_twice(interrupted, at):
    out = interrupted(at, ["tensorboard"])
    numbers, images = events(out / "tensorboard")
    assert agree(numbers, logged(out))
    assert images == {"evaluation/samples": EVALUATIONS, "evaluation/ema/samples": [12]}
    assert len(list(out.glob("tensorboard/*/hparams.yml"))) == 1


def test_without_a_purge_events_would_stand_twice(interrupted, monkeypatch):
    from accelerate.tracking import TensorBoardTracker

    start = TensorBoardTracker.start

    def forgetful(self):
        self.init_kwargs.pop("purge_step")
        start(self)

    monkeypatch.setattr(TensorBoardTracker, "start", forgetful)
    out = interrupted(8, ["tensorboard"])
    assert {step for (_, step), values in events(out / "tensorboard")[0].items() if len(values) > 1} == {8}


def test_runs_may_be_collected_in_one_folder(tmp_path, registry):
    track = [{"name": "tensorboard", "folder": str(tmp_path / "board")}]
    for name in ("a", "b"):
        run(tmp_path / name, registry, track)
        assert agree(events(tmp_path / "board" / name)[0], logged(tmp_path / name))
    assert not (tmp_path / "a" / "tensorboard").exists()
    with pytest.raises(RunError, match=r"board/a exists, and the events of two runs would mix"):
        run(tmp_path / "elsewhere" / "a", registry, track)
    assert not (tmp_path / "elsewhere").exists()


# Weights & Biases and MLflow: packages of the same calls, that keep what they are told


def package(monkeypatch, name, **members):
    made = types.ModuleType(name)
    made.__spec__ = importlib.machinery.ModuleSpec(name, None)
    vars(made).update(members)
    monkeypatch.setitem(sys.modules, name, made)
    return made


@pytest.fixture
def wandb(monkeypatch):
    """Weights & Biases as accelerate calls it: a run that is known by its id takes no step that it has."""
    server = types.SimpleNamespace(runs={}, started=[], parameters={}, finished=0)

    class Config:
        def update(self, values, allow_val_change):
            server.parameters |= values

    class WandbRun:
        def __init__(self, id):
            self.rows = server.runs.setdefault(id, [])
            self.first = max((step + 1 for step, _ in self.rows), default=0)

        def log(self, values, step):
            if step >= self.first:
                self.rows.append((step, values))

        def finish(self):
            server.finished += 1

    def init(*, project, id, resume, name, entity, group, tags, mode, dir):
        assert resume == "allow"
        server.started.append((project, id, name, entity, tags, mode, dir))
        return WandbRun(id)

    package(monkeypatch, "wandb", init=init, config=Config(), Image=lambda image: ("image", image.shape))
    return server


def test_weights_and_biases_gets_every_value_once(interrupted, wandb):
    track = [{"name": "wandb", "project": "mine", "tags": ["small"], "mode": "offline"}]
    out = interrupted(8, track)
    id = json.loads((out / "trackers.json").read_text())["wandb"]["id"]
    assert wandb.started == [("mine", id, "run", None, ["small"], "offline", str(out))] * 2
    assert wandb.parameters["train.steps"] == 12
    assert wandb.finished == 2
    found, images = {}, Counter()
    for step, values in wandb.runs[id]:
        for name, value in values.items():
            if name.endswith("samples"):
                assert value[0][0] == "image"
                assert value[0][1][2] == 3
                images[name, step] += 1
            else:
                found.setdefault((name, step), []).append(value)
    assert found == logged(out)
    assert images == {("evaluation/ema/samples", 12): 1} | {("evaluation/samples", step): 1 for step in EVALUATIONS}


@pytest.fixture
def mlflow(monkeypatch):
    """MLflow as accelerate and gftkit call it: a value that is logged twice is there twice."""
    store = types.SimpleNamespace(metrics={}, parameters={}, pictures=[], runs=[], uri=None, ended=0)
    info = types.SimpleNamespace(info=types.SimpleNamespace(run_id="r1"))

    def start_run(run_id, experiment_id, run_name, nested, tags, description):
        store.runs.append((run_id, experiment_id, run_name))
        return info

    def log_metrics(metrics, step):
        for name, value in metrics.items():
            store.metrics.setdefault((name, step), []).append(value)

    class MlflowClient:
        def get_metric_history(self, run_id, key):
            assert run_id == "r1"
            return [types.SimpleNamespace(step=step) for name, step in store.metrics if name == key]

    package(
        monkeypatch,
        "mlflow",
        search_experiments=lambda filter_string: [],
        create_experiment=lambda name, artifact_location, tags: f"the id of {name}",
        start_run=start_run,
        log_metrics=log_metrics,
        log_params=store.parameters.update,
        log_image=lambda image, artifact_file: store.pictures.append(artifact_file),
        set_tracking_uri=lambda uri: setattr(store, "uri", uri),
        end_run=lambda: setattr(store, "ended", store.ended + 1),
        MlflowClient=MlflowClient,
        utils=types.SimpleNamespace(
            validation=types.SimpleNamespace(MAX_PARAM_VAL_LENGTH=6000, MAX_PARAMS_TAGS_PER_BATCH=100)
        ),
    )
    return store


def test_mlflow_gets_every_value_once(interrupted, mlflow):
    track = [{"name": "mlflow", "experiment": "mine", "uri": "file:store"}]
    out = interrupted(8, track)
    assert mlflow.metrics == logged(out)
    assert mlflow.runs == [(None, "the id of mine", "run"), ("r1", "the id of mine", "run")]
    assert mlflow.uri == "file:store"
    assert mlflow.parameters["train.learning_rate"] == 1e-3
    wanted = [f"evaluation/samples/step-{step:09d}.png" for step in EVALUATIONS]
    assert sorted(set(mlflow.pictures)) == ["evaluation/ema/samples/step-000000012.png", *wanted]
    assert mlflow.ended == 2


def test_mlflow_is_queried_once_and_only_on_resume(tmp_path, registry, monkeypatch, mlflow):
    asked = []
    history = sys.modules["mlflow"].MlflowClient.get_metric_history

    def counted(self, run_id, key):
        asked.append(key)
        return history(self, run_id, key)

    monkeypatch.setattr(sys.modules["mlflow"].MlflowClient, "get_metric_history", counted)
    run(tmp_path / "run", registry, ["mlflow"])
    assert asked == []
    (tmp_path / "run" / "model.safetensors").unlink()
    (tmp_path / "run" / "checkpoints" / "step-000000012.safetensors").unlink()
    run(tmp_path / "run", registry, ["mlflow"], resume=True)
    assert sorted(asked) == sorted(set(asked))
    assert len(asked) > 4
    assert mlflow.metrics == logged(tmp_path / "run")


# A tracker that fails


@pytest.mark.parametrize("where", ["init", "update", "log", "Image", "finish"])
def test_a_failing_tracker_is_reported_once_and_the_run_goes_on(tmp_path, registry, monkeypatch, wandb, capsys, where):
    def fail(*arguments, **options):
        raise ConnectionError("no network,\nagain")

    module = sys.modules["wandb"]
    init = module.init

    def broken(**options):
        made = init(**options)
        setattr(made, where, fail)
        return made

    if where in ("log", "finish"):
        monkeypatch.setattr(module, "init", broken)
    else:
        monkeypatch.setattr(module.config if where == "update" else module, where, fail, raising=False)
    done = run(tmp_path / "run", registry, ["wandb", "tensorboard"])
    assert done.finished
    said = " ".join(capsys.readouterr().err.split())
    assert said.count("track: 'wandb' failed and is not used any more (ConnectionError: no network, again).") == 1
    assert said.count("Warning") == 1
    assert agree(events(done.folder / "tensorboard")[0], logged(done.folder))


def test_trackers_are_asked_at_lines_of_the_log_only(tmp_path, registry, wandb):
    run(tmp_path / "run", registry, ["wandb"])
    (rows,) = wandb.runs.values()
    lines = len(read_log(tmp_path / "run" / "metrics.jsonl"))
    assert len(rows) == lines + len(EVALUATIONS) + 1  # the pictures, one of the EMA weights


def test_only_the_main_process_logs(tmp_path, wandb):
    trackers = Trackers({"wandb": tracking.WandB()}, tmp_path, resumed=False, main=False, warn=pytest.fail)
    assert not trackers
    trackers.start(-1, {"train": {"steps": 3}})
    trackers.add({"kind": "train", "step": 1, "loss": 1.0})
    trackers.close()
    assert not list(tmp_path.iterdir())
    assert not wandb.started


def test_a_resume_may_change_the_trackers(interrupted, registry):
    out = interrupted(8, [], ["tensorboard"])
    assert {step for _, step in events(out / "tensorboard")[0]} == {8, 10, 12}
    with pytest.raises(RunError, match=r"another configuration: seed differ"):
        run(out, registry, [], resume=True, seed=6)


# The configuration


def test_trackers_are_resolved_with_every_option(registry, write_config, tmp_path):
    path = write_config({**CONFIG, "track": [{"name": "tensorboard", "folder": "board"}, "wandb"]})
    config = resolve_config(path, "pretrain", registry)[0]
    assert config.to_dict()["track"] == [
        {"name": "tensorboard", "folder": str(tmp_path / "board")},
        {"name": "wandb", "project": "gftkit", "entity": None, "run": None, "group": None, "tags": [], "mode": None},
    ]


@pytest.mark.parametrize(
    ("track", "message"),
    [
        ("tensorboard", "track: wanted a list, got 'tensorboard'"),
        (["tensorbord"], "unknown tracker at track[0]: 'tensorbord'. Did you mean 'tensorboard'?"),
        ([{"project": "p"}], "track[0]: wanted the name of a tracker, or {name: ...} with options"),
        ([{"name": "wandb", "projekt": "p"}], "unknown option of track[0]: 'projekt'. Did you mean 'project'?"),
        ([{"name": "wandb", "mode": "of"}], "track[0].mode: wanted 'online' or 'offline' or null, got 'of'"),
        (["tensorboard", {"name": "tensorboard"}], "track[1]: 'tensorboard' occurs twice"),
    ],
)
def test_bad_tracker_options_are_refused(pretraining, track, message):
    assert message in pretraining(track=track)


@pytest.mark.parametrize(
    ("name", "install"),
    [("tensorboard", "'gftkit[tensorboard]'"), ("wandb", "wandb"), ("mlflow", "mlflow")],
)
def test_a_package_that_is_missing_is_named(pretraining, monkeypatch, name, install):
    monkeypatch.setattr(tracking, "find_spec", lambda package: None)
    message = pretraining(track=[name])
    assert message.startswith(f"track: '{name}' requires the package {name}, which isn't installed.")
    assert f"pip install {install}; or leave '{name}' out" in message


def test_metric_names_suit_every_tracker():
    line = {"kind": "monitor", "step": 1, "monitor": "m", "a@b:c": 1.0, "ok": True, "text": "x", "none": None, "l": [1]}
    assert tracking.scalars(line) == {"monitor/m/a_b_c": 1.0}
    assert all(re.fullmatch(r"[\w/. -]+", name) for name in tracking.scalars(line))
