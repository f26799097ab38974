"""Fixtures of every test: what is installed, small finished runs, the command line, throw-away distributions."""

import base64
import json
import os
import shutil
import subprocess
import sys
from types import SimpleNamespace

import hypothesis
import pytest
import torch
import yaml
from hypothesis import strategies as st
from support import adapters, run_results, runs_on_moons
from support.strategies import MINIMAL, MORE, drawn

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.recording import pictures

hypothesis.settings.register_profile("gftkit", deadline=None, derandomize=True)
hypothesis.settings.load_profile("gftkit")

PRETRAIN = {
    "drift": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "two-moons"},
    "train": {"steps": 20, "batch_size": 16, "checkpoint_every": 10},
    "evaluate": {"every": 20, "count": 32, "solver": {"name": "euler", "steps": 2}},
    "seed": 1,
}


UNDRAWN = base64.b64decode(
    "iVBORw0KGgoAAAANSUhEUgAAAAEAAAABCAAAAAA6fptVAAAACklEQVR4nGNgAAAAAgABSK+kcQAAAABJRU5ErkJggg=="
)
"""A picture of one pixel."""
DRAW = pictures.figure_png


def pytest_configure(config):
    torch.set_num_threads(1)


def pytest_collection_modifyitems(config, items):
    if torch.cuda.is_available():
        return
    skip = pytest.mark.skip(reason="needs a CUDA device, and torch sees none here")
    for item in items:
        if item.get_closest_marker("cuda"):
            item.add_marker(skip)


@pytest.fixture(scope="session", autouse=True)
def undrawn():
    """Figures are composed and not drawn: to draw a run's takes longer than the run."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pictures, "figure_png", lambda figure: UNDRAWN)
        yield


@pytest.fixture
def with_pictures(monkeypatch):
    """Figures are drawn."""
    monkeypatch.setattr(pictures, "figure_png", DRAW)


@pytest.fixture(scope="session")
def registry():
    """Everything that is installed."""
    return gftkit.load()


@pytest.fixture(scope="session")
def pretrained(tmp_path_factory):
    """The folder of a finished run on two-moons. Don't write to it: take ``run_copy``."""
    folder = tmp_path_factory.mktemp("pretrained") / "run"
    gftkit.pretrain(PRETRAIN, folder, device="cpu")
    return folder


@pytest.fixture
def run_copy(pretrained, tmp_path):
    """A copy of the finished run, to be damaged."""
    return shutil.copytree(pretrained, tmp_path / "run")


@pytest.fixture
def pretrain_config():
    """A configuration that trains in a moment, as a mapping that a test may change."""
    return yaml.safe_load(yaml.safe_dump(PRETRAIN))


@pytest.fixture
def finetune_config(pretrained):
    """The same for a fine-tune of ``pretrained``."""
    return {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 50},
        "schedule": {"name": "exponential"},
        "train": {"steps": 10, "batch_size": 16, "checkpoint_every": 5},
        "evaluate": {"every": 10, "count": 32, "solver": {"name": "euler", "steps": 2}},
    }


@pytest.fixture(scope="session")
def pretrained_on_moons(tmp_path_factory, registry):
    """The folder of a finished run of ``support.runs_on_moons``, with all its checkpoints. Don't write to it."""
    return gftkit.pretrain(runs_on_moons.PRETRAIN, tmp_path_factory.mktemp("moons") / "run", registry=registry).folder


@pytest.fixture
def tuning(pretrained_on_moons):
    """A fine-tune's configuration from ``pretrained_on_moons``; change it freely."""
    return {
        "pretrained": str(pretrained_on_moons),
        "data": {"name": "gaussian-mixture", "count": 10, "seed": 1},
        "schedule": {"name": "exponential"},
        "train": dict(runs_on_moons.PRETRAIN["train"]),
        "evaluate": json.loads(json.dumps(runs_on_moons.PRETRAIN["evaluate"])),
        "seed": 5,
    }


@pytest.fixture(scope="session")
def finished(tmp_path_factory, registry):
    """The folder of a finished run of ``support.run_results.MLP``. Don't write to it."""
    return gftkit.pretrain(run_results.MLP, tmp_path_factory.mktemp("finished") / "run", registry=registry).folder


@pytest.fixture
def stopped(finished, tmp_path):
    """The same, not finished, with its checkpoints of steps 9 and 12; to be damaged."""
    folder = shutil.copytree(finished, tmp_path / "run")
    (folder / "model.safetensors").unlink()
    return folder


@pytest.fixture(scope="session")
def source(tmp_path_factory, registry):
    """The folder of a finished pretraining of a small U-Net. Don't write to it."""
    return gftkit.pretrain(adapters.PRETRAIN, tmp_path_factory.mktemp("runs") / "source", registry=registry).folder


