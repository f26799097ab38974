"""Networks that aren't the function they are taken for are refused before the first step, each with its reason."""

import pytest
import torch
from torch import nn
from torch.nn import functional

from gftkit.kernel.errors import ConfigError
from gftkit.networks.agreement import (
    Inputs,
    agree,
    check_anchor_stays,
    check_network,
    check_rebuilt,
    check_start,
)
from gftkit.networks.anchor import FrozenAnchor

CLASSES = 5


class Net(nn.Module):
    """A small conditional network; each subclass does one thing wrong, or one that only looks so."""

    conditions = ("label",)

    def __init__(self) -> None:
        super().__init__()
        self.embed, self.first, self.last = nn.Embedding(CLASSES + 1, 8), nn.Linear(4, 8), nn.Linear(8, 3)

    def forward(self, t, x, label):
        return self.last(self.middle(self.first(torch.cat([x, t[:, None]], 1)) + self.labelled(label)))

    def labelled(self, label):
        return self.embed(label)

    def middle(self, hidden):
        return hidden.tanh()


class Dropout(Net):
    def __init__(self) -> None:
        super().__init__()
        self.dropout = nn.Dropout(0.5)
        self.attention = nn.MultiheadAttention(8, 2, dropout=0.5, batch_first=True)

    def middle(self, hidden):
        hidden = functional.dropout(self.dropout(hidden), 0.3, self.training)
        hidden = functional.scaled_dot_product_attention(
            *[hidden[:, None, None]] * 3, dropout_p=0.5 if self.training else 0.0
        )
        hidden = hidden[:, 0]
        return hidden[:, 0] + self.attention(hidden, hidden, hidden, need_weights=False)[0][:, 0]


class DropPath(nn.Module):
    def forward(self, hidden):
        return hidden * (torch.rand(len(hidden), 1) > 0.5) if self.training else hidden


class StochasticDepth(Net):
    def __init__(self) -> None:
        super().__init__()
        self.path = DropPath()

    def middle(self, hidden):
        return hidden + self.path(hidden.tanh())


class LabelEmbedder(nn.Module):
    def __init__(self, share: float) -> None:
        super().__init__()
        self.embedding_table, self.dropout_prob = nn.Embedding(CLASSES + 1, 8), share

    def forward(self, label, training):
        if training and self.dropout_prob > 0:
            label = torch.where(torch.rand(len(label)) < self.dropout_prob, CLASSES, label)
        return self.embedding_table(label)


class LabelDropout(Net):
    """As SiT does it: the network's own mode decides, and the embedder draws."""

    def __init__(self, share: float = 0.1) -> None:
        super().__init__()
        self.embed = LabelEmbedder(share)

    def labelled(self, label):
        return self.embed(label, self.training)


class Statistics(Net):
    def __init__(self) -> None:
        super().__init__()
        self.inner = nn.Sequential(nn.Linear(8, 8), nn.BatchNorm1d(8))

    def middle(self, hidden):
        return self.inner(hidden)


class ScaledInTraining(Net):
    def middle(self, hidden):
        return hidden * (2.0 if self.training else 1.0)


class AlwaysDropping(Net):
    def middle(self, hidden):
        return functional.dropout(hidden, 0.5)


class InPlace(Net):
    def forward(self, t, x, label):
        x += 1
        return super().forward(t, x, label)


class Counting(Net):
    calls = 0

    def middle(self, hidden):
        self.calls += self.training
        return hidden + self.calls


class HiddenFrequencies(Net):
    """Its random frequencies are an attribute: no state dict has them."""

    def __init__(self) -> None:
        super().__init__()
        self.frequencies = torch.randn(8)

    def middle(self, hidden):
        return (hidden * self.frequencies).sin()


class KeptFrequencies(Net):
    def __init__(self) -> None:
        super().__init__()
        self.register_buffer("frequencies", torch.randn(8))

    middle = HiddenFrequencies.middle


class StoredFunction(Net):
    """Its deep copy calls the original's layer."""

    def __init__(self) -> None:
        super().__init__()
        self.apply_last = lambda hidden: self.last(hidden)

    def forward(self, t, x, label):
        return self.apply_last(self.middle(self.first(torch.cat([x, t[:, None]], 1)) + self.labelled(label)))


SOUND = [Net, Dropout, StochasticDepth, KeptFrequencies, lambda: LabelDropout(0.0)]


def inputs():
    generator = torch.Generator().manual_seed(0)
    x = torch.randn(4, 3, generator=generator)
    return Inputs(torch.linspace(0.1, 0.9, 4), x, {"label": torch.arange(4)})


def check(factory):
    """All the probes, as a run calls them; state and random numbers must be as before."""
    torch.manual_seed(3)
    drift = factory().eval()
    state, random = {name: value.clone() for name, value in drift.state_dict().items()}, torch.get_rng_state()
    anchor = FrozenAnchor(drift)
    try:
        check_network(drift, inputs(), "net")
        check_rebuilt(drift, drift.state_dict(), factory, inputs(), "net")
        check_anchor_stays(drift, anchor, inputs())
        check_start(drift, anchor, inputs(), "net", anchor.conditions)
    finally:
        assert all(torch.equal(value, state[name]) for name, value in drift.state_dict().items())
        assert torch.equal(torch.get_rng_state(), random)
        assert not any(module.training for module in drift.modules())


@pytest.mark.parametrize("factory", SOUND)
def test_sound_networks_pass(factory):
    check(factory)


@pytest.mark.parametrize(
    ("factory", "message"),
    [
        (LabelDropout, r"embed \(LabelEmbedder\) draws random numbers.*label_dropout: false.*condition_dropout: 0\.1"),
        (Statistics, r"differs in training mode.*because of inner\.1 \(BatchNorm1d\).*running statistics"),
        (ScaledInTraining, r"differs in training mode from its anchor.*because of ScaledInTraining\. Let it compute"),
        (AlwaysDropping, "two evaluations in evaluation mode differ"),
        (InPlace, "changes its input x in place"),
        (Counting, "evaluation in training mode changes the network"),
        (HiddenFrequencies, "built again.*isn't all in its state dict: frequencies"),
        (StoredFunction, r"anchor: it changes with the weights that are trained.*\(T18\)"),
    ],
)
def test_other_networks_are_refused(factory, message):
    with pytest.raises(ConfigError, match=f"(?s){message}"):
        check(factory)


def test_a_drift_that_is_not_its_anchor_is_refused():
    torch.manual_seed(0)
    drift, other = Net().eval(), FrozenAnchor(Net())
    with pytest.raises(ConfigError, match="before the first step it differs from its anchor"):
        check_start(drift, other, inputs(), "net", other.conditions)


def test_two_networks_agree_up_to_round_off():
    torch.manual_seed(0)
    one, other = Net(), Net()
    assert not agree(one, other, inputs(), "net")
    other.load_state_dict(one.state_dict())
    assert agree(one, other, inputs(), "net")
    with torch.no_grad():
        other.last.bias += 1e-2
    assert not agree(one, other, inputs(), "net")
