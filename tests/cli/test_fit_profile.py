"""``gft fit-profile``: what it writes, that sampling reads it, and bad input."""

import json
import shutil

import pytest
import yaml

import gftkit

MIXTURE = {"name": "gaussian-mixture", "count": 60}
HELD_OUT = "{name: gaussian-mixture, count: 80, seed: 7}"
FEW = ("--count", "40", "--points", "60")


def tuning(pretrained, **changed):
    return {
        "pretrained": str(pretrained),
        "data": MIXTURE,
        "schedule": {"name": "exponential"},
        "train": {"steps": 10, "batch_size": 16, "checkpoint_every": 5, "learning_rate": 0.05},
        "evaluate": {
            "every": 10,
            "count": 32,
            "data": {**MIXTURE, "seed": 1},
            "solver": {"name": "euler", "steps": 4},
        },
        **changed,
    }


@pytest.fixture(scope="module")
def run(pretrained, tmp_path_factory):
    return gftkit.finetune(tuning(pretrained), tmp_path_factory.mktemp("cli") / "run", device="cpu").folder


@pytest.fixture(scope="module")
def of_a_law(pretrained, tmp_path_factory):
    """A run that was trained on a law, of which every step draws fresh samples."""
    config = tuning(pretrained, data={"name": "gaussian-mixture"})
    return gftkit.finetune(config, tmp_path_factory.mktemp("cli-law") / "run", device="cpu").folder


def evidence(profile):
    return yaml.safe_load(profile.read_text())


def test_the_training_data_choose_by_default(gft, run, tmp_path, with_pictures):
    done = gft("fit-profile", run, *FEW, "--out", "profile.yaml")
    assert (done.code, done.err) == (0, "")
    content = evidence(tmp_path / "profile.yaml")
    assert content["by"] == "training data"
    assert content["sentence"] in " ".join(done.out.split())
    assert content["fitted_on"]["anchor"] == gftkit.Run.open(run).notes["anchor"]
    assert content["measured"]["training"]["retentions"] == [-0.4, -0.2, 0.0, 0.15]
    assert "r_star" not in content["measured"]
    assert (tmp_path / "profile.png").read_bytes()[:4] == b"\x89PNG"
    assert done.out.splitlines()[-1] == "Written: profile.yaml, profile.png"


def test_held_out_data_choose_and_sampling_reads_the_file(gft, refused, run, pretrained, tmp_path):
    done = gft("fit-profile", run, *FEW, "--data", HELD_OUT, "--out", "profile.yaml", "--json")
    assert (done.code, done.err) == (0, "")
    answer, content = json.loads(done.out), evidence(tmp_path / "profile.yaml")
    assert answer["times"] == content["times"]
    assert answer["file"] == "profile.yaml"
    assert content["fitted_on"]["data"]["seed"] == 7
    assert len(content["measured"]["r_star"]["value"]) == len(content["measured"]["r_star"]["edges"]) - 1
    significant = {each["name"] for each in content["measured"]["compared"] if each["significant"]}
    assert content["chosen"] in (significant or {"zero"})
    assert set(content["values"]) == {0.0} or content["chosen"] != "zero"
    content["times"], content["values"] = [0.0, 1.0], [-0.2, 0.3]  # whatever was chosen: it is for this run
    (tmp_path / "profile.yaml").write_text(yaml.safe_dump(content))
    retention = ("--count", "4", "--retention", "{name: fitted, file: profile.yaml}", "--out", "s.npz")
    assert gft("sample", run, *retention).code == 0
    other = gftkit.finetune(tuning(pretrained, seed=3), tmp_path / "other", device="cpu").folder
    assert "was fitted to" in refused("sample", other, *retention, "--force")


def test_folds_say_what_they_take_and_stay_beside_the_file(gft, run, tmp_path):
    done = gft("fit-profile", run, *FEW, "--folds", "2", "--out", "some/profile.yaml", "--json")
    assert done.code == 0, done.err
    assert "Cross-fitting trains 2 times as long as" in done.err
    assert sorted(path.name for path in (tmp_path / "some/profile-folds").iterdir()) == ["fold-1-of-2", "fold-2-of-2"]
    config = yaml.safe_load((tmp_path / "some/profile-folds/fold-1-of-2/config.yaml").read_text())
    assert (config["data"]["name"], config["data"]["folds"]) == ("fold", 2)
    assert config["data"]["data"]["count"] == 60
    assert evidence(tmp_path / "some/profile.yaml")["fitted_on"]["folds"] == 2
    config["train"]["learning_rate"] = 0.1
    (tmp_path / "some/profile-folds/fold-1-of-2/config.yaml").write_text(yaml.safe_dump(config))
    again = gft("fit-profile", run, *FEW, "--folds", "2", "--out", "some/profile.yaml", "--force")
    assert again.code == 2
    assert "was started with another configuration: train differ" in again.err


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ("{name: gaussian-mixture, count: 60, seed: 1}", "60 of 60 held-out samples are among evaluate.data"),
        ("{name: fold, data: {name: gaussian-mixture, count: 60, seed: 1}, fold: 0, folds: 1}", "folds"),
        ("{name: gaussian-mixture, count: 60}", "60 of 60 held-out samples are among the run's training data"),
        ("{name: gaussian-mixture, count: 39, seed: 7}", "wanted at least 40 held-out samples"),
        ("{name: digits, count: 60}", "wanted samples of shape (2,)"),
        ("{name: gaussian-mixtur}", "Did you mean 'gaussian-mixture'"),
        ("{name: gaussian-mixture", "is not YAML"),
        ("", "--data: wanted a name"),
        ("3", "--data: wanted a name"),
    ],
)
def test_data_that_must_not_choose_are_refused(refused, run, tmp_path, data, message):
    assert message in refused("fit-profile", run, *FEW, "--data", data, "--out", "profile.yaml")
    assert not list(tmp_path.iterdir())


