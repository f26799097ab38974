"""``--retention``: a number below zero, a profile, on every command that takes it, and bad input."""

import json

import numpy as np
import pytest
import yaml

import gftkit
from gftkit.generation.run_likelihood import likelihood
from gftkit.generation.sampler import Request, RunSampler

STEP = "{name: step, early: -0.25, late: 0.5, cut: 0.5}"
SOLVER = "{name: rk4, steps: 3}"
TRAJECTORIES = ("--count", "20", "--fine-steps", "6")


@pytest.fixture(scope="module")
def run(pretrained, tmp_path_factory):
    config = {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 50},
        "schedule": {"name": "exponential"},
        "train": {"steps": 10, "batch_size": 16, "learning_rate": 0.05},
        "evaluate": {"every": 10, "count": 32, "solver": {"name": "euler", "steps": 4}},
    }
    return gftkit.finetune(config, tmp_path_factory.mktemp("cli") / "run", device="cpu")


@pytest.mark.parametrize(("text", "value"), [("-0.15", -0.15), ("-1e-1", -0.1), (STEP, yaml.safe_load(STEP))])
def test_samples_are_those_of_the_same_value_in_python(gft, run, tmp_path, text, value):
    done = gft("sample", run.folder, "--count", "6", "--retention", text, "--out", "s.npz", "--json")
    assert done.code == 0, done.err
    found, wanted = np.load(tmp_path / "s.npz")["samples"], run.samples(6, retention=value)[0].numpy()
    assert np.array_equal(found, wanted)
    assert np.abs(found - run.samples(6)[0].numpy()).max() > 1e-3
    assert json.loads(done.out)["evaluations"] == 4  # a blend counts once


def test_a_temperature_may_be_negative_too(gft, run, tmp_path):
    assert gft("sample", run.folder, "--count", "6", "--temperature", "-0.2", "--out", "s.npz").code == 0
    assert np.allclose(np.load(tmp_path / "s.npz")["samples"], run.samples(6, retention=-0.25)[0].numpy(), atol=1e-6)


def test_evaluation_and_likelihood_are_of_the_blend(gft, run):
    done = gft("evaluate", run.folder, "--retention", "-0.4", "--json")
    assert json.loads(done.out) == run.evaluate(retention=-0.4) != run.evaluate()
    done = gft("likelihood", run.folder, "--count", "4", "--solver", SOLVER, "--retention", "-0.4", "--json")
    bits = json.loads(done.out)["bits_per_dim"]
    solver = yaml.safe_load(SOLVER)
    assert bits == likelihood(run, count=4, solver=solver, retention=-0.4).to_dict()["bits_per_dim"]
    assert bits != likelihood(run, count=4, solver=solver).to_dict()["bits_per_dim"]


def test_geometry_and_fitted_grids_are_of_the_blended_flow(gft, run):
    measured = {}
    for name, options in {"plain": (), "guided": ("--retention", "-0.4"), "profile": ("--retention", STEP)}.items():
        done = gft("geometry", run.folder, *TRAJECTORIES, *options, "--out", name, "--json")
        assert done.code == 0, done.err
        measured[name] = json.loads(done.out)
    assert "retention" not in measured["plain"]
    assert measured["guided"]["retention"] == -0.4
    assert measured["profile"]["retention"] == yaml.safe_load(STEP)
    lengths = {name: each["runs"]["run"]["measures"]["path_length"]["value"] for name, each in measured.items()}
    assert len({*lengths.values()}) == 3

    for text in ("-0.4", STEP):
        fitted = ("fit-grid", run.folder, "--steps", "2", *TRAJECTORIES, "--force", "--out", "grid.yaml", "--json")
        assert gft(*fitted, "--retention", text).code == 0
        sampled = ("sample", run.folder, "--solver", "euler", "--steps", "2", "--force", "--out", "s.npz")
        grid = ("--grid", "{name: fitted, file: grid.yaml}")
        assert gft(*sampled, *grid, "--retention", text).err == ""
        assert "the time grid was fitted at retention" in gft(*sampled, *grid).err
        assert "the time grid was fitted at retention" in gft(*sampled, *grid, "--retention", "-0.3").err


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (("--retention", "1"), "wanted a finite number below 1, or a profile, got 1.0"),
        (("--retention", "nan"), "wanted a finite number below 1, or a profile, got nan"),
        (("--retention", "-inf"), "wanted a finite number below 1, or a profile, got -inf"),
        (("--retention", ""), "wanted a number below 1, or a profile"),
        (("--retention", "{name: step"), "is not YAML"),
        (("--retention", "stepp"), "Did you mean 'step'"),
        (("--retention", "{name: step, early: 0.2, late: 1.0}"), "retention.late: wanted float, < 1"),
        (("--retention", "{name: fitted, file: none.yaml}"), "there is no such file"),
        (("--retention", "-0.2", "--temperature", "0"), "got both"),
        (("--retention", "-0.2", "--solver", "flow-map"), "in a blend, is a velocity too"),
        (("--temperature", "-1"), "wanted a finite number above -1"),
    ],
)
def test_bad_values_are_refused_before_anything_is_written(refused, run, tmp_path, arguments, message):
    assert message in refused("sample", run.folder, "--out", "s.npz", *arguments)
    assert not list(tmp_path.iterdir())


def test_other_commands_refuse_the_same(refused, run, pretrained, tmp_path):
    for command in (["evaluate"], ["likelihood"], ["geometry", "--out", "g"], ["fit-grid", "--out", "g.yaml"]):
        assert "wanted a finite number below 1" in refused(command[0], run.folder, *command[1:], "--retention", "1.5")
        assert "is no fine-tune" in refused(command[0], pretrained, *command[1:], "--retention", "-0.1")
    assert not list(tmp_path.iterdir())


def test_a_profile_of_another_run_is_refused(gft, refused, run, tmp_path):
    weights = RunSampler(run, Request(2)).weights_digest
    asked = (
        "sample",
        run.folder,
        "--count",
        "2",
        "--retention",
        "{name: fitted, file: profile.yaml}",
        "--out",
        "s.npz",
    )
    for own, anchor in ((weights, "f" * 64), ("f" * 64, run.notes["anchor"]), (weights, run.notes["anchor"])):
        fitted_on = {"run": "runs/mine", "weights": own, "anchor": anchor}
        content = {"times": [0.0], "values": [-0.1], "fitted_on": fitted_on}
        (tmp_path / "profile.yaml").write_text(yaml.safe_dump(content))
        if "f" * 64 in (own, anchor):
            key = "anchor" if own == weights else "weights"
            assert f"fitted to runs/mine, with {key} ffffffffffff" in refused(*asked)
    assert gft(*asked).code == 0
