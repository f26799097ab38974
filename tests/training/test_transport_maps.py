"""Runs whose coupling is a transport map: fitted once, kept, the same after a resume and on several processes."""

import json

import numpy as np
import pytest
import torch
from support import process_groups as several
from support.runs_on_moons import interrupt, model, same

import gftkit
from gftkit.experiment.transport import FILE
from gftkit.inspection.doctor import diagnose
from gftkit.kernel.errors import ConfigError, DataError, RunError
from gftkit.runs import checkpoint
from gftkit.storage.tensors import digest, read_tensors, write_tensors

CONFIG = {
    "drift": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "two-moons", "count": 40},
    "coupling": {"name": "semidiscrete", "chi2": 0.1},
    "train": {"steps": 16, "batch_size": 16, "pairing_batch": 32, "checkpoint_every": 8, "keep_checkpoints": 3},
    "evaluate": {"every": 8, "count": 32, "solver": {"name": "euler", "steps": 2}},
    "seed": 1,
}


def config(**changes):
    return json.loads(json.dumps({**CONFIG, **changes}))


@pytest.fixture(scope="module")
def whole(tmp_path_factory, registry):
    """The folder of an undisturbed run."""
    return gftkit.pretrain(CONFIG, tmp_path_factory.mktemp("maps") / "run", registry=registry, device="cpu").folder


@pytest.fixture
def broken(tmp_path, registry):
    """The same run, stopped at its first checkpoint."""
    folder = gftkit.pretrain(CONFIG, tmp_path / "broken", registry=registry, device="cpu").folder
    interrupt(folder, 8)
    return folder


def test_the_map_is_in_the_run_folder_and_its_numbers_in_the_summary(whole):
    state, notes = read_tensors(whole / FILE, ours=True)
    assert set(state) == {
        f"all.{name}" for name in ("offset", "order", "first", "count", "chi2", "chi2_stderr", "draws")
    }
    assert notes["origin"]["coupling"]["chi2"] == 0.1
    shown = json.loads((whole / "summary.json").read_text())["coupling"]["all"]
    assert shown["chi2"] == float(state["all.chi2"]) < 0.1
    for path in checkpoint.checkpoints_of(whole / "checkpoints"):
        assert read_tensors(path)[1]["transport"] == digest(state)


@pytest.mark.parametrize("kept", [True, False])
def test_a_resumed_run_equals_an_undisturbed_one(whole, broken, registry, kept):
    """Also where the map is fitted anew, since a fit is a function of data, options and seed."""
    if not kept:
        (broken / FILE).unlink()
    before = (broken / FILE).stat().st_mtime_ns if kept else None
    gftkit.pretrain(CONFIG, broken, registry=registry, device="cpu", resume=True)
    assert same(model(whole), model(broken))
    assert (whole / "metrics.jsonl").read_text() == (broken / "metrics.jsonl").read_text()
    assert not kept or (broken / FILE).stat().st_mtime_ns == before


def test_another_map_is_refused_on_resume(broken, registry):
    state, notes = read_tensors(broken / FILE)
    write_tensors(broken / FILE, {**state, "all.offset": state["all.offset"] + 1e-9}, notes)
    with pytest.raises(RunError, match=r"coupling\.safetensors: the fitted coupling has hash"):
        gftkit.pretrain(CONFIG, broken, registry=registry, device="cpu", resume=True)


def test_data_that_change_where_the_sampled_ones_do_not_are_noticed(tmp_path, registry):
    """A checkpoint compares evaluate.count samples of the data; the map was fitted to all of them."""
    x1 = np.random.default_rng(0).normal(size=(60, 2)).astype("float32")
    np.save(tmp_path / "data.npy", x1)
    changed = config(data={"name": "arrays", "file": str(tmp_path / "data.npy")})
    changed["evaluate"]["count"] = 24
    folder = gftkit.pretrain(changed, tmp_path / "run", registry=registry, device="cpu").folder
    interrupt(folder, 8)
    sampled = gftkit.data.Samples(registry.build("dataset", changed["data"]), "data").some(
        24, gftkit.runtime.stream(1, "training")
    )
    seen = {tuple(row) for row in sampled.x1.tolist()}
    row = next(k for k in range(60) if tuple(x1[k].tolist()) not in seen)
    x1[row] += 1
    np.save(tmp_path / "data.npy", x1)
    with pytest.raises(RunError, match="the coupling was fitted to other data"):
        gftkit.pretrain(changed, folder, registry=registry, device="cpu", resume=True)


def test_a_refused_start_keeps_its_map_for_the_next_one(tmp_path, registry):
    refused = config(monitors=["theory"])  # a pretraining has no anchor
    with pytest.raises(ConfigError, match="theory"):
        gftkit.pretrain(refused, tmp_path / "run", registry=registry, device="cpu")
    before = (tmp_path / "run" / FILE).stat().st_mtime_ns
    gftkit.pretrain(CONFIG, tmp_path / "run", registry=registry, device="cpu")
    assert (tmp_path / "run" / FILE).stat().st_mtime_ns == before
    other = tmp_path / "other"
    with pytest.raises(ConfigError, match="theory"):
        gftkit.pretrain(refused, other, registry=registry, device="cpu")
    gftkit.pretrain(config(seed=2), other, registry=registry, device="cpu")  # another map
    assert read_tensors(other / FILE)[1]["origin"]["seed"] == 2


