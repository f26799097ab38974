"""Optimisers of any library: by import path, tried before the run, and kept by checkpoints whatever their state is."""

import json

import pytest
import torch
from torch import nn

from gftkit.kernel.errors import ConfigError
from gftkit.networks.averages import Averages
from gftkit.runs.schema import Train
from gftkit.training.descent import Descent
from gftkit.training.optimizer import load_optimizer_state, optimizer_of, optimizer_state


class Halves(torch.Tensor):
    """A tensor in parts, as 8-bit optimisers keep their moments."""

    @staticmethod
    def __new__(cls, low, high):
        return torch.Tensor._make_wrapper_subclass(cls, (2 * len(low),), dtype=low.dtype)

    def __init__(self, low, high):
        self.low, self.high = low, high

    def __tensor_flatten__(self):
        return ["low", "high"], [self.low.dtype]

    @classmethod
    def __tensor_unflatten__(cls, parts, context, outer_size, outer_stride):
        assert context == (torch.float32,)
        return cls(parts["low"], parts["high"])

    @classmethod
    def __torch_dispatch__(cls, func, types, args=(), kwargs=None):
        return func(*(torch.cat([a.low, a.high]) if isinstance(a, Halves) else a for a in args), **(kwargs or {}))

    def whole(self):
        return torch.cat([self.low, self.high])


class Momentum(torch.optim.Optimizer):
    """Momentum kept in parts, a count of steps in its group, and a learning rate that is a tensor."""

    def __init__(self, params, lr, **odd):
        super().__init__(params, {"lr": torch.tensor(lr), "count": 0, **odd})

    def step(self, closure=None):
        for group in self.param_groups:
            assert isinstance(group["lr"], torch.Tensor)
            group["count"] += 1
            for weight in group["params"]:
                state = self.state[weight]
                before = state["mean"].whole() if state else torch.zeros(weight.numel())
                mean = 0.9 * before + weight.grad.flatten()
                state["mean"] = Halves(*mean.chunk(2))
                largest = torch.maximum(state["inner"]["largest"], mean.abs()) if "inner" in state else mean.abs()
                state["inner"] = {"largest": largest, "calls": 1}
                weight.data -= group["lr"] * (mean / (1 + largest)).reshape(weight.shape) / group["count"]


class Failing(Momentum):
    def step(self, closure=None):
        raise RuntimeError("not on this machine")


class Unkept(Momentum):
    def __init__(self, params, lr):
        super().__init__(params, lr, odd=object())


HERE = f"{__name__}:Momentum"


def train(optimizer, steps, resume_at=None, forget=()):
    """The weight after some steps, of a descent whose state goes through JSON on the way."""
    torch.manual_seed(0)
    layer = nn.Linear(4, 4)
    weights = list(layer.parameters())

    def descent():
        made = optimizer_of(Train(optimizer=optimizer), weights)
        return Descent(made, weights, Averages(layer, 0.5), clip=None, half=False, device=torch.device("cpu"))

    going = descent()
    for step in range(steps):
        if step == resume_at:
            tensors, numbers = going.state()
            tensors = {name: tensor.clone() for name, tensor in tensors.items()}
            numbers = {key: value for key, value in json.loads(json.dumps(numbers)).items() if key not in forget}
            averages = going.averages
            going = descent()
            going.restore(tensors, numbers)
            going.averages = averages
        going.begin(0.01)
        loss = layer(torch.arange(8.0).reshape(2, 4)).square().mean()
        loss.backward()
        going.step(step, loss.detach())
    return layer.weight.detach().clone(), going.averages.tensors()["weight"].clone()


@pytest.mark.parametrize("optimizer", ["adam", HERE, "schedulefree:AdamWScheduleFree"])
def test_a_resumed_descent_equals_an_undisturbed_one(optimizer):
    for one, other in zip(train(optimizer, 6), train(optimizer, 6, resume_at=3), strict=True):
        assert torch.equal(one, other)


@pytest.mark.parametrize("optimizer", [HERE, "schedulefree:AdamWScheduleFree"])
def test_what_is_in_the_groups_counts(optimizer):
    """A checkpoint that forgets the options of the groups, as they count the steps there, is noticed by the test."""
    assert not torch.equal(train(optimizer, 6)[0], train(optimizer, 6, resume_at=3, forget=("groups",))[0])


def test_between_steps_the_weights_are_those_to_use():
    """Of schedule-free ones: y is trained, and x is used, saved and averaged."""
    weight = nn.Parameter(torch.linspace(-1, 1, 8))
    made = optimizer_of(Train(optimizer="schedulefree:SGDScheduleFree"), [weight])
    layer = nn.Module()
    layer.weight = weight
    descent = Descent(made, [weight], Averages(layer, 0.0), clip=None, half=False, device=torch.device("cpu"))
    for step in range(3):
        descent.begin(0.1)
        trained = weight.detach().clone()
        weight.grad = weight.detach().clone()
        descent.step(step, torch.zeros(()))
        used = weight.detach().clone()
        assert torch.equal(descent.averages.tensors()["weight"], used)
    made.train()
    assert not torch.allclose(weight, used)
    assert not torch.allclose(trained, used)


@pytest.mark.parametrize(
    ("optimizer", "message"),
    [
        ("nowhere_at_all:Adam", "can't be imported"),
        ("torch.optim:Adamm", "can't be imported"),
        ("torch.nn:Linear", "is no subclass of torch.optim.Optimizer"),
        (f"{__name__}:Failing", "fails in a trial on the CPU: RuntimeError: not on this machine"),
        (f"{__name__}:Unkept", "a checkpoint can't keep the state of .*: a value of the type object"),
        ({"name": "schedulefree:AdamWScheduleFree", "momentum": 3}, "unexpected keyword argument 'momentum'"),
    ],
)
def test_optimisers_that_a_run_could_not_use_are_refused(optimizer, message):
    with pytest.raises(ConfigError, match=message):
        optimizer_of(Train(optimizer=optimizer), [nn.Parameter(torch.ones(2))])


def test_a_file_does_not_choose_what_is_imported():
    weight = nn.Parameter(torch.ones(8))
    made = optimizer_of(Train(optimizer=HERE), [weight])
    weight.grad = torch.ones(8)
    made.step()
    tensors, numbers = optimizer_state(made)
    numbers["wrapped"]["0.mean"]["type"] = "os:system"
    with pytest.raises(TypeError, match="isn't a class of"):
        load_optimizer_state(made, tensors, numbers, [weight])
