"""A finished fine-tune of Gaussian laws, whose networks may be replaced by exact drifts with a known lag."""

import numpy as np
import pytest
from support.known_lags import Exact, points

import gftkit
from gftkit.generation.blending import Blends
from gftkit.selection import blended_run


@pytest.fixture(scope="session")
def gaussian_files(tmp_path_factory):
    """Files of the target's law: training, test and held-out data."""
    folder = tmp_path_factory.mktemp("gaussians")
    for seed, (name, count) in enumerate((("train", 120), ("test", 60), ("held-out", 160))):
        np.savez(folder / f"{name}.npz", x1=points(count, seed).x1.numpy())
    return folder


@pytest.fixture(scope="session")
def gaussian_run(gaussian_files, tmp_path_factory):
    """A short fine-tune to ``train``, judged by ``test``. Don't write to it."""
    folder = tmp_path_factory.mktemp("gaussian-run")
    solver = {"name": "heun", "steps": 4}
    config = {
        "drift": {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "gaussian", "event_shape": [2]},
        "train": {"steps": 4, "batch_size": 16},
        "evaluate": {"count": 40, "solver": solver},
    }
    gftkit.pretrain(config, folder / "pretrained", device="cpu")
    tuning = {
        "pretrained": str(folder / "pretrained"),
        "data": {"name": "arrays", "file": str(gaussian_files / "train.npz")},
        "schedule": {"name": "zero"},
        "train": {"steps": 4, "batch_size": 16},
        "evaluate": {
            "count": 40,
            "data": {"name": "arrays", "file": str(gaussian_files / "test.npz")},
            "solver": solver,
        },
    }
    return gftkit.finetune(tuning, folder / "tuned", device="cpu")


@pytest.fixture
def lagging(monkeypatch):
    """Gives every run exact drifts with a lag c in place of its networks."""

    def replace(c):
        drifts = Exact(c), Exact(1.0)
        monkeypatch.setattr(blended_run, "blends_of", lambda *_, **__: Blends(*drifts, "f" * 64, drifts))

    return replace
