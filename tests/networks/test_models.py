"""Networks of other libraries: fine-tuned, read back, resumed, and sampled as their own library samples them."""

import json

import numpy as np
import pytest
import torch
from support.models import MODELS, Model

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.networks import Convention, ForeignDrift
from gftkit.sampling import generate

REGISTRY = gftkit.load()
STEPS = 4
NEAR = 1e-5
"""Float32 round-off of a few evaluations, as a share of the samples' size."""


@pytest.fixture(params=MODELS)
def model(request) -> Model:
    model = MODELS[request.param]
    pytest.importorskip(model.library)
    return model


def scheduler_of(model, folder, **changes):
    """The scheduler of diffusers, and the grid from its configuration."""
    from diffusers import FlowMatchEulerDiscreteScheduler

    FlowMatchEulerDiscreteScheduler(**{"shift": model.shift, **changes}).save_pretrained(folder)
    return FlowMatchEulerDiscreteScheduler.from_pretrained(folder)


def by_the_library(model, network, scheduler, x, conditions, **timesteps):
    """A pipeline's loop."""
    options = {"sigmas": np.linspace(1, 1 / STEPS, STEPS)} if model.linear else {"num_inference_steps": STEPS}
    scheduler.set_timesteps(**options, **timesteps)
    for t in scheduler.timesteps:
        velocity = model.call(network, t / 1000, x, conditions)
        x = scheduler.step(velocity, t, x, return_dict=False)[0]
    return x


def by_gftkit(drift, grid, x, conditions):
    path, euler = REGISTRY.create("path", "linear"), REGISTRY.create("solver", "euler")
    return generate(drift, path, euler, STEPS, x, torch.Generator(), conditions=conditions, spacing=grid)


def config_of(model, folder, **changes):
    """A fine-tune of two steps, from weights in a file."""
    arrays = model.arrays(12)
    np.savez(folder / "data.npz", **{name: value.numpy() for name, value in arrays.items()})
    torch.save(model.build().state_dict(), folder / "weights.pt")
    named = [name for name in model.conditions if name != "label"]
    return {
        "drift": {
            "name": "module",
            "target": model.target,
            "options": model.options,
            "weights": str(folder / "weights.pt"),
            "convention": model.convention,
            **({"label_dropout": False} if model.title.startswith("DiT") else {}),
        },
        "data": {"name": "arrays", "file": str(folder / "data.npz"), "conditions": named},
        "coupling": "independent",
        "schedule": "exponential",
        "train": {"steps": 2, "batch_size": 4, "checkpoint_every": 2},
        "evaluate": {"metrics": [], "count": 4, "solver": {"name": "euler", "steps": 2}},
        **changes,
    }


def share(one, other):
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("adapters", [None, "lora"])
def test_it_is_fine_tuned_and_sampled_as_by_its_own_library(model, adapters, tmp_path):
    pytest.importorskip("diffusers")
    if adapters and not model.adapted:
        with pytest.raises(ConfigError, match=r"adapters\.targets"):
            gftkit.finetune(config_of(model, tmp_path, adapters={"name": "lora", "rank": 2}), tmp_path / "run")
        return
    lora = {"adapters": {"name": "lora", "rank": 2, "targets": model.adapted}}
    run = gftkit.finetune(config_of(model, tmp_path, **(lora if adapters else {})), tmp_path / "run")
    network = model.build(seed=1)
    weights = {name.removeprefix("network."): value for name, value in run.weights()[0].items()}
    first = model.build().state_dict()
    network.load_state_dict(weights)
    assert any(not torch.equal(value, first[name]) for name, value in weights.items())
    arrays = model.arrays(3, seed=2)
    x, conditions = arrays.pop("x1"), arrays
    scheduler = scheduler_of(model, tmp_path / "scheduler")
    sigmas = "linear" if model.linear else "scheduler"
    grid = REGISTRY.create("grid", "diffusers-scheduler", config=tmp_path / "scheduler", sigmas=sigmas)
    with torch.no_grad():
        wanted = by_the_library(model, network, scheduler, x, conditions)
    assert share(by_gftkit(run.drift(), grid, x, conditions), wanted) < NEAR
    equal = REGISTRY.create("grid", "uniform")
    assert share(by_gftkit(run.drift(), equal, x, conditions), wanted) > 100 * NEAR  # another grid is another result
    # and so is a wrong sign, direction or scale of time
    right = Convention.of(model.convention)
    turned = "forward" if right.time == "reversed" else "reversed"
    for wrong in ({"sign": -right.sign}, {"time": turned}, {"time_scale": 0.3 * right.time_scale}):
        drift = ForeignDrift(network, Convention.of({**right.to_dict(), **wrong}), REGISTRY.create("path", "linear"))
        assert share(by_gftkit(drift, grid, x, conditions), wanted) > 100 * NEAR, wrong


@pytest.mark.slow
def test_it_is_resumed_bit_for_bit(model, tmp_path):
    config = config_of(model, tmp_path)
    whole = gftkit.finetune({**config, "train": {**config["train"], "steps": 4}}, tmp_path / "whole").weights()[0]
    gftkit.finetune(config, tmp_path / "run")
    longer = {**config, "train": {**config["train"], "steps": 4}}
    resumed = gftkit.finetune(longer, tmp_path / "run", resume=True).weights()[0]
    assert all(torch.equal(value, whole[name]) for name, value in resumed.items())
