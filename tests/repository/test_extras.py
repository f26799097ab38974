"""What only reports, pictures or proofs need: loaded when first used, and named with its extra where it is missing."""

import ast
import json
import re
import sys
import tomllib

import pytest
import torch
from support.paths import ROOT

import gftkit
from gftkit.generation.animation import check_animation
from gftkit.generation.formats import check_target
from gftkit.kernel.errors import PluginError
from gftkit.recording import pictures
from gftkit.runtime.extras import EXTRAS, MissingPackageError, missing, require
from gftkit.theory import expression
from gftkit.verify.collect import collect

LAZY = ("matplotlib", "jinja2", "sympy", "PIL")
PROOFS = (
    "gftkit_verification.claims.proofs.",
    "gftkit_verification.testbeds.measuring.proofs",
    "gftkit_verification.testbeds.measuring.symbolic",
)
"""Modules about sympy's expressions, which are imported when proofs are asked for."""
REPORT = r"pip install 'gftkit\[report\]'"
SYMBOLIC = r"pip install 'gftkit\[symbolic\]'"


@pytest.fixture
def without(monkeypatch):
    """Has these modules as if they weren't installed."""

    def hide(*modules):
        for module in modules:
            monkeypatch.setitem(sys.modules, module, None)

    return hide


def test_no_module_imports_what_only_some_need(process):
    code = (
        "import sys, pkgutil, importlib, gftkit, gftkit_plugins, gftkit_verification\n"
        "import accelerate, torch.utils.checkpoint\n"
        "by_itself = {'sympy'} & {*sys.modules}\n"  # torch 2.6 imports it
        f"loaded = lambda: [name for name in {LAZY!r} if name in sys.modules]\n"
        "count = 0\n"
        "for package in (gftkit, gftkit_plugins, gftkit_verification):\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        f"        if not module.name.startswith({PROOFS!r}) and not module.name.endswith('.__main__'):\n"
        "            importlib.import_module(module.name)\n"
        "            count += 1\n"
        "print([name for name in loaded() if name not in by_itself], count)\n"
        "from gftkit.recording import pictures\n"
        "from gftkit.theory import expression\n"
        "pictures.sample_picture({'one': torch.zeros(4, 1)}, None); print(loaded())\n"
        "expression.parse_formula('t'); print(loaded())\n"
    )
    done = process(code, start=("-c",))
    assert done.code == 0, done.err
    imported, drawn, parsed = done.out.splitlines()
    assert imported.startswith("[] ")
    assert int(imported.split()[-1]) > 150  # all of them, not a first few
    assert {"matplotlib", "PIL"} <= set(ast.literal_eval(drawn))  # the probe sees what is there
    assert "sympy" in ast.literal_eval(parsed)


def test_extras_are_those_of_pyproject():
    declared = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    optional = declared["optional-dependencies"]

    def names(requirements):
        return {re.split(r"[<>=!\[ ]", requirement)[0] for requirement in requirements}

    for extra, modules in EXTRAS.items():
        assert names(optional[extra]) == set(modules.values())
        assert not names(declared["dependencies"]) & set(modules.values())
    (everything,) = optional["all"]
    assert set(re.search(r"\[(.*)\]", everything)[1].split(",")) == {*optional} - {"all", "dev", "docs"}
    assert "gftkit[all,docs]" in optional["dev"]


def test_the_message_names_what_is_missing_and_the_cure(without):
    assert missing("report") == missing("symbolic") == ""
    require("report", "a picture")
    without("matplotlib")
    with pytest.raises(MissingPackageError) as caught:
        require("report", "a picture")
    assert str(caught.value) == (
        "a picture: wanted the package matplotlib, which isn't installed. Install it: pip install 'gftkit[report]'."
    )
    without("jinja2")
    assert missing("report").startswith("wanted the packages matplotlib and Jinja2, which aren't installed. Install th")


