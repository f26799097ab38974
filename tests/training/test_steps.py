"""Steps: the batch in parts, the anchor on a share of the batch and for several steps at once, no wait for a device."""

from dataclasses import replace

import pytest
import torch
from support.steps import small_loop
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode


class Waits(TorchDispatchMode):
    """Counts what makes the host wait for a device."""

    def __init__(self):
        super().__init__()
        self.found = []

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if name in ("_local_scalar_dense", "nonzero", "is_nonzero", "equal", "masked_select"):
            self.found.append(name)
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("share", [1.0, "retention"])
def test_a_step_never_waits_for_the_device(registry, share):
    """What would: a number read from a tensor. The set of pairs is made on the CPU before."""
    loop = small_loop(registry, share, pairing_batch=64)
    loop.take(0)
    with Waits() as waits:
        for step in range(1, 6):
            loop.take(step)
    assert waits.found == []
    with Waits() as waits:  # the check sees what it looks for
        float(loop.take(6)["loss"])
    assert "_local_scalar_dense" in waits.found


def test_the_share_follows_the_retention(registry):
    steps = small_loop(registry, "retention")
    assert steps.take(0)["anchor_share"] == 3 / 8  # rho = 1/3 of 8, rounded up
    assert small_loop(registry, 0.5).take(0)["anchor_share"] == 0.5
    assert small_loop(registry).take(0)["anchor_share"] == 1.0


@pytest.mark.parametrize(("share", "batch", "count"), [(0.07, 100, 7), (0.0701, 100, 8), (1e-9, 8, 1), (1.0, 8, 8)])
def test_a_share_is_rounded_up_but_not_by_round_off(registry, share, batch, count):
    assert small_loop(registry, share, batch_size=batch).take(0)["anchor_share"] == count / batch


def counting(steps):
    """How many states the anchor is asked at, each time."""
    asked, anchor = [], steps.anchor

    def counted(t, x):
        asked.append(len(x))
        return anchor(t, x)

    steps.anchor = counted
    return asked


@pytest.mark.parametrize(
    ("share", "train", "wanted"),
    [
        (0.25, {}, [8, 8]),  # two samples of each of four steps
        (0.25, {"accumulate": 2}, [4, 4, 4, 4]),  # never more at once than the drift
        (0.25, {"checkpoint_every": 3}, [6, 6, 4]),  # never beyond a checkpoint, or the last step
        (0.75, {}, [6] * 8),
        (0.75, {"accumulate": 2}, None),  # more than fit into a part: in each part those that are there
        (1.0, {}, [8] * 8),
    ],
)
def test_the_anchor_is_asked_for_the_share_only_and_for_several_steps_at_once(registry, share, train, wanted):
    steps = small_loop(registry, share, **train)
    asked = counting(steps)
    for step in range(8):
        steps.take(step)
    assert asked == wanted if wanted else sum(asked) == 48


@pytest.mark.parametrize("train", [{}, {"accumulate": 2}, {"condition_dropout": 0.5}])
def test_asking_ahead_changes_rounding_only(registry, train, monkeypatch):
    def loop():
        torch.manual_seed(0)
        drift = registry.create("drift", "mlp", event_shape=(2,), width=8)
        nn.init.normal_(list(drift.parameters())[-2])  # the last layer of a new one is zero
        return small_loop(registry, 0.25, drift, learning_rate=0.05, optimizer="sgd", **train)

    ends = []
    for ahead in (8, 1):
        monkeypatch.setattr("gftkit.training.steps.AHEAD", ahead)
        steps = loop()
        asked = counting(steps)
        for step in range(8):
            steps.take(step)
        ends.append(nn.utils.parameters_to_vector(steps.drift.parameters()).detach())
    assert len(asked) >= 8
    torch.testing.assert_close(*ends, rtol=1e-5, atol=1e-6)
    other = small_loop(
        registry, 0.25, learning_rate=0.05, optimizer="sgd", **train
    )  # a wrong twin: answers of the steps get mixed up
    anchor = other.anchor
    other.anchor = lambda t, x: anchor(t, x).flip(0)
    for step in range(8):
        other.take(step)
    apart = nn.utils.parameters_to_vector(other.drift.parameters()).detach() - ends[0]
    assert apart.abs().max() > 1e-3


class EarlyOnly:
    """A retention of -0.25 before flow time 1/2, and 0 from there on."""

    def retention(self, t):
        return torch.where(t < 0.5, -0.25, 0.0).to(t.dtype)


def past_zero(registry, profile, share=1.0, **train):
    """The shipped steps with a retention that depends on flow time."""
    steps = small_loop(registry, share, **train)
    steps.profile = lambda step: profile
    return steps


def test_the_anchor_is_asked_only_where_retention_is_not_zero(registry):
    steps = past_zero(registry, EarlyOnly(), batch_size=64)
    asked = counting(steps)
    numbers = steps.take(0)
    early = int((steps._times_of(0)[0] < 0.5).sum())
    assert 0 < early < 64
    assert asked == [early]  # those of the next step don't fit in beside them
    assert numbers["anchor_share"] == early / 64
    assert (numbers["retention_low"], numbers["retention_high"]) == (-0.25, 0.0)


@pytest.mark.parametrize("form", ["blended", "penalty"])
@pytest.mark.parametrize("accumulate", [1, 2])
def test_each_sample_has_the_loss_of_its_own_temperature(registry, form, accumulate):
    """Beside the formulas of T19; one temperature for all, the mean, gives other losses."""
    steps = past_zero(registry, EarlyOnly(), batch_size=16, accumulate=accumulate)
    steps.objective = replace(steps.objective, form=form)
    (inputs, *_) = steps._prepare(0)
    steps.model = lambda t, x: steps.drift(t, x) + 1.0  # away from its start, the anchor
    drift = steps.model(inputs.t, inputs.x)
    losses = torch.cat([steps._losses(inputs, slice(k, k + 16 // accumulate)) for k in range(0, 16, 16 // accumulate)])
    anchor, beta = steps.anchor(inputs.t, inputs.x), torch.where(inputs.t < 0.5, -0.2, 0.0)

    def expected(beta):
        near, kept = (drift - inputs.target).square().sum(1), (drift - anchor).square().sum(1)
        if form == "penalty":
            return near + beta * kept
        return (drift - (inputs.target + beta[:, None] * anchor) / (1 + beta[:, None])).square().sum(1)

    assert torch.allclose(losses, expected(beta), rtol=1e-5)
    assert not torch.allclose(losses, expected(torch.full_like(beta, float(beta.mean()))), rtol=1e-2)


def test_a_share_with_a_profile_is_the_share_of_what_counts(registry):
    """Half of the batch is drawn, and of it the pairs with a retention are asked for."""
    steps = past_zero(registry, EarlyOnly(), share=0.5, batch_size=64)
    (inputs, *_) = steps._prepare(0)
    assert inputs.share == 0.5
    assert bool((inputs.t[inputs.anchored_at] < 0.5).all())
    assert 0 < len(inputs.anchored_at) < 32
    follows = past_zero(registry, EarlyOnly(), share="retention", batch_size=64)
    assert follows._prepare(0)[0].share == 8 / 64  # the mean of |rho| is 1/8
