"""Which layers adapters are put into, by name, and which are refused."""

import copy
import re
import sys

import pytest
import torch
from support.adapters import Small, adapt, close, inputs, train
from torch import nn
from torch.nn.utils import parametrizations

from gftkit.kernel.errors import ConfigError
from gftkit.networks.adapter_layers import DEFAULT, choose_layers
from gftkit.networks.adapters import Adapters


@pytest.mark.parametrize(
    ("targets", "exclude", "wanted"),
    [
        (None, [], ["first", "inner.mix", "inner.first", "last"]),
        (None, ["inner.*"], ["first", "last"]),
        (["first"], [], ["first", "inner.first"]),
        (["inner.first", "la*"], [], ["inner.first", "last"]),
        ("first|last", [], ["first", "last"]),
        (["embed"], [], ["embed"]),
    ],
)
def test_layers_are_chosen_by_name(targets, exclude, wanted):
    assert list(choose_layers(Small(), targets, exclude, (*DEFAULT, nn.Embedding))) == sorted(wanted, key=order)
    adapted = adapt(Small(), Adapters(rank=2, targets=targets, exclude=exclude))
    assert set(adapted.layers) == set(wanted)


def order(name):
    return [known for known, _ in Small().named_modules()].index(name)


@pytest.mark.parametrize("width", [16, 32])
def test_at_least_nine_tenths_of_the_unet_lie_in_adapted_layers(registry, width):
    drift = registry.create("drift", "unet", event_shape=[1, 16, 16], width=width)
    chosen = choose_layers(drift, None, [], DEFAULT)
    held = sum(weight.numel() for layer in chosen.values() for weight in layer.parameters())
    whole = sum(weight.numel() for weight in drift.parameters())
    linear = sum(
        weight.numel() for layer in chosen.values() if isinstance(layer, nn.Linear) for weight in layer.parameters()
    )
    assert held >= 0.9 * whole
    assert linear < 0.2 * whole  # those of peft's "all-linear"
    assert {type(layer) for layer in chosen.values()} == {nn.Linear, nn.Conv1d, nn.Conv2d}


def changed(**layers):
    drift = Small()
    for name, layer in layers.items():
        setattr(drift, name, layer)
    return drift


class Standardized(nn.Conv2d):
    """A convolution whose weights are standardized: not linear in them."""

    def forward(self, x):
        weight = self.weight - self.weight.mean((1, 2, 3), keepdim=True)
        return self._conv_forward(x, weight, self.bias)


class Reader(Small):
    """A drift that reads a layer's weights and never calls it."""

    def forward(self, t, x, label):
        return super().forward(t, x, label) + nn.functional.conv2d(x, self.read.weight, padding=1)


class Sampler(Small):
    """A drift that reads weights when it samples only, as torch's transformer layers do."""

    def forward(self, t, x, label):
        here = self.read(x) if torch.is_grad_enabled() else nn.functional.conv2d(x, self.read.weight, padding=1)
        return super().forward(t, x, label) + here


def tied():
    drift = Small()
    drift.inner["again"] = nn.Conv1d(8, 8, 1, bias=False)
    drift.inner["again"].weight = drift.inner["mix"].weight
    return drift


def reused():
    drift = Small()
    drift.inner["again"] = drift.inner["mix"]
    return drift


def with_reader(cls):
    drift = cls()
    drift.read = nn.Conv2d(1, 1, 3, padding=1, bias=False)
    return drift


@pytest.mark.parametrize(
    ("make", "options", "message"),
    [
        (Small, {"targets": ["frist"]}, r"adapters.targets: 'frist' matches no layer. Layers .*: first"),
        (Small, {"targets": ["first", "attn"]}, "'attn' matches no layer"),
        (Small, {"targets": "["}, "'\\[' is not a regular expression"),
        (Small, {"targets": "firs"}, "'firs' matches no layer"),
        (
            Small,
            {"targets": ["norm"]},
            "norm is a GroupNorm, which can't be adapted. Wanted Linear, Conv1d, Conv2d",
        ),
        (Small, {"targets": ["embed"], "name": "loha"}, "embed is a Embedding, which can't be adapted"),
        (Small, {"exclude": ["firts"]}, "adapters.exclude: 'firts' matches no layer"),
        (Small, {"exclude": ["*"]}, "no layer is left to adapt"),
        (Small, {"also_train": ["nrom"]}, "also_train: 'nrom' matches no module with parameters"),
        (Small, {"also_train": ["drop"]}, "also_train: 'drop' matches no module with parameters"),
        (Small, {"also_train": ["inner"]}, r"also_train: 'inner' contains inner\.mix, which is adapted"),
        (
            Small,
            {"rank": 10**6},
            r"adapters.rank: 1000000 is larger than every adapted layer allows; .* allows 8 \(first\)",
        ),
        (Small, {"rank": 3, "targets": ["last"]}, r"larger than every adapted layer allows; .* allows 1 \(last\)"),
        (Small, {"name": "loha", "dora": True}, "adapters.dora: an option of lora, not of loha"),
        (Small, {"name": "lokr", "dropout": 0.1}, "adapters.dropout: an option of lora"),
        (lambda: changed(norm=nn.BatchNorm2d(8)), {}, "norm keep running statistics"),
        (lambda: changed(norm=nn.Conv2d(8, 8, 3, padding=1, groups=4)), {}, "norm are grouped convolutions"),
        (lambda: changed(norm=Standardized(8, 8, 3, padding=1)), {}, "norm override the forward of their torch layer"),
        (
            lambda: changed(norm=parametrizations.weight_norm(nn.Conv2d(8, 8, 3, padding=1))),
            {},
            "norm are parametrized",
        ),
        (tied, {}, r"inner\.mix, inner\.again share their weights"),
        (reused, {}, r"inner\.mix share their weights"),
        (lambda: with_reader(Reader), {}, "read are not called when the drift is evaluated"),
        (lambda: with_reader(Sampler), {}, "read are not called when the drift is evaluated"),
    ],
)
def test_layers_that_adapters_would_be_wrong_in_are_refused(make, options, message):
    drift = make()
    before = copy.deepcopy(drift.state_dict())
    with pytest.raises(ConfigError, match=message):
        adapt(drift, Adapters(**{"rank": 2, **options}))
    assert drift.state_dict().keys() == before.keys()  # nothing was put in


def test_layers_that_are_refused_may_be_excluded():
    for make, name in ((tied, "inner.*"), (lambda: with_reader(Reader), "read")):
        assert adapt(make(), Adapters(rank=2, exclude=[name])).layers
    grouped = changed(norm=nn.Conv2d(8, 8, 3, padding=1, groups=4))
    plain, adapted = copy.deepcopy(grouped).eval(), adapt(grouped.eval(), Adapters(name="loha", rank=2))
    train(adapted)
    plain.load_state_dict(adapted.merged())
    close(plain(**inputs()), adapted.drift(**inputs()))


def test_peft_is_asked_for_where_it_is_missing(monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ConfigError, match=re.escape("pip install 'gftkit[lora]'")):
        adapt(Small(), Adapters())


def test_names_that_peft_confuses_are_refused():
    drift = Small()
    drift.add_module("xnorm", nn.GroupNorm(2, 8))
    with pytest.raises(ConfigError, match="peft can't distinguish xnorm from other layers by name"):
        adapt(drift, Adapters(rank=2, also_train=["norm"]))
