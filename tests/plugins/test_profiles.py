"""Profiles: their values at flow times, what they refuse, and the check that a third party's must pass."""

import math

import pytest
import torch
import yaml

import gftkit
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.theory.temperature import check_profile

REGISTRY = gftkit.load()
OPTIONS = {
    "constant": {"value": -0.25},
    "step": {"early": -0.25, "late": 0.5, "cut": 0.5},
    "linear": {"early": -0.5, "late": 0.5},
    "table": {"times": [0.25, 0.75], "values": [-0.5, 0.5]},
}
VALUES = {
    "constant": [-0.25, -0.25, -0.25, -0.25],
    "step": [-0.25, -0.25, 0.5, 0.5],
    "linear": [-0.5, -0.25, 0.0, 0.5],
    "table": [-0.5, -0.5, 0.0, 0.5],
}
T = [0.0, 0.25, 0.5, 1.0]


def test_every_profile_is_here():
    assert set(REGISTRY.names("profile")) == {*OPTIONS, "fitted"}


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("name", OPTIONS)
def test_a_profile_has_its_values_in_the_type_of_its_times(name, dtype):
    t = torch.tensor(T, dtype=dtype)
    found = REGISTRY.create("profile", name, **OPTIONS[name]).retention(t)
    assert found.dtype == dtype
    assert torch.equal(found, torch.tensor(VALUES[name], dtype=dtype))
    assert check_profile(REGISTRY.create("profile", name, **OPTIONS[name]), name).shape == (512,)


@pytest.mark.parametrize(
    ("name", "options", "complaint"),
    [
        ("constant", {"value": 1.0}, "profile.value: wanted float, < 1"),
        ("constant", {"value": math.nan}, "profile.value: wanted float, < 1"),
        ("step", {"early": 0.0, "late": 1.5}, "profile.late: wanted float, < 1"),
        ("step", {"early": 0.0, "late": 0.5, "cut": 1.5}, "profile.cut: wanted"),
        ("linear", {"early": 2.0, "late": 0.0}, "profile.early: wanted"),
        ("table", {"times": [0.5, 0.5], "values": [0.0, 0.0]}, "wanted flow times that increase"),
        ("table", {"times": [0.5], "values": [0.0, 0.0]}, "got 1 times and 2 values"),
        ("table", {"times": [0.5], "values": [1.0]}, "profile.values: wanted"),
        ("table", {"times": [], "values": []}, "profile.times: wanted"),
    ],
)
def test_a_profile_out_of_range_is_refused(name, options, complaint):
    with pytest.raises(ConfigError, match=complaint):
        REGISTRY.create("profile", name, **options)


@pytest.mark.parametrize(
    "content",
    [{"times": [0.0]}, {"times": [0.0], "values": [1.0]}, {"times": ["x"], "values": [0.0]}, {"grids": [1]}],
)
def test_a_file_without_a_profile_is_refused(tmp_path, content):
    file = tmp_path / "profile.yaml"
    file.write_text(yaml.safe_dump(content))
    with pytest.raises(ConfigError, match="holds no profile"):
        REGISTRY.create("profile", "fitted", file=file)


class Mine:
    """A third party's profile."""

    def __init__(self, function):
        self.retention = function


@pytest.mark.parametrize(
    ("function", "complaint"),
    [
        (lambda t: torch.where(t > 0.9, 1.0, 0.0), "got 1 at flow time 0.901"),
        (lambda t: 1 / (t - t), "got inf at flow time 0.001"),
        (lambda t: t[:3], r"got \(3,\)"),
        (lambda t: 0.5, "got float"),
    ],
)
def test_a_third_partys_profile_is_checked(function, complaint):
    with pytest.raises(ConfigError, match=complaint):
        check_profile(Mine(function), "schedule 'mine' at step 0")


def test_a_run_keeps_the_fitted_profile_that_it_started_with(tmp_path, tuning):
    """Its values are part of the configuration: a file that changed meanwhile is another configuration."""
    file = tmp_path / "profile.yaml"
    file.write_text("{times: [0.0], values: [-0.25], measured: {much: 1}}")
    spec = {"name": "fitted", "file": str(file)}
    before = REGISTRY.resolve("profile", spec)
    assert before["content"] == {"times": [0.0], "values": [-0.25]}
    config = {**tuning, "schedule": {"name": "exponential", "end": spec}}
    run = gftkit.finetune(config, tmp_path / "run", registry=REGISTRY)
    (run.folder / "model.safetensors").unlink()
    file.write_text("{times: [0.0], values: [0.5]}")
    assert REGISTRY.resolve("profile", spec) != before
    with pytest.raises(RunError, match="another configuration"):
        gftkit.finetune(config, run.folder, registry=REGISTRY, resume=True)
    file.unlink()
    assert float(REGISTRY.build("profile", before).retention(torch.tensor([0.5]))) == -0.25