def test_two_processes_have_one_map(whole, tmp_path):
    several.run(several.train, CONFIG, tmp_path / "two")
    assert digest(read_tensors(tmp_path / "two" / FILE)[0]) == digest(read_tensors(whole / FILE)[0])
    one, two = model(whole), model(tmp_path / "two")
    assert max(float((one[name] - two[name]).abs().max()) for name in one) < 2e-6
    other = config(coupling={"name": "independent"})
    several.run(several.train, other, tmp_path / "other")
    assert max(float((one[n] - model(tmp_path / "other")[n]).abs().max()) for n in one) > 1e-4


def test_labels_have_maps_of_their_own(tmp_path, registry):
    labelled = config(
        data={"name": "gaussian-mixture", "count": 60},
        drift={"name": "mlp", "width": 16, "depth": 1, "conditional": True},
    )
    run = gftkit.pretrain(labelled, tmp_path / "run", registry=registry, device="cpu")
    prefixes = {name.partition(".")[0] for name in read_tensors(run.folder / FILE)[0]}
    assert len(prefixes) > 1
    assert prefixes == set(json.loads((run.folder / "summary.json").read_text())["coupling"])


def test_a_fine_tune_inherits_it_and_monitors_draw_its_pairs(whole, tmp_path, registry):
    tuned = {
        "pretrained": str(whole),
        "data": {"name": "gaussian-mixture", "count": 30, "seed": 1},
        "schedule": {"name": "exponential"},
        "train": CONFIG["train"],
        "evaluate": {**CONFIG["evaluate"], "data": {"name": "gaussian-mixture", "count": 30, "seed": 2}},
        "monitors": [{"name": "theory", "batches": 4}, "anchor-distance"],
    }
    run = gftkit.finetune(tuned, tmp_path / "run", registry=registry, device="cpu")
    lines = [line for line in run.history() if line.get("monitor") == "theory"]
    assert lines
    assert all("T" in line for line in lines)
    assert not any(name.startswith("held_out") for line in lines for name in line)
    assert "the coupling is 'semidiscrete'" in lines[0]["oracle"]
    adaptive = {"schedule": {"name": "adaptive", "evidence": "held-out"}, "monitors": ["theory"]}
    with pytest.raises(ConfigError, match="requires held-out pairs"):
        gftkit.finetune({**tuned, **adaptive}, tmp_path / "adaptive", registry=registry, device="cpu")


def with_partners(folder):
    np.savez(folder / "pairs.npz", x=np.zeros((40, 2), "float32"), x0=np.ones((40, 2), "float32"))
    return {"name": "arrays", "file": str(folder / "pairs.npz")}


def with_condition(folder):
    np.savez(folder / "c.npz", x=np.zeros((40, 2), "float32"), c=np.ones((40, 1), "float32"))
    return {"name": "arrays", "file": str(folder / "c.npz"), "conditions": ["c"]}


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (lambda _: {"data": {"name": "two-moons"}}, ConfigError, "maps the source to the samples of a finite set"),
        (lambda _: {"coupling": {"name": "semidiscrete", "memory": 1e-9}}, ConfigError, "keeps all samples in memory"),
        (lambda folder: {"data": with_partners(folder)}, DataError, "come with x0"),
        (
            lambda folder: {
                "data": with_condition(folder),
                "drift": {"name": "mlp", "width": 8, "depth": 1, "conditions": ["c"]},
            },
            ConfigError,
            "makes x0 depend on the conditions 'c'",
        ),
    ],
)
def test_what_it_can_not_pair_is_refused_before_anything_is_written(tmp_path, registry, changes, error, message):
    with pytest.raises(error, match=message):
        gftkit.pretrain(config(**changes(tmp_path)), tmp_path / "run", registry=registry, device="cpu")
    assert not (tmp_path / "run" / FILE).exists()
    assert not (tmp_path / "run" / "environment.json").exists()


def test_an_inspection_refuses_it(registry):
    drift = {"name": "module", "target": "support.process_groups:HalfIdle", "weights": "w.safetensors"}
    asked = {"drift": drift, "data": CONFIG["data"]}
    with pytest.raises(ConfigError, match="is fitted before a run, which gft inspect doesn't"):
        diagnose({**asked, "coupling": "semidiscrete"}, registry)


@pytest.mark.cuda
def test_a_run_on_cuda(tmp_path, registry):
    run = gftkit.pretrain(CONFIG, tmp_path / "run", registry=registry, device="cuda")
    interrupt(run.folder, 8)
    assert gftkit.pretrain(CONFIG, run.folder, registry=registry, device="cuda", resume=True).finished
    labelled = config(
        data={"name": "gaussian-mixture", "count": 60},
        drift={"name": "mlp", "width": 16, "depth": 1, "conditional": True},
    )
    run = gftkit.pretrain(labelled, tmp_path / "labels", registry=registry, device="cuda")
    assert torch.isfinite(run.samples(8, device="cuda")[0]).all()
