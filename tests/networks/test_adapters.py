"""Adapters: what is trained, what never moves, what is written, and what is refused."""

import copy

import pytest
import torch
from safetensors.torch import load_file
from support.adapters import Small, adapt, close, inputs, read_by_peft, train
from torch import nn

from gftkit.networks.adapters import Adapters
from gftkit.networks.anchor import AdaptersOffAnchor, Anchor, FrozenAnchor
from gftkit.runs.schema import Train
from gftkit.training.forward import Forward
from gftkit.training.steps import trained_weights

KINDS = {
    "lora": Adapters(rank=4),
    "lora-capped": Adapters(rank=8, alpha=5.0),
    "rslora": Adapters(rank=4, alpha=3.0, rslora=True),
    "dora": Adapters(rank=4, dora=True),
    "loha": Adapters(name="loha", rank=3),
    "lokr": Adapters(name="lokr", rank=3),
    "also-norms": Adapters(rank=4, also_train=["norm"], dropout=0.3),
}


@pytest.fixture(params=KINDS)
def pair(request):
    """A network and its copy with trained adapters, in evaluation mode."""
    torch.manual_seed(3)
    before = Small().eval()
    adapted = adapt(copy.deepcopy(before), KINDS[request.param])
    return before, adapted


def test_at_first_adapters_change_nothing_and_then_they_do(pair):
    before, adapted = pair
    wanted = before(**inputs())
    assert torch.equal(adapted.drift(**inputs()), wanted)
    train(adapted)
    assert (adapted.drift(**inputs()) - wanted).abs().max() > 0.01
    assert adapted.drift.conditions == ("label",)
    assert type(adapted.drift) is Small


def test_only_adapters_are_trained_and_every_weight_is_there_once(pair):
    before, adapted = pair
    trained = [weight for weight in adapted.drift.parameters() if weight.requires_grad]
    frozen = [weight for weight in adapted.drift.parameters() if not weight.requires_grad]
    assert trained
    assert sum(weight.numel() for weight in frozen) == sum(weight.numel() for weight in before.parameters())
    known = {weight.data_ptr() for weight in adapted.drift.parameters()}
    assert len(known) == len(trained) + len(frozen)
    told = adapted.describe()
    assert told["trained"] == sum(weight.numel() for weight in trained)
    assert told["layers"] == 4


def test_adapters_off_is_the_pretrained_network_in_evaluation_mode(pair):
    """Also while the network trains with dropout; its modes, gradients and adapters are as before afterwards."""
    before, adapted = pair
    drift = train(adapted).drift
    drift.train()
    drift.inner["first"].eval()
    modes = [module.training for module in drift.modules()]
    needs = [weight.requires_grad for weight in drift.parameters()]
    torch.manual_seed(1)
    here = drift(**inputs())
    anchor = AdaptersOffAnchor(adapted, "hash")
    for _ in range(2):
        held = anchor(**inputs())
        assert torch.equal(held, before(**inputs()))
        assert not held.requires_grad
    assert modes == [module.training for module in drift.modules()]
    assert needs == [weight.requires_grad for weight in drift.parameters()]
    torch.manual_seed(1)
    assert torch.equal(drift(**inputs()), here)
    with pytest.raises(TypeError), adapted.off():  # also after an error inside
        drift()
    torch.manual_seed(1)
    assert torch.equal(drift(**inputs()), here)


def test_a_wrong_adapters_off_is_another_drift(pair):
    """What the test above must see: adapters left on, and a network that stays in training mode."""
    before, adapted = pair
    drift = train(adapted).drift
    assert not torch.equal(drift(**inputs()), before(**inputs()))
    drift.train()
    switched = [module for module in drift.modules() if hasattr(module, "enable_adapters")]
    for layer in switched:
        layer.enable_adapters(False)
    assert not torch.equal(drift(**inputs()), before(**inputs()))