@pytest.fixture(scope="session")
def tuned(source, tmp_path_factory, registry):
    """The folder of a finished fine-tune of ``source`` with adapters. Don't write to it."""
    config = adapters.tuning(source)
    return gftkit.finetune(config, tmp_path_factory.mktemp("runs") / "tuned", registry=registry).folder


@pytest.fixture
def write_config(tmp_path):
    """Writes a mapping as a YAML file in the test's folder."""

    def write(values, name="config.yaml"):
        path = tmp_path / name
        path.write_text(yaml.safe_dump(values))
        return path

    return write


@pytest.fixture
def gft(monkeypatch, capfd, tmp_path):
    """Runs the command line inside this process, in the test's folder: its code, stdout and stderr."""
    from gftkit.cli.app import main

    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("COLUMNS", "200")

    def run(*arguments):
        capfd.readouterr()
        monkeypatch.setattr(sys, "argv", ["gft", *map(str, arguments)])
        code = 0
        try:
            main()
        except SystemExit as exit:
            code = exit.code or 0
        out, err = capfd.readouterr()
        return SimpleNamespace(code=code, out=out, err=err)

    return run


@pytest.fixture
def refused(gft):
    """Runs ``gft`` and gives its one message, having checked code, stdout and form."""

    def run(*arguments, code=2):
        done = gft(*arguments)
        assert done.code == code, done.err
        assert done.out == ""
        assert done.err.startswith("Error: ")
        assert "\nError: " not in done.err
        assert "Traceback" not in done.err
        return done.err.removeprefix("Error: ").strip()

    return run


@pytest.fixture
def pretraining(write_config, pretrain_config, refused, tmp_path):
    """The message with which a pretraining with these changes is refused; no folder is left."""

    def run(*settings, **changes):
        config = write_config({**pretrain_config, **changes})
        message = refused("pretrain", config, "--out", "new", *(word for s in settings for word in ("--set", s)))
        assert not (tmp_path / "new").exists()
        return message

    return run


@pytest.fixture
def finetuning(write_config, finetune_config, refused, tmp_path):
    """The same for a fine-tune."""

    def run(**changes):
        config = write_config({**finetune_config, **changes})
        message = refused("finetune", config, "--out", "new")
        assert not (tmp_path / "new").exists()
        return message

    return run


@pytest.fixture
def process(tmp_path):
    """Runs ``python ...`` (by default ``python -m gftkit ...``) as a process of its own, in the test's folder."""

    def run(*arguments, start=("-m", "gftkit"), path=(), **environment):
        places = [*map(str, path), *filter(None, [os.environ.get("PYTHONPATH")])]
        wanted = {"OMP_NUM_THREADS": "1", "COLUMNS": "200", "PYTHONPATH": os.pathsep.join(places), **environment}
        done = subprocess.run(
            [sys.executable, *start, *map(str, arguments)],
            cwd=tmp_path,
            env={**os.environ, **wanted},
            capture_output=True,
            text=True,
            timeout=300,
        )
        return SimpleNamespace(code=done.returncode, out=done.stdout, err=done.stderr)

    return run


@pytest.fixture
def distribution(tmp_path):
    """Makes an installed distribution by hand: modules, and a dist-info folder with entry points."""

    def make(name, points, modules=None, version="1.0", folder="site"):
        site = tmp_path / folder
        info = site / f"{name.replace('-', '_')}-{version}.dist-info"
        info.mkdir(parents=True)
        (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {name}\nVersion: {version}\n")
        listed = "".join(f"{point} = {module}\n" for point, module in points.items())
        (info / "entry_points.txt").write_text(f"[gftkit]\n{listed}")
        for module, source in (modules or {}).items():
            (site / f"{module}.py").write_text(source)
        return site

    return make


@pytest.fixture(scope="session")
def components(registry):
    """Components by kind and name for hypothesis, with options drawn from their ranges."""

    def strategy(kind, name):
        fixed = MINIMAL.get((kind, name), {})
        options = [option for option in registry.describe(kind, name).options if option.name not in fixed]
        missing = [option.name for option in options if option.required and not option.supplied]
        assert not missing, f"{kind} {name} wants {missing}: add them to MINIMAL"

        def create(values):
            try:
                return registry.create(kind, name, **fixed, **values)
            except ConfigError:  # options that are fine one by one may not go together
                return registry.create(kind, name, **fixed)

        more = [st.just(values) for values in MORE.get((kind, name), [])]
        return st.one_of(st.fixed_dictionaries({o.name: drawn(o) for o in options}), *more).map(create)

    return strategy
