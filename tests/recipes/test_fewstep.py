"""The recipe that draws quality against the number of evaluations: its configurations hold, its script measures."""

import importlib.util

import pytest
from support.paths import ROOT

import gftkit
from gftkit.api import Run
from gftkit.runs.resolve import resolve_config

RECIPES = ROOT / "recipes"
REGISTRY = gftkit.load()


@pytest.fixture(scope="module")
def digits(tmp_path_factory):
    """A run of the demo's network, hardly trained."""
    folder = tmp_path_factory.mktemp("digits") / "run"
    settings = {"drift": {"name": "mlp", "width": 8, "depth": 1}, "data": {"name": "digits", "count": 40}}
    gftkit.pretrain({**settings, "train": {"steps": 1}, "evaluate": {"count": 20}}, folder, device="cpu")
    return folder


@pytest.fixture(scope="module")
def script():
    spec = importlib.util.spec_from_file_location("fewstep", RECIPES / "fewstep/fewstep.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_configurations_hold(pretrained):
    changed = [f"pretrained={pretrained}"]
    student = resolve_config(RECIPES / "fewstep/student.yaml", "distill", REGISTRY, changed).config
    assert student.drift["drift"]["width"] == 16
    reflow = resolve_config(
        RECIPES / "reflow/reflow.yaml", "finetune", REGISTRY, [*changed, f"data.run={pretrained}"]
    ).config
    assert reflow.schedule == {"name": "zero"}
    assert reflow.data["file"].name == "pairs.safetensors"


@pytest.mark.slow
def test_the_script_measures_and_draws(digits, script):
    rows = script.measure(Run.open(digits), seeds=2)
    assert [row["evaluations"] for row in rows] == list(script.EVALUATIONS)
    assert all(row["frechet"] == sum(row["seeds"]) / 2 and row["stderr"] > 0 for row in rows)
    assert rows[0]["seeds"][0] != rows[0]["seeds"][1]
    assert script.draw({"one": rows})[:4] == b"\x89PNG"
