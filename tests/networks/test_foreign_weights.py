"""Weights files of other programs: the network in them is found, whatever wraps it, and nothing else is taken."""

import argparse

import pytest
import torch
from safetensors.torch import save_file
from torch import nn

from gftkit.kernel.errors import WeightsError
from gftkit.networks import foreign_weights as weights


def network(seed=0, width=4):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return nn.Sequential(nn.Linear(2, width), nn.BatchNorm1d(width), nn.Linear(width, 2))


class Around(nn.Module):
    """A network around a network, as a foreign drift is."""

    def __init__(self, inner):
        super().__init__()
        self.network = inner


def prefixed(state, prefix):
    return {prefix + name: value for name, value in state.items()}


RAW, EMA = network(1).state_dict(), network(2).state_dict()
OPTIM = torch.optim.Adam(network(1).parameters())
for parameter in OPTIM.param_groups[0]["params"]:
    parameter.grad = torch.ones_like(parameter)
OPTIM.step()

FILES = {
    "a state dict": RAW,
    "torchcfm": {
        "net_model": RAW,
        "ema_model": EMA,
        "sched": {"base_lrs": [1.0]},
        "optim": OPTIM.state_dict(),
        "step": 3,
    },
    "of a DDP": {"net_model": prefixed(RAW, "module."), "ema_model": prefixed(EMA, "module.")},
    "compiled": {"model": prefixed(RAW, "_orig_mod."), "ema": prefixed(EMA, "_orig_mod.module.")},
    "SiT": {"model": RAW, "ema": EMA, "opt": OPTIM.state_dict(), "args": {"lr": 1e-4}},
    "Lightning": {"state_dict": prefixed(RAW, "net.unet."), "epoch": 3, "optimizer_states": [OPTIM.state_dict()]},
    "flat with averages": {**prefixed(RAW, "online_model."), **prefixed(EMA, "ema_model."), "step": torch.tensor(3)},
    "deep": {"state": {"models": {"ema": EMA, "raw": RAW}}},
}
AVERAGED = {"torchcfm", "of a DDP", "compiled", "SiT", "flat with averages", "deep"}


def same(module, state):
    return all(torch.equal(value, state[name]) for name, value in module.state_dict().items())


@pytest.mark.parametrize("wraps", [lambda inner: inner, Around])
@pytest.mark.parametrize("name", FILES)
def test_the_network_is_found_whatever_wraps_it(tmp_path, name, wraps):
    file = tmp_path / "x.pt"
    torch.save(FILES[name], file)
    inner = network()
    notes = weights.load_foreign_weights(wraps(inner), file)
    assert same(inner, EMA if name in AVERAGED else RAW)
    assert not same(inner, RAW if name in AVERAGED else EMA)
    assert bool(notes) == (name in AVERAGED)
    assert all("the averaged weights" in note for note in notes)


@pytest.mark.parametrize(
    ("name", "key"),
    [
        ("torchcfm", "net_model"),
        ("of a DDP", "net_model"),
        ("of a DDP", "net_model.module"),
        ("SiT", "model"),
        ("Lightning", "state_dict"),
        ("flat with averages", "online_model"),
        ("deep", "state.models.raw"),
    ],
)
def test_a_key_chooses_the_network(tmp_path, name, key):
    torch.save(FILES[name], tmp_path / "x.ckpt")
    module = network()
    assert weights.load_foreign_weights(module, tmp_path / "x.ckpt", key) == []
    assert same(module, RAW)


def test_a_key_that_is_not_there_names_those_that_are(tmp_path):
    torch.save(FILES["torchcfm"], tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"no network that fits at key: ema. Those that fit: 'net_model', 'ema_m"):
        weights.load_foreign_weights(network(), tmp_path / "x.pt", "ema")


def test_a_network_whose_names_share_a_prefix_of_their_own_is_one(tmp_path):
    inner = Around(network())
    torch.save({"model": inner.state_dict()}, tmp_path / "x.pt")
    assert [
        found.name for found in weights.candidates(weights.read_weights_file(tmp_path / "x.pt"), inner.state_dict())
    ] == ["model"]
    assert weights.load_foreign_weights(Around(inner), tmp_path / "x.pt") == []


def test_an_ambiguous_choice_of_two_networks_is_refused(tmp_path):
    torch.save({"a": RAW, "b": EMA}, tmp_path / "x.pt")
    module = network()
    with pytest.raises(WeightsError, match=r"several networks that fit: 'a', 'b'. Choose one of them with `key`"):
        weights.load_foreign_weights(module, tmp_path / "x.pt")
    assert same(module, network().state_dict())
    weights.load_foreign_weights(module, tmp_path / "x.pt", "b")
    assert same(module, EMA)


def test_an_optimiser_alone_is_no_network(tmp_path):
    """Its state has the shapes of the weights, and other names."""
    torch.save({"optim": OPTIM.state_dict(), "step": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match="wanted a state dict"):
        weights.load_foreign_weights(network(), tmp_path / "x.pt")


def test_weights_that_nearly_fit_are_refused_with_what_differs(tmp_path):
    torch.save({"ema_model": prefixed(network(width=6).state_dict(), "module."), "step": 3}, tmp_path / "x.pt")
    with pytest.raises(WeightsError) as caught:
        weights.load_foreign_weights(network(), tmp_path / "x.pt")
    message = str(caught.value)
    assert "the weights don't fit the drift, which has 9 tensors. In the file: 'ema_model' (9) tensors" in message
    assert "nearest is 'ema_model.module'" in message
    assert "wrong shape: 0.weight is (6, 2), wanted (4, 2)" in message
    assert "missing" not in message
    less = {name: value for name, value in RAW.items() if name != "2.bias"}
    torch.save({"model": {**less, "head.bias": RAW["2.bias"]}}, tmp_path / "x.pt")
    with pytest.raises(WeightsError, match=r"missing: 2.bias \(2,\)\n  unknown: head.bias \(2,\)"):
        weights.load_foreign_weights(network(), tmp_path / "x.pt")


def test_pickled_code_in_weights_is_named(tmp_path):
    torch.save({"state_dict": RAW, "hyper_parameters": argparse.Namespace(a=1)}, tmp_path / "x.ckpt")
    with pytest.raises(WeightsError, match=r"this file doesn't \(it names argparse.Namespace\)"):
        weights.load_foreign_weights(network(), tmp_path / "x.ckpt")
    torch.save(network(), tmp_path / "whole.pt")
    with pytest.raises(
        WeightsError, match=r"it names torch.nn.modules.container.Sequential\).* nothing in it was executed"
    ):
        weights.load_foreign_weights(network(), tmp_path / "whole.pt")


def test_safetensors_and_old_files_are_read(tmp_path):
    save_file(prefixed(RAW, "model."), tmp_path / "x.safetensors")
    torch.save({"model": RAW}, tmp_path / "x.pth", _use_new_zipfile_serialization=False)
    for name in ("x.safetensors", "x.pth"):
        module = network()
        weights.load_foreign_weights(module, tmp_path / name)
        assert same(module, RAW)


def test_half_precision_becomes_the_network_s_own(tmp_path):
    save_file({name: value.half() for name, value in RAW.items()}, tmp_path / "x.safetensors")
    module = network()
    weights.load_foreign_weights(module, tmp_path / "x.safetensors")
    assert module[0].weight.dtype == torch.float32
    torch.testing.assert_close(module[0].weight, RAW["0.weight"], rtol=1e-3, atol=1e-3)
