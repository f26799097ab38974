"""The loop: exact randomness, exact resume, the anchor, the EMA, and what stops a run."""

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from torch import nn

import gftkit
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, DataError, DivergenceError, GftkitError, RunError, WeightsError
from gftkit.networks.anchor import FrozenAnchor, drift_hash
from gftkit.runs import checkpoint
from gftkit.runs.resolve import resolve_config
from gftkit.storage.tensors import digest, read_tensors, write_tensors
from gftkit.theory.temperature import check_schedule
from gftkit.training import loop

STEPS = 24
PRETRAIN = {
    "drift": {"name": "mlp", "width": 16, "depth": 2},
    "data": {"name": "two-moons"},
    "coupling": {"name": "optimal-transport"},
    "train": {"steps": STEPS, "batch_size": 16, "pairing_batch": 48, "checkpoint_every": 8, "keep_checkpoints": 9},
    "evaluate": {
        "every": 8,
        "count": 40,
        "metrics": [{"name": "path-length"}],
        "solver": {"name": "euler", "steps": 3},
    },
    "seed": 4,
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, registry):
    return gftkit.pretrain(PRETRAIN, tmp_path_factory.mktemp("runs") / "pre", registry=registry).folder


@pytest.fixture
def tuning(pretrained):
    """A fine-tune's configuration; change it freely."""
    return {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 10, "seed": 1},
        "schedule": {"name": "exponential"},
        "train": dict(PRETRAIN["train"]),
        "evaluate": json.loads(json.dumps(PRETRAIN["evaluate"])),
        "seed": 5,
    }


def model(folder):
    return load_file(Path(folder) / "model.safetensors")


def same(one, other):
    return one.keys() == other.keys() and all(torch.equal(one[name], other[name]) for name in one)


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


@pytest.fixture
def with_dropout(registry):
    """A registry with a drift that uses torch's global generator in training."""

    class Plugin:
        @gftkit.hookimpl
        def gftkit_drifts(self):
            return {"with-dropout": make_dropout}

    return gftkit.load(plugins={"dropout": Plugin()})


class WithDropout(nn.Module):
    def __init__(self, size: int) -> None:
        super().__init__()
        self.net = nn.Sequential(nn.Linear(size + 1, 16), nn.SiLU(), nn.Dropout(0.3), nn.Linear(16, size))

    def forward(self, t, x):
        return self.net(torch.cat([t[:, None], x], dim=1))


def make_dropout(event_shape: tuple[int, ...]) -> nn.Module:
    """A drift with dropout."""
    return WithDropout(event_shape[0])


@pytest.mark.parametrize("optimizer", ["adam", {"name": "sgd", "momentum": 0.9}, "adamw"])
@pytest.mark.parametrize("stop", [8, 16])
def test_a_resumed_run_equals_an_undisturbed_one(tmp_path, with_dropout, stop, optimizer):
    config = {**PRETRAIN, "drift": {"name": "with-dropout"}, "train": {**PRETRAIN["train"], "optimizer": optimizer}}
    whole = gftkit.pretrain(config, tmp_path / "whole", registry=with_dropout).folder
    broken = gftkit.pretrain(config, tmp_path / "broken", registry=with_dropout).folder
    interrupt(broken, stop)
    gftkit.pretrain(config, broken, registry=with_dropout, resume=True)
    assert same(model(whole), model(broken))
    for name in ("metrics.jsonl", "config.yaml"):
        assert (whole / name).read_text() == (broken / name).read_text()
    last = [checkpoint.latest(folder / "checkpoints")[0] for folder in (whole, broken)]
    assert same(last[0].tensors, last[1].tensors)


