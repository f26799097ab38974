"""Devices and launches: idle weights, warnings, and what accelerate would do beyond the configuration."""

from types import SimpleNamespace

import pytest
import torch
from torch import nn

from gftkit.kernel.errors import ConfigError
from gftkit.runtime import devices


def test_idle_weights_are_found_and_nothing_moves():
    drift = nn.Sequential(nn.BatchNorm1d(2), nn.Linear(2, 2))
    drift.forward = lambda t, x: nn.Sequential.forward(drift, x)
    before = {name: held.clone() for name, held in drift.state_dict().items()}
    inputs = torch.zeros(2), torch.randn(2, 2), {}
    assert not devices.has_idle_weights(drift, *inputs)
    drift.register_module("idle", nn.Linear(2, 2))
    drift.forward = lambda t, x: drift[1](drift[0](x))
    assert devices.has_idle_weights(drift, *inputs)
    assert all(torch.equal(drift.state_dict()[name], held) for name, held in before.items())
    drift.idle.requires_grad_(False)
    assert not devices.has_idle_weights(drift, *inputs)


def test_a_launch_that_starts_one_process_is_warned_about(monkeypatch):
    one, two = (SimpleNamespace(num_processes=count, device=torch.device("cpu")) for count in (1, 2))
    for name in ("ACCELERATE_USE_CPU", "MASTER_ADDR", "WORLD_SIZE"):
        monkeypatch.delenv(name, raising=False)
    assert devices.launch_warnings(one, "float32") == []
    monkeypatch.setenv("MASTER_ADDR", "127.0.0.1")  # as clusters do
    assert devices.launch_warnings(one, "float32") == []
    monkeypatch.setenv("ACCELERATE_USE_CPU", "True")
    assert "Use torchrun" in devices.launch_warnings(one, "float32")[0]
    assert devices.launch_warnings(two, "float32") == []


@pytest.mark.parametrize(
    ("device", "capability", "precision", "told"),
    [
        ("cpu", "AVX2", "bfloat16", True),
        ("cpu", "AVX2", "float32", False),
        ("cpu", "AVX512", "bfloat16", False),
        ("cuda", "AVX2", "float16", False),
    ],
)
def test_a_precision_that_the_cpu_is_slow_at_is_warned_about(monkeypatch, device, capability, precision, told):
    monkeypatch.setattr(torch.backends.cpu, "get_cpu_capability", lambda: capability)
    found = devices.launch_warnings(SimpleNamespace(num_processes=2, device=torch.device(device)), precision)
    assert bool(found) == told


# Refused


@pytest.mark.parametrize("variable", devices.FOREIGN)
def test_accelerate_variables_beyond_the_configuration_are_refused(variable, monkeypatch):
    for value in ("no", "NO"):
        monkeypatch.setenv(variable, value)
        assert devices.start_accelerator("cpu").num_processes == 1
    monkeypatch.setenv(variable, "true")
    with pytest.raises(ConfigError, match=f"{variable}=true changes a run without its configuration. Instead, leave"):
        devices.start_accelerator("cpu")


def test_more_processes_than_gpus_are_refused(monkeypatch):
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    monkeypatch.setenv("LOCAL_WORLD_SIZE", "2")
    with pytest.raises(ConfigError, match=r"2 processes on this node share 1 GPU"):
        devices.start_accelerator("cuda")
