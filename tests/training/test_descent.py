"""Descent: the scale of float16 losses, moments, and gradients that overflow."""

import json

import torch
from support.steps import small_loop
from torch import nn

from gftkit.networks.averages import Averages
from gftkit.runs.schema import Train
from gftkit.training.descent import OVERFLOWS, Descent
from gftkit.training.optimizer import optimizer_of

CPU = torch.device("cpu")


# float16


def test_the_state_of_the_scale_is_kept(registry):
    steps = small_loop(registry, precision="float16")
    for step in range(3):
        steps.take(step)
    tensors, numbers = steps.descent.state()
    other = small_loop(registry, precision="float16")
    other.take(0)
    other.descent.scaler.update(2.0)
    other.descent.restore(tensors, json.loads(json.dumps(numbers)))
    assert other.descent.scaler.state_dict() == steps.descent.scaler.state_dict()


def test_moments_are_put_back_in_the_memory_format_of_their_weights():
    """Otherwise fused optimisers go through weights and moments in two orders, without a word."""
    results = []
    for resumed in (False, True):
        torch.manual_seed(0)
        layer = nn.Conv2d(4, 4, 3).to(memory_format=torch.channels_last)
        weights = list(layer.parameters())
        descent = Descent(
            optimizer_of(Train(), weights), weights, Averages(layer, 0.9), clip=None, half=False, device=CPU
        )
        for step in range(2):
            descent.begin(0.01)
            layer(torch.randn(2, 4, 5, 5)).square().sum().backward()
            descent.step(step, torch.zeros(()))
            if resumed:  # files hold all tensors in one format
                tensors, numbers = descent.state()
                descent.restore({name: held.contiguous() for name, held in tensors.items()}, numbers)
        results.append(layer.weight.detach())
    assert torch.equal(*results)


class Overflowing(nn.Linear):
    """A drift whose activations, or whose gradient, leave float16."""

    def __init__(self, forward):
        super().__init__(2, 2)
        self.in_forward = forward

    def forward(self, t, x):
        out = super().forward(x)
        if self.in_forward:
            return out * 1e6
        return out + 0 * Steep.apply(out)


class Steep(torch.autograd.Function):
    """The identity, with an infinite gradient."""

    @staticmethod
    def forward(context, x):
        return x.clone()

    @staticmethod
    def backward(context, gradient):
        return torch.full_like(gradient, float("inf"))


def test_float16_that_overflows_forward_names_its_step(registry):
    steps = small_loop(registry, drift=Overflowing(True), precision="float16")
    steps.take(0)
    assert steps.descent.first_bad(steps.accelerator) == 0


def test_a_gradient_that_overflows_is_passed_over_and_if_it_goes_on_named(registry):
    steps = small_loop(registry, drift=Overflowing(False), precision="float16")
    before = [weight.detach().clone() for weight in steps.drift.parameters()]
    for _ in range(OVERFLOWS - 1):
        steps.take(0)
    assert steps.descent.first_bad(steps.accelerator) is None
    assert all(torch.equal(a, b) for a, b in zip(before, steps.drift.parameters(), strict=True))
    steps.take(5)
    assert steps.descent.first_bad(steps.accelerator) == 5
    usual = small_loop(registry, drift=Overflowing(False))
    usual.take(0)
    assert usual.descent.first_bad(usual.accelerator) == 0