def interrupt(folder, stop):
    """Take a finished run back to just after its checkpoint of step ``stop``, some steps of log included."""
    for path in checkpoint.checkpoints_of(folder / "checkpoints"):
        if int(path.stem.removeprefix("step-")) > stop:
            path.unlink()
    (folder / "model.safetensors").unlink()
    lines = (folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    kept = [line for line in lines if json.loads(line)["step"] <= stop + 2]
    (folder / "metrics.jsonl").write_text("".join(kept) + '{"step": 11, "ki')


def test_a_run_stopped_before_its_first_checkpoint_or_at_its_last_step_resumes(tmp_path, registry):
    whole = gftkit.pretrain(PRETRAIN, tmp_path / "whole", registry=registry).folder
    for stop in (0, STEPS):
        broken = gftkit.pretrain(PRETRAIN, tmp_path / str(stop), registry=registry).folder
        (broken / "model.safetensors").unlink()
        for path in checkpoint.checkpoints_of(broken / "checkpoints") if stop == 0 else []:
            path.unlink()
        gftkit.pretrain(PRETRAIN, broken, registry=registry, resume=True)
        assert same(model(whole), model(broken))
        assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()


def test_a_damaged_checkpoint_is_passed_over(tuning, tmp_path, registry, capsys):
    whole = gftkit.finetune(tuning, tmp_path / "whole", registry=registry).folder
    broken = gftkit.finetune(tuning, tmp_path / "broken", registry=registry).folder
    interrupt(broken, 16)
    newest = checkpoint.checkpoints_of(broken / "checkpoints")[-1]
    newest.write_bytes(newest.read_bytes()[:100])
    gftkit.finetune(tuning, broken, registry=registry, resume=True)
    assert same(model(whole), model(broken))
    assert f"{newest.name} is damaged" in capsys.readouterr().err


def test_a_resumed_run_takes_the_same_configuration_and_anchor(tuning, tmp_path, registry):
    out = gftkit.finetune(tuning, tmp_path / "run", registry=registry).folder
    interrupt(out, 8)
    with pytest.raises(RunError, match=r"another configuration: train differ"):
        gftkit.finetune(tuning, out, registry=registry, resume=True, overrides=["train.learning_rate=0.1"])
    path = checkpoint.checkpoints_of(out / "checkpoints")[-1]
    tensors, notes = read_tensors(path)
    write_tensors(path, tensors, {**notes, "anchors": ["another"]})
    with pytest.raises(RunError, match="has changed since this run started"):
        gftkit.finetune(tuning, out, registry=registry, resume=True)
    with pytest.raises(RunError, match="no run to resume"):
        gftkit.finetune(tuning, tmp_path / "none", registry=registry, resume=True)


def test_monitors_do_not_change_a_run(tuning, tmp_path, registry):
    plain = gftkit.finetune(tuning, tmp_path / "plain", registry=registry).folder
    watched = gftkit.finetune({**tuning, "monitors": ["anchor-distance"]}, tmp_path / "watched", registry=registry)
    assert same(model(plain), model(watched.folder))
    seen = [line for line in watched.history() if line["kind"] == "monitor"]
    assert [line["step"] for line in seen] == [0, 8, 16, 24]
    assert seen[0]["anchor_distance"] == 0
    assert seen[-1]["anchor_distance"] > 0


def test_the_anchor_is_the_pretrained_ema_and_stays_so(tuning, tmp_path, registry, monkeypatch):
    seen = []
    whole = loop.write_model

    def spy(folder, drift, facts, notes):
        seen.append(notes["anchor"])
        whole(folder, drift, facts, notes)

    monkeypatch.setattr(loop, "write_model", spy)
    gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    spec = {
        "drift": {"name": "mlp", "width": 16, "depth": 2, "conditional": False, "conditions": []},
        "event_shape": [2],
    }
    assert seen == [drift_hash(digest(model(tuning["pretrained"])), spec)]


@pytest.mark.parametrize(("schedule", "wanted"), [("zero", 0), ("constant", STEPS), ("linear", 22)])
def test_the_anchor_costs_one_pass_and_none_without_temperature(
    tuning, tmp_path, registry, monkeypatch, schedule, wanted
):
    calls = []
    forward = FrozenAnchor.__call__

    def counted(self, t, x, **conditions):
        out = forward(self, t, x, **conditions)
        calls.append(out.requires_grad)
        return out

    monkeypatch.setattr(FrozenAnchor, "__call__", counted)
    gftkit.finetune({**tuning, "schedule": {"name": schedule}}, tmp_path / "run", registry=registry)
    assert len(calls) == wanted  # linear is exactly 0 from s = 0.9 on: steps 22 and 23
    assert not any(calls)


def test_a_high_temperature_keeps_the_pretrained_drift(tuning, tmp_path, registry):
    """rho near 1: the drift stays; rho 0: it goes. An anchor that shared the trained weights would let it go."""
    distance = {}
    for value in (0.0, 1e4):
        config = {**tuning, "schedule": {"name": "constant", "value": value}, "monitors": ["anchor-distance"]}
        config["train"] = {**config["train"], "learning_rate": 0.01}
        run = gftkit.finetune(config, tmp_path / f"run-{value}", registry=registry)
        distance[value] = [line for line in run.history() if line["kind"] == "monitor"][-1]["anchor_distance"]
    assert distance[1e4] < 0.2 * distance[0.0]


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


def registry_with_schedule(function):
    """Everything installed and a schedule "mine" of a plugin."""

    class Mine:
        """A schedule."""

        def temperature(self, progress: float) -> float:
            return function(progress)

    return gftkit.load(
        plugins={"mine": type("Plugin", (), {"gftkit_schedules": gftkit.hookimpl(lambda self: {"mine": Mine})})()}
    )


@pytest.mark.parametrize(
    ("function", "reason"),
    [
        (lambda s: 0.5 - s, "step 13: temperature: wanted a finite number >= 0, got -0.04"),
        (lambda s: float("nan") if s > 0.9 else 1.0, "step 22: temperature: wanted a finite number >= 0, got nan"),
        (lambda s: 1 / (0.5 - s), "step 12: float division by zero"),
        (lambda s: None, "step 0: float\\(\\) argument"),
    ],
)
def test_a_schedule_that_breaks_its_word_is_named_before_anything_is_trained(tuning, tmp_path, function, reason):
    registry = registry_with_schedule(function)
    with pytest.raises(ConfigError, match=rf"schedule 'mine' at {reason}"):
        gftkit.finetune({**tuning, "schedule": {"name": "mine"}}, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run").exists()


def test_a_schedule_that_rises_is_warned_about_once():
    schedule = registry_with_schedule(lambda s: 1 + s * (s > 0.5)).create("schedule", "mine")
    (warning,) = check_schedule(schedule, "mine", 10)
    assert warning.startswith("schedule 'mine' rises at step 6 of 10, from 1 to 1.6.")
    assert check_schedule(registry_with_schedule(lambda s: 1 - s).create("schedule", "mine"), "mine", 10) == []


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


def test_labels_that_a_conditional_drift_does_not_know_are_refused(tmp_path, registry):
    config = {**PRETRAIN, "drift": {"name": "mlp", "width": 16, "depth": 1, "conditional": True}}
    before = gftkit.pretrain(config, tmp_path / "pre", registry=registry)
    tuning = {"pretrained": str(before.folder), "data": {"name": "gaussian-mixture"}, "schedule": {"name": "zero"}}
    with pytest.raises(DataError, match="label"):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    tuning["data"] = {"name": "gaussian", "event_shape": [2]}
    with pytest.raises(DataError, match="have no labels"):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)


def test_data_far_outside_the_scale_of_a_pretrained_drift_are_warned_of(tmp_path, registry, capsys):
    """A drift trained on [-1, 1], and arrays in 0..16, which are never rescaled; the same within [-1, 1] pass."""
    config = {**PRETRAIN, "data": {"name": "digits", "count": 40}, "coupling": {"name": "independent"}}
    before = gftkit.pretrain(config, tmp_path / "pre", registry=registry, overrides=["train.steps=2"])
    for scale, warned in ((16.0, True), (1.0, False)):
        np.save(tmp_path / "data.npy", np.full((30, 1, 8, 8), scale, dtype=np.float32))
        tuning = {
            "pretrained": str(before.folder),
            "data": {"name": "arrays", "file": str(tmp_path / "data.npy")},
            "schedule": {"name": "zero"},
            "train": {"steps": 1, "batch_size": 8},
            "evaluate": {"count": 30, "metrics": ["path-length"]},
        }
        gftkit.finetune(tuning, tmp_path / f"run-{scale}", registry=registry)
        assert ("never rescaled" in " ".join(capsys.readouterr().err.split())) == warned


@pytest.mark.parametrize(("scale", "warned"), [(255.0, True), (10.0, False)])
def test_large_data_are_warned_of_in_pretraining(tmp_path, registry, scale, warned):
    np.save(tmp_path / "data.npy", scale * np.ones((30, 2), dtype=np.float32))
    config = {**PRETRAIN, "data": {"name": "arrays", "file": str(tmp_path / "data.npy")}}
    found = build(resolve_config(config, "pretrain", registry)[0], registry).warnings
    assert ["the root mean square of the values is 255" in warning for warning in found] == [True] * warned


def test_a_checkpoint_is_not_taken_for_a_weights_file(tuning, tmp_path, registry):
    path = checkpoint.checkpoints_of(Path(tuning["pretrained"]) / "checkpoints")[-1]
    config = {**tuning, "pretrained": str(path), "drift": PRETRAIN["drift"]}
    with pytest.raises(WeightsError, match="is a run's checkpoint: give the run folder"):
        gftkit.finetune(config, tmp_path / "run", registry=registry)
    with pytest.raises(RunError, match="wanted the run folder"):
        gftkit.Run.open(path)


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


def test_averaged_weights_are_measured_along_the_run_where_asked_for(tuning, tmp_path, registry):
    plain = gftkit.finetune(tuning, tmp_path / "plain", registry=registry)
    tuning["evaluate"]["averaged"] = True
    run = gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    assert same(model(plain.folder), model(run.folder))
    where = [(line["step"], line["weights"]) for line in run.history() if line["kind"] == "evaluation"]
    assert where == [(0, "raw"), (8, "raw"), (8, "ema"), (16, "raw"), (16, "ema"), (STEPS, "raw"), (STEPS, "ema")]
    values = [line["path_length"] for line in run.history() if line.get("weights") == "ema"]
    assert len(set(values)) == len(values)  # each of its own step
    raw = [line for line in run.history() if line.get("weights") == "raw"]
    assert raw == [line for line in plain.history() if line.get("weights") == "raw"]
    whole = (run.folder / "metrics.jsonl").read_text()
    interrupt(run.folder, 16)
    gftkit.finetune(tuning, run.folder, registry=registry, resume=True)
    assert (run.folder / "metrics.jsonl").read_text() == whole


def test_metrics_of_the_ends_are_measured_there_only(tuning, tmp_path, registry):
    tuning["evaluate"] |= {"averaged": True, "ends": ["straightness"]}
    run = gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    lines = [line for line in run.history() if line["kind"] == "evaluation"]
    having = [(line["step"], line["weights"]) for line in lines if "straightness" in line]
    assert having == [(0, "raw"), (STEPS, "ema")]
    assert all("path_length" in line for line in lines)
    assert (
        run.evaluate()["straightness"] == json.loads((run.folder / "summary.json").read_text())["ema"]["straightness"]
    )
    report = (run.folder / "report.html").read_text()
    assert '<h2 id="path_length">' in report
    assert '<h2 id="straightness">' not in report  # two points are no curve


@pytest.mark.parametrize(
    ("ends", "match"),
    [
        (["path-length"], r"evaluate\.ends\[0\] \(PathLength\) measures path_length, as a metric before it does"),
        (["memorisation"], r"evaluate\.ends\[0\] \(Memorisation\): memorisation compares"),
        (["frechett"], r"evaluate\.ends\[0\]"),
    ],
)
def test_what_the_ends_can_not_have_is_refused_before_the_first_step(tuning, tmp_path, registry, ends, match):
    tuning["evaluate"]["ends"] = ends
    with pytest.raises(GftkitError, match=match):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run" / "config.yaml").exists()
