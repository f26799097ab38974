"""A third-party package, pip-installed a moment ago: its schedule is used by name in a fine-tune."""

import json
import shutil
import subprocess
import sys
from importlib.util import find_spec

import pytest
import yaml
from support.paths import ROOT

PACKAGE = ROOT / "tests/example_plugin"
LINES = 15
"""What it may take to add a schedule, blank lines and docstrings included."""


@pytest.fixture(scope="module")
def installed(tmp_path_factory):
    """The folder that pip installed the package into."""
    folder = tmp_path_factory.mktemp("installed")
    source = shutil.copytree(PACKAGE, folder / "source", ignore=shutil.ignore_patterns("__pycache__"))
    # With the build tool at hand nothing is downloaded; otherwise pip fetches it.
    offline = ["--no-build-isolation"] if find_spec("hatchling") else []
    options = ["--quiet", "--no-deps", "--disable-pip-version-check", "--no-cache-dir", *offline]
    command = [sys.executable, "-m", "pip", "install", *options, "--target", folder / "site", source]
    done = subprocess.run([str(word) for word in command], capture_output=True, text=True, timeout=300)
    assert done.returncode == 0, done.stderr
    return folder / "site"


def test_a_schedule_takes_at_most_15_lines():
    (module,) = PACKAGE.glob("*.py")
    assert len(module.read_text().splitlines()) <= LINES


def test_the_example_plugins_schedule_is_used_by_name(process, installed, write_config, finetune_config, tmp_path):
    config = write_config({**finetune_config, "schedule": {"name": "parabolic"}})
    done = process("finetune", config, "--out", "new", "--json", path=[installed])
    assert done.code == 0, done.err
    lines = [json.loads(line) for line in (tmp_path / "new" / "metrics.jsonl").read_text().splitlines()]
    temperatures = {line["step"]: line["temperature"] for line in lines if line["kind"] == "train"}
    assert temperatures == {10: pytest.approx(4 * (1 - 9 / 10) ** 2)}  # the last of ten steps starts at s = 9/10
    origin = json.loads((tmp_path / "new" / "environment.json").read_text())["components"]["schedule"]
    assert origin == {"plugin": "example-plugin", "distribution": "gftkit-example-plugin", "version": "0.3.0"}
    assert yaml.safe_load((tmp_path / "new" / "config.yaml").read_text())["schedule"] == {"name": "parabolic"}


def test_the_example_plugin_is_listed_with_distribution_and_version(gft, installed, monkeypatch):
    monkeypatch.syspath_prepend(installed)
    listed = json.loads(gft("plugins", "--json").out)
    (plugin,) = [plugin for plugin in listed["plugins"] if plugin["plugin"] == "example-plugin"]
    assert (plugin["distribution"], plugin["version"]) == ("gftkit-example-plugin", "0.3.0")
    assert plugin["status"] == "loaded"
    shown = gft("plugins", "show", "schedule", "parabolic").out
    assert "schedule parabolic  (gftkit-example-plugin 0.3.0, plugin example-plugin)" in shown
    assert "Parabolic cooling" in shown


def test_without_the_example_plugin_its_schedule_is_unknown(gft, write_config, finetune_config):
    done = gft("finetune", write_config({**finetune_config, "schedule": {"name": "parabolic"}}))
    assert done.code == 2
    assert "unknown schedule 'parabolic'" in done.err
