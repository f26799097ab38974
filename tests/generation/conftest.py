"""Finished runs that the tests of this folder sample from."""

import shutil

import pytest
import yaml

import gftkit
from gftkit.api import Run


@pytest.fixture(scope="session")
def flow(pretrained, tmp_path_factory):
    """A finished run that says its pairs are independent, so that it can be sampled with noise too."""
    folder = shutil.copytree(pretrained, tmp_path_factory.mktemp("bulk") / "run")
    config = yaml.safe_load((folder / "config.yaml").read_text())
    (folder / "config.yaml").write_text(yaml.safe_dump({**config, "coupling": {"name": "independent"}}))
    return Run.open(folder)


@pytest.fixture(scope="session")
def images(tmp_path_factory):
    """A finished run on images, given labels."""
    config = {
        "drift": {"name": "mlp", "width": 8, "depth": 1, "conditional": True},
        "data": {"name": "digits", "count": 30},
        "train": {"steps": 2, "batch_size": 8},
        "evaluate": {"every": 2, "count": 8, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("bulk-images") / "run", device="cpu")


@pytest.fixture(scope="session")
def blendable(pretrained, tmp_path_factory):
    """Gives a finished fine-tune of ``pretrained``: "frozen", "external" or "adapters-off"."""
    folder, made = tmp_path_factory.mktemp("tuned"), {}

    def run(anchor):
        if anchor not in made:
            config = {
                "pretrained": str(pretrained),
                "data": {"name": "gaussian-mixture", "count": 50},
                "schedule": {"name": "exponential"},
                "train": {"steps": 10, "batch_size": 16, "checkpoint_every": 5, "learning_rate": 0.05, "ema": 0.5},
                "evaluate": {"every": 10, "count": 32, "solver": {"name": "euler", "steps": 3}},
                "anchor": {"name": anchor, **({"pretrained": str(pretrained)} if anchor == "external" else {})},
                **({"adapters": {"name": "lora", "rank": 2, "write_base": True}} if anchor == "adapters-off" else {}),
            }
            made[anchor] = gftkit.finetune(config, folder / anchor, device="cpu")
        return made[anchor]

    return run