def test_the_anchor_adds_no_parameters(pair):
    """With adapters-off, what is held is the network's tensors and the adapters'; a copy adds the network's again."""
    before, adapted = pair

    def held(anchor):
        holders = [adapted.drift, getattr(anchor, "module", nn.Module())]
        return {tensor.data_ptr() for module in holders for tensor in module.state_dict().values()}

    off = AdaptersOffAnchor(adapted, "hash")
    assert isinstance(off, Anchor)
    assert off.describe() == {"kind": "adapters-off", "hash": "hash", "parameters": 0}
    own = {tensor.data_ptr() for tensor in adapted.drift.state_dict().values()}
    assert held(off) == own
    assert len(held(FrozenAnchor(before))) == len(own) + len(before.state_dict())


def test_merged_weights_are_those_of_the_plain_network(pair):
    _, adapted = pair
    drift = train(adapted).drift
    wanted, state = drift(**inputs()), copy.deepcopy(drift.state_dict())
    plain = Small().eval()
    plain.load_state_dict(adapted.merged())
    close(plain(**inputs()), wanted)
    assert torch.equal(drift(**inputs()), wanted)  # merging leaves the adapted network as it was
    assert all(torch.equal(held, drift.state_dict()[name]) for name, held in state.items())
    other = {name: 2 * weight.detach() for name, weight in drift.named_parameters() if weight.requires_grad}
    plain.load_state_dict(adapted.merged(other))
    assert (plain(**inputs()) - wanted).abs().max() > 1e-3
    assert torch.equal(drift(**inputs()), wanted)
    with torch.no_grad():
        for name, weight in drift.named_parameters():
            weight.copy_(other.get(name, weight))
    close(plain(**inputs()), drift(**inputs()))


def test_peft_reads_what_is_saved(pair, tmp_path):
    before, adapted = pair
    drift = train(adapted).drift
    adapted.save(tmp_path / "adapter")
    loaded = read_by_peft(copy.deepcopy(before), tmp_path / "adapter")
    assert torch.equal(loaded(**inputs()), drift(**inputs()))
    close(loaded.merge_and_unload()(**inputs()), drift(**inputs()))
    averages = {name: 0 * weight.detach() for name, weight in drift.named_parameters() if weight.requires_grad}
    adapted.save(tmp_path / "zero", averages)
    assert not any(held.any() for held in load_file(tmp_path / "zero/adapter_model.safetensors").values())


def test_the_first_weights_are_a_function_of_the_seed():
    def first(seed):
        torch.manual_seed(5)
        drift = adapt(Small(), Adapters(rank=4), seed).drift
        return drift.first.lora_A["default"].weight

    state = torch.get_rng_state()
    assert torch.equal(first(1), first(1))
    assert not torch.equal(first(1), first(2))
    torch.manual_seed(9)
    made, state = Small(), torch.get_rng_state()
    adapt(made, Adapters(rank=4))
    assert torch.equal(torch.get_rng_state(), state)


def test_a_small_layer_gets_the_rank_that_it_allows_at_the_same_factor():
    adapted = adapt(Small(), Adapters(rank=8, alpha=4.0))
    ranks = {name: layer.r["default"] for name, layer in adapted.layers.items()}
    assert ranks == {"first": 8, "inner.mix": 8, "inner.first": 8, "last": 1}
    assert {layer.scaling["default"] for layer in adapted.layers.values()} == {0.5}
    by_root = adapt(Small(), Adapters(rank=8, alpha=4.0, rslora=True))
    for layer in by_root.layers.values():
        assert layer.scaling["default"] == pytest.approx(4 / 8**0.5)


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own
def test_adapters_off_may_be_compiled():
    """The compiled anchor is the pretrained network, and the compiled drift beside it has its adapters on."""
    torch.manual_seed(3)
    before = Small().eval()
    adapted = adapt(copy.deepcopy(before), Adapters(rank=4))
    drift, anchor = train(adapted).drift, AdaptersOffAnchor(adapted, "hash")
    forward = Forward(Train(compile=True), torch.device("cpu"), (1, 4, 4))
    given = inputs()
    label = {"label": given["label"]}
    for _ in range(2):
        drift.train()
        forward(drift, anchor, given["t"], given["x"], label, label)
        assert drift.training
        drift.eval()
        here, held = forward(drift, anchor, given["t"], given["x"], label, label)
        close(held, before(**inputs()))
        close(here, drift(**inputs()))
    here.square().mean().backward()
    assert all(weight.grad is not None for weight in trained_weights(drift))
