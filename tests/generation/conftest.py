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
