"""A fine-tune that the monitor ``theory`` has watched, for the tests of its measurements and of its verdict."""

import shutil

import pytest
from support.theory_runs import MONITOR

import gftkit
from gftkit.api import Run


@pytest.fixture(scope="session")
def before(tmp_path_factory, registry):
    """A flow that knows two-moons well enough to have something to unlearn."""
    config = {
        "drift": {"name": "mlp", "width": 48, "depth": 2},
        "data": {"name": "two-moons"},
        "train": {"steps": 300, "batch_size": 64, "learning_rate": 4e-3},
        "evaluate": {"every": 300, "count": 40, "solver": {"name": "euler", "steps": 2}},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("before") / "run", registry=registry, device="cpu").folder


@pytest.fixture(scope="session")
def config(before):
    """A fine-tune that has time to follow; don't change it."""
    return {
        "pretrained": str(before),
        "data": {"name": "gaussian-mixture", "count": 40},
        "schedule": {"name": "exponential"},
        "train": {"steps": 160, "batch_size": 64, "learning_rate": 4e-3, "checkpoint_every": 80},
        "evaluate": {"every": 20, "count": 40, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
        "monitors": [MONITOR],
        "seed": 3,
    }


@pytest.fixture(scope="session")
def tune(tmp_path_factory, registry):
    """Makes a fine-tune in a folder of its own."""

    def go(config, registry=registry, **changes):
        folder = tmp_path_factory.mktemp("tuned") / "run"
        return gftkit.finetune({**config, **changes}, folder, registry=registry, device="cpu")

    return go


@pytest.fixture(scope="session")
def finished(tune, config):
    """A finished run that was watched. Don't write to it: take ``copied``."""
    return tune(config)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, to be tampered with."""
    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    return Run.open(folder, finished.registry)
