"""Moving averages: the law of the update, what is held, and the network that they make."""

import pytest
import torch
from torch import nn

from gftkit.kernel.errors import WeightsError
from gftkit.networks.averages import Averages

DECAY = 0.75


@pytest.fixture
def drift():
    torch.manual_seed(0)
    net = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Dropout(0.5), nn.Linear(4, 3)).double()
    net[0].requires_grad_(False)
    net.conditions = ("label",)
    return net


def move(drift, seed):
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for weight in drift.parameters():
            if weight.requires_grad:
                weight += torch.randn(weight.shape, generator=generator, dtype=weight.dtype)


def test_the_update_is_the_weighted_sum_of_the_past(drift):
    averages = Averages(drift, DECAY)
    wanted = {name: weight.detach().clone() for name, weight in drift.named_parameters()}
    for step in range(5):
        move(drift, step)
        averages.update(step)
        for name, weight in drift.named_parameters():
            wanted[name] = DECAY * wanted[name] + (1 - DECAY) * weight.detach()
    for name, mean in averages.tensors().items():
        torch.testing.assert_close(mean, wanted[name], rtol=1e-14, atol=1e-14)


def test_averages_of_trained_weights_leave_out_the_start(drift):
    """Weights that fall by the decay for each step since, adding up to one; with the start they are others."""
    averages, whole = Averages(drift, DECAY, trained=True), Averages(drift, DECAY)
    seen = []
    for step in range(5):
        move(drift, step)
        averages.update(step)
        whole.update(step)
        seen.append({name: weight.detach().clone() for name, weight in drift.named_parameters()})
    shares = torch.tensor([DECAY ** (4 - k) for k in range(5)], dtype=torch.float64)
    for name, mean in averages.tensors().items():
        wanted = sum(share * held[name] for share, held in zip(shares / shares.sum(), seen, strict=True))
        torch.testing.assert_close(mean, wanted, rtol=1e-14, atol=1e-14)
        assert not torch.allclose(mean, whole.tensors()[name])


def test_averages_are_kept_of_trained_weights_only(drift):
    held = Averages(drift, DECAY).tensors()
    assert set(held) == {name for name, weight in drift.named_parameters() if weight.requires_grad}
    assert not {mean.data_ptr() for mean in held.values()} & {w.data_ptr() for w in drift.parameters()}


def test_the_averaged_network_is_the_network_with_the_averages(drift):
    averages = Averages(drift, DECAY)
    move(drift, 1)
    averages.update(0)
    x = torch.randn(6, 3, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    made = averages.drift().eval()
    assert not drift.training  # the mode is the network's
    own = {name: held.clone() for name, held in drift.state_dict().items()}
    out = made(x)
    assert not torch.equal(out, drift(x))  # the raw weights give another drift
    assert all(torch.equal(own[name], held) for name, held in drift.state_dict().items())
    state = made.state_dict()
    assert list(state) == list(own)
    drift.load_state_dict(state)
    assert torch.equal(out, drift(x))
    assert made.conditions == ("label",)
    assert not list(made.parameters())


def test_a_checkpoint_puts_the_averages_back(drift):
    averages = Averages(drift, DECAY)
    kept = {name: mean.clone() for name, mean in averages.tensors().items()}
    move(drift, 1)
    averages.update(0)
    averages.restore(kept, "here")
    assert all(torch.equal(kept[name], mean) for name, mean in averages.tensors().items())
    kept.pop("3.bias")
    with pytest.raises(WeightsError, match=r"here: the moving average of 3\.bias is missing"):
        averages.restore(kept, "here")