def test_a_part_of_the_judging_data_under_another_name_is_refused(refused, run, registry, tmp_path):
    import numpy as np
    import torch

    mine, test = (
        registry.create("dataset", "gaussian-mixture", count=60, seed=seed).batch(torch.arange(60)).x1
        for seed in (9, 1)
    )
    np.savez(tmp_path / "mine.npz", x1=torch.cat([mine, test[:3]]).numpy())
    more = ("--count", "40", "--points", "63", "--data", "{name: arrays, file: mine.npz}")
    assert "3 of 63 held-out samples are among evaluate.data" in refused("fit-profile", run, *more, "--out", "p.yaml")


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--out", "profile.json"), "wanted .yaml"),
        (("--count", "39"), "count: wanted at least 40, got 39"),
        (("--points", "3"), "points: wanted at least 40, got 3"),
        (("--steps", "0"), "steps: wanted at least 1, got 0"),
        (("--folds", "1"), "--folds: wanted at least 2, got 1"),
        (("--folds", "16"), "wanted at least 4 samples in each of 16 folds"),
        (("--folds", "2", "--data", HELD_OUT), "--data and --folds: got both"),
        (("--data", HELD_OUT, "--metric", "vendi"), "wanted one value"),
        (("--data", HELD_OUT, "--metric", "path-length"), "needs more than samples and data"),
        (("--folds", "3", "--metric", "frechet"), "wanted at least 20 samples to compare with, got 19"),
        (("--metric", "energie"), "Did you mean 'energy'"),
        (("--metric", "frechet"), "the training data choose by the energy distance"),
        (("--weights", "best"), "ema"),
    ],
)
def test_bad_options_are_refused(refused, run, tmp_path, arguments, message):
    assert message in refused("fit-profile", run, *FEW, "--out", "profile.yaml", *arguments)
    assert not list(tmp_path.iterdir())


def test_runs_that_have_no_profile_are_refused(refused, run, of_a_law, pretrained, tmp_path):
    assert "is no fine-tune, so it has no anchor" in refused("fit-profile", pretrained, *FEW, "--out", "p.yaml")
    unfinished = shutil.copytree(run, tmp_path / "unfinished")
    (unfinished / "model.safetensors").unlink()
    assert "isn't finished" in refused("fit-profile", unfinished, *FEW, "--out", "p.yaml")
    assert "the training data are a law" in refused("fit-profile", of_a_law, *FEW, "--folds", "2", "--out", "p.yaml")
    assert "is no run folder" in refused("fit-profile", tmp_path, *FEW, "--out", "p.yaml")


def test_nothing_is_overwritten_unasked(gft, refused, run, tmp_path):
    for name in ("profile.yaml", "profile.png"):
        (tmp_path / name).write_text("mine")
        assert f"{name} exists" in refused("fit-profile", run, *FEW, "--out", "profile.yaml")
        assert (tmp_path / name).read_text() == "mine"
        (tmp_path / name).unlink()
    (tmp_path / "profile.yaml").write_text("mine")
    assert gft("fit-profile", run, *FEW, "--out", "profile.yaml", "--force").code == 0
    assert "fitted_on" in evidence(tmp_path / "profile.yaml")


def test_other_steps_and_weights_are_measured(gft, run, tmp_path):
    found = {}
    for name, options in {"plain": (), "steps": ("--steps", "2"), "raw": ("--weights", "raw")}.items():
        assert gft("fit-profile", run, *FEW, *options, "--out", f"{name}.yaml").code == 0
        found[name] = evidence(tmp_path / f"{name}.yaml")
    assert found["steps"]["fitted_on"]["steps"] == 2
    assert len({each["measured"]["training"]["distance"][0] for each in found.values()}) == 3
    assert found["raw"]["fitted_on"]["weights"] != found["plain"]["fitted_on"]["weights"]