def test_a_run_without_matplotlib_loses_nothing_but_its_report(gft, without, pretrained, pretrain_config, write_config):
    config = write_config({**pretrain_config, "track": ["tensorboard"]})
    without("matplotlib")
    done = gft("pretrain", config, "--out", "run")
    assert done.code == 0, done.err
    assert re.search(f"Warning: report.html and samples.png are left out of this run: .*{REPORT}", done.err)
    assert done.err.count("Warning") == 1
    assert done.out.splitlines()[-1] == "Run in run"
    run = gftkit.Run.open("run")
    whole = gftkit.Run.open(pretrained)
    assert {path.name for path in whole.folder.iterdir()} - {path.name for path in run.folder.iterdir()} == {
        "report.html",
        "samples.png",
    }
    assert run.history() == whole.history()
    for name, weight in whole.weights()[0].items():
        assert torch.equal(weight, run.weights()[0][name])


def test_samples_without_matplotlib_are_arrays_and_images(refused, gft, without, pretrained, tmp_path):
    without("matplotlib")
    assert re.search(f"--out s.png: .*{REPORT}", refused("sample", pretrained, "--count", 3, "--out", "s.png"))
    ask = "sample", pretrained, "--count", 3, "--out", "s.npz"
    assert re.search(f"--trajectory way.gif: .*{REPORT}", refused(*ask, "--trajectory", "way.gif"))
    assert not list(tmp_path.iterdir())
    assert gft(*ask).code == 0
    for event_shape in ((1, 8, 8), (3, 8, 8)):
        check_target(tmp_path / "s.png", event_shape, force=False)
        check_animation(tmp_path / "way.gif", event_shape, force=False)
    pictures.write_image(tmp_path / "image.png", pictures.image_grid(torch.zeros(4, 1, 8, 8), (0, 1)))


def test_measured_flows_without_matplotlib_are_numbers(gft, without, pretrained, tmp_path):
    without("matplotlib")
    few = "--count", 20, "--fine-steps", 32
    done = gft("fit-grid", pretrained, "--steps", 2, *few, "--out", "grid.yaml", "--json")
    assert (done.code, json.loads(done.out)["picture"]) == (0, None)
    assert re.search(f"Warning: grid.png is left out: .*{REPORT}", done.err)
    done = gft("geometry", pretrained, *few, "--out", "shape")
    assert done.code == 0, done.err
    assert done.out.splitlines()[-1] == "Written: shape/geometry.json"
    assert re.search(f"Warning: shape/geometry.png is left out: .*{REPORT}", done.err)
    assert {path.name for path in tmp_path.rglob("*.*")} == {"grid.yaml", "geometry.json"}


def test_claims_without_matplotlib_are_measured_but_not_drawn(gft, refused, without, tmp_path):
    without("matplotlib", "jinja2")
    claim = "verify", "--claim", "T01-retention*"
    assert re.search(f"--html r.html: .*{REPORT}", refused(*claim, "--html", "r.html"))
    assert not list(tmp_path.iterdir())
    assert gft(*claim).code == 0


def test_without_sympy_no_claim_is_checked_rather_than_fewer(without):
    registry = gftkit.load()
    with_proofs = collect(registry)
    assert any("proof" in claim.name for claim in with_proofs)
    without("sympy")
    with pytest.raises(PluginError, match=f"'gftkit-claims' .*the proofs among the claims: .*sympy.*{SYMBOLIC}"):
        collect(registry)


def test_formulas_without_sympy_are_refused(without, finetuning):
    without("sympy")
    with pytest.raises(MissingPackageError, match=f"a formula in t: wanted the package sympy, .*{SYMBOLIC}"):
        expression.parse_formula("1 - t")
    assert re.search(f"a formula in t: .*{SYMBOLIC}", finetuning(path={"name": "affine"}))
    assert re.search(SYMBOLIC, finetuning(objective={"weight": "1 - t"}))
