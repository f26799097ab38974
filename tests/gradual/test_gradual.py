"""GFT in a loop of one's own: the trainer's loss, in any convention of the prediction, with every kind of anchor."""

import copy
import json

import pytest
import torch
from support.steps import small_loop
from torch import nn
from torch.nn import functional
from torch.utils.checkpoint import checkpoint

import gftkit
from gftkit.gradual import Gradual
from gftkit.kernel.errors import ConfigError
from gftkit.theory.gap import statistics, summary

HALF = {"name": "constant", "value": 1.0}
EXACT = {"rtol": 1e-12, "atol": 1e-12}
"""Of float64, between sums in another order."""


class Net(nn.Module):
    """A small network of states and times."""

    def __init__(self, dropout=0.0, recomputes=False):
        super().__init__()
        self.recomputes = recomputes
        self.first = nn.Linear(3, 8)
        self.blocks = nn.ModuleList(nn.Sequential(nn.Linear(8, 8), nn.Tanh(), nn.Dropout(dropout)) for _ in range(2))
        self.last = nn.Linear(8, 2)

    def forward(self, t, x):
        hidden = self.first(torch.cat([x, t[:, None]], 1))
        for block in self.blocks:
            recomputed = self.recomputes and torch.is_grad_enabled()
            hidden = hidden + (checkpoint(block, hidden, use_reentrant=False) if recomputed else block(hidden))
        return self.last(hidden)


def network(seed=0, **options):
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        return Net(**options)


def batch(seed=0, n=16):
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(n, generator=generator), *torch.randn(2, n, 2, generator=generator)


def trained(net):
    """The same network, after some training."""
    with torch.no_grad():
        for weight in net.parameters():
            weight += 0.1 * torch.randn(weight.shape, generator=torch.Generator().manual_seed(weight.numel()))
    return net


def started(net, schedule=HALF, **options):
    gft = Gradual(10, schedule, **options)
    gft.anchor_of(net)
    return gft


@pytest.mark.parametrize("options", [{}, {"precision": "bfloat16"}])
@pytest.mark.parametrize("form", ["blended", "penalty"])
def test_a_loop_of_ones_own_follows_the_trainer(registry, form, options):
    """The same pairs, the same optimiser: every loss and every weight, to rounding."""
    trainer, other = (small_loop(registry, 1.0, steps=6, learning_rate=0.01, clip=None, **options) for _ in range(2))
    for each in (trainer, other):
        each.objective = type(each.objective)(each.objective.schedule, "here", 6, form)
    net = copy.deepcopy(trainer.drift)
    gft = Gradual(6, trainer.objective.schedule, form=form)
    gft.anchor_of(net)
    optimizer = torch.optim.Adam(net.parameters(), lr=0.01, fused=True)
    for step in range(6):
        inputs = other._inputs(step, other.temperature(step), other.anchor, None, 1.0)
        expected = trainer.take(step)["loss"]
        with torch.autocast("cpu", torch.bfloat16, enabled=bool(options)):
            prediction = net(inputs.t, inputs.x)
            loss = gft.loss(step, prediction, inputs.target, lambda model, at=inputs: model(at.t, at.x))
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        torch.testing.assert_close(loss.detach(), expected, rtol=1e-6, atol=0)
    for one, another in zip(net.parameters(), trainer.drift.parameters(), strict=True):
        torch.testing.assert_close(one, another, rtol=1e-5, atol=1e-7)


CONVENTIONS = {
    "minus the velocity": lambda t: (-1.0, 0.0),
    "a scaled velocity": lambda t: (3.0, 0.0),
    "noise": lambda t: (-t, 1.0),  # e = x - t v
    "data": lambda t: (1 - t, 1.0),  # d = x + (1 - t) v
}
"""A prediction as a v + b x of the velocity v, on the linear path."""


def gradient(prediction, target, anchor, weight=None):
    gft = Gradual(10, HALF)
    gft.anchor_of(lambda: anchor, external=True)
    drift = prediction.clone().requires_grad_()
    return drift, gft.loss(0, drift, target, lambda net: net(), weight=weight)


@pytest.mark.parametrize("convention", CONVENTIONS)
def test_the_blend_does_not_depend_on_the_convention_of_the_prediction(convention):
    """The same gradient by the velocity, once the weight a^-2 is put in; and not where the target is of another."""
    t, x, v = (values.double() for values in batch())
    target, anchor = torch.randn(2, 16, 2, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    a, b = CONVENTIONS[convention](t[:, None])
    a = torch.as_tensor(a, dtype=torch.float64).expand(16, 1)

    def converted(values):
        return a * values + b * x

    velocity, loss = gradient(v, target, anchor)
    expected = torch.autograd.grad(loss, velocity)[0]
    prediction, loss = gradient(converted(v), converted(target), converted(anchor), weight=a[:, 0] ** -2)
    torch.testing.assert_close(a * torch.autograd.grad(loss, prediction)[0], expected, **EXACT)
    prediction, loss = gradient(converted(v), target, converted(anchor), weight=a[:, 0] ** -2)
    assert not torch.allclose(a * torch.autograd.grad(loss, prediction)[0], expected, rtol=1e-2)


def test_weights_of_samples_and_of_values():
    """(batch,) and (batch, 1) weigh samples, any other shape the values: as the written-out formula has it."""
    net, (t, x, target) = network(), batch()
    gft = started(net)
    gft.check(lambda model: model(t, x))
    goal = (target + net(t, x)) / 2
    drift = trained(copy.deepcopy(net))(t, x).detach()
    for weight in (torch.rand(16), torch.rand(16, 1), (torch.rand(16, 2) > 0.5).float(), torch.rand(2)):
        wide = weight[:, None] if weight.shape == (16,) else weight
        loss = gft.loss(1, drift, target, lambda model: model(t, x), weight=weight)
        torch.testing.assert_close(loss, (wide * (drift - goal).square()).mean())


def test_half_precision_predictions_have_a_float32_loss():
    net, (t, x, target) = network(), batch()
    gft = started(net)
    loss = gft.loss(0, net(t, x).bfloat16(), target.bfloat16(), lambda model: model(t, x).bfloat16())
    assert loss.dtype == torch.float32


# --- anchors ----------------------------------------------------------------------------------------------------------


def adapted(net, way):
    import peft

    config = peft.LoraConfig(r=2, target_modules=["first", "last"], modules_to_save=None)
    if way == "get_peft_model":
        return peft.get_peft_model(net, config)
    return peft.inject_adapter_in_model(config, net)


@pytest.mark.parametrize("way", ["get_peft_model", "inject"])
def test_adapters_are_switched_off_for_the_anchor_and_put_back(way):
    plain, (t, x, target) = network(), batch()
    net = adapted(copy.deepcopy(plain), way)
    gft = started(net)
    frozen = started(plain)
    assert gft.state_dict()["anchor"] == {**frozen.state_dict()["anchor"], "kind": "adapters-off"}
    gft.loss(0, net(t, x), target, lambda model: model(t, x))
    for name, weight in net.named_parameters():
        if "lora_" in name:
            nn.init.normal_(weight, std=0.3)
    net.train()
    modes = [module.training for module in net.modules()]
    loss = gft.loss(1, net(t, x), target, lambda model: model(t, x))
    assert modes == [module.training for module in net.modules()]
    expected = functional.mse_loss(net(t, x), (target + plain(t, x)) / 2)
    torch.testing.assert_close(loss, expected)
    loss.backward()
    for name, weight in net.named_parameters():
        assert (weight.grad is not None) == ("lora_" in name)
    wrong = functional.mse_loss(net(t, x), (target + net(t, x).detach()) / 2)  # adapters left on
    assert not torch.allclose(loss, wrong, rtol=1e-3)


def test_adapters_that_would_move_the_anchor_are_refused():
    net = adapted(network(), "inject")
    net.blocks[0][0].weight.requires_grad_(True)
    with pytest.raises(ConfigError, match=r"blocks\.0\.0\.weight is trained beside the adapters"):
        Gradual(10).anchor_of(net)
    net = adapted(network(), "get_peft_model")
    net.merge_adapter()
    with pytest.raises(ConfigError, match="is merged into its weights"):
        Gradual(10).anchor_of(net)


def test_a_frozen_copy_stays_while_the_network_moves():
    net, (t, x, target) = network(), batch()
    before = copy.deepcopy(net)
    gft = started(net)
    gft.loss(0, net(t, x), target, lambda model: model(t, x))
    trained(net)
    loss = gft.loss(1, net(t, x), target, lambda model: model(t, x))
    torch.testing.assert_close(loss, functional.mse_loss(net(t, x), (target + before(t, x)) / 2))
    assert not torch.allclose(loss, functional.mse_loss(net(t, x), (target + net(t, x)) / 2), rtol=1e-3)


def test_any_function_may_be_the_anchor():
    net, (t, x, target) = network(), batch()
    gft = Gradual(10, HALF)
    gft.anchor_of(lambda t, x: -x, hashed="minus")
    loss = gft.loss(0, net(t, x), target, lambda model: model(t, x))
    torch.testing.assert_close(loss, functional.mse_loss(net(t, x), (target - x) / 2))
    assert gft.state_dict()["anchor"] == {"kind": "external", "hash": "minus"}
    other = network(1).train()
    gft.anchor_of(other, external=True)
    gft.loss(1, net(t, x), target, lambda model: model(t, x))
    assert other.training


@pytest.mark.parametrize("wrapper", ["compile", "parallel", "checkpointing"])
def test_wrappers_of_the_network(wrapper):
    plain, (t, x, target) = network(), batch()
    net = copy.deepcopy(plain)
    if wrapper == "compile":
        model = torch.compile(net, backend="eager")
    elif wrapper == "parallel":
        model = nn.DataParallel(net)
    else:
        model = net
        net.recomputes = True
    gft = started(model)
    assert gft.state_dict()["anchor"] == started(plain).state_dict()["anchor"]
    gft.loss(0, model(t, x), target, lambda each: each(t, x))
    trained(net)
    loss = gft.loss(1, model(t, x), target, lambda each: each(t, x))
    loss.backward()
    torch.testing.assert_close(loss, functional.mse_loss(net(t, x), (target + plain(t, x)) / 2))
    assert all(weight.grad is not None for weight in net.parameters())


# --- schedules --------------------------------------------------------------------------------------------------------


def test_at_temperature_zero_the_anchor_is_not_evaluated():
    net, (t, x, target) = network(), batch()
    gft = started(net, "zero")
    calls = []

    def call(model):
        calls.append(model)
        return model(t, x)

    gft.loss(0, net(t, x), target, call)
    first = len(calls)
    loss = gft.loss(1, net(t, x), target, call)
    assert len(calls) == first > 0  # the comparison at the start
    torch.testing.assert_close(loss, functional.mse_loss(net(t, x), target))
    torch.testing.assert_close(gft.loss(2, net(t, x), target), loss)


def test_a_profile_depends_on_flow_time_and_requires_it():
    net, (t, x, target) = network(), batch()
    gft = started(net, "exponential", end={"name": "linear", "early": -0.4, "late": 0.6})
    gft.loss(0, net(t, x), target, lambda model: model(t, x), t=t)
    trained(net)
    loss = gft.loss(9, net(t, x), target, lambda model: model(t, x), t=t)
    rho = gft.objective.profile(9).retention(t)[:, None]
    assert rho.min() < 0 < rho.max()
    anchor = network()(t, x)
    torch.testing.assert_close(loss, functional.mse_loss(net(t, x), target + rho * (anchor - target)))
    turned = gft.loss(9, net(t, x), target, lambda model: model(t, x), t=1 - t)
    assert not torch.allclose(loss, turned, rtol=1e-3)
    for wrong in (None, t[:3]):
        with pytest.raises(ConfigError, match="depends on flow time; wanted t of shape"):
            gft.loss(9, net(t, x), target, lambda model: model(t, x), t=wrong)


def test_beyond_its_steps_the_schedule_stays_at_its_end():
    gft = Gradual(10, "linear")
    assert gft.temperature(9) == gft.temperature(10) == gft.temperature(10**6)


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: Gradual(0), "steps >= 1"),
        (lambda: Gradual(10, "exponentail"), "Did you mean 'exponential'"),
        (lambda: Gradual(10, "adaptive"), "reads the monitors of a run"),
        (lambda: Gradual(10, {"name": "constant", "value": -2.0}), "schedule"),
    ],
)
def test_schedules_that_a_loop_cannot_follow_are_refused(make, message):
    with pytest.raises(gftkit.GftkitError, match=message):
        make()


# --- what must agree --------------------------------------------------------------------------------------------------


class DropsLabels(Net):
    """A network that changes its input in training mode, by random numbers of its own."""

    def forward(self, t, x):
        return super().forward(t, x * (torch.rand(len(x), 1) > 0.1) if self.training else x)


@pytest.mark.parametrize("dropout", [0.0, 0.5])
def test_the_network_is_compared_with_its_anchor_at_the_first_step(dropout):
    net, (t, x, target) = network(dropout=dropout).train(), batch()
    gft = started(net, "zero")
    with pytest.raises(ConfigError, match="haven't been compared yet"):
        gft.check()
    random = torch.get_rng_state()
    prediction = net(t, x).detach()
    torch.set_rng_state(random)
    gft.loss(0, net(t, x), target, lambda model: model(t, x))
    gft.check()
    state = torch.get_rng_state()
    torch.set_rng_state(random)
    assert torch.equal(prediction, net(t, x))
    assert torch.equal(state, torch.get_rng_state())  # the comparison draws none


def test_a_network_that_is_not_its_anchor_is_refused():
    net, (t, x, target) = network(), batch()
    gft = started(net)
    trained(net)
    with pytest.raises(ConfigError, match="before the first step it differs from its anchor"):
        gft.loss(0, net(t, x), target, lambda model: model(t, x))
    torch.manual_seed(0)
    odd = DropsLabels().train()
    with pytest.raises(ConfigError, match="in training mode DropsLabels draws random numbers"):
        started(odd).check(lambda model: model(t, x))


class StoredFunction(Net):
    """Its deep copy calls the original's layers."""

    def __init__(self):
        super().__init__()
        self.apply = lambda t, x: Net.forward(self, t, x)

    def forward(self, t, x):
        return self.apply(t, x)


def test_an_anchor_that_moves_with_the_network_is_refused():
    net, (t, x, target) = StoredFunction(), batch()
    with pytest.raises(ConfigError, match=r"it changes with the weights that are trained.*T18"):
        started(net).loss(0, net(t, x), target, lambda model: model(t, x))


@pytest.mark.parametrize("before", [True, False])
def test_mixed_precision_of_accelerate(before):
    """The anchor is taken before the network is prepared, or after: then it has the same autocast in its forward."""
    from accelerate import Accelerator
    from accelerate.state import AcceleratorState

    AcceleratorState._reset_state(reset_partial_state=True)  # one state a process, also of other tests
    net, (t, x, target) = network(), batch()
    gft = Gradual(10, HALF)
    if before:
        gft.anchor_of(net)
    accelerator = Accelerator(cpu=True, mixed_precision="bf16")
    model = accelerator.prepare(net)
    if not before:
        gft.anchor_of(model)
    loss = gft.loss(0, model(t, x), target, lambda each: each(t, x))
    accelerator.backward(loss)
    trained(net)
    loss = gft.loss(1, model(t, x), target, lambda each: each(t, x))
    expected = functional.mse_loss(net(t, x), (target + network()(t, x)) / 2)
    torch.testing.assert_close(loss, expected, rtol=0.02, atol=0)
    AcceleratorState._reset_state(reset_partial_state=True)


def test_a_run_is_continued_with_the_same_anchor_only():
    net, (t, x, target) = network(), batch()

    def call(model):
        return model(t, x)

    gft = started(net)
    gft.loss(0, net(t, x), target, call)
    gft.loss(1, trained(net)(t, x), target, call)
    state = json.loads(json.dumps(gft.state_dict()))
    with pytest.raises(ConfigError, match="the first step is 2, so a run is continued"):
        started(net).loss(2, net(t, x), target, call)
    with pytest.raises(ConfigError, match="Call anchor_of with the pretrained network"):
        started(net).load_state_dict(state)
    with pytest.raises(ConfigError, match="started with schedule"):
        started(network(), "linear").load_state_dict(state)
    longer = Gradual(20, HALF)
    longer.anchor_of(network())
    with pytest.raises(ConfigError, match="started with steps = 10"):
        longer.load_state_dict(state)
    again = started(network())
    again.load_state_dict(state)
    torch.testing.assert_close(again.loss(2, net(t, x), target, call), gft.loss(2, net(t, x), target, call))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (lambda net, t, x, y: (0, net(t, x), y[:, :1], lambda m: m(t, x)), "a prediction and a target of one shape"),
        (lambda net, t, x, y: (-1, net(t, x), y, lambda m: m(t, x)), "wanted a step >= 0"),
        (lambda net, t, x, y: (0, net(t, x), y, None), "wanted the call by which the anchor is evaluated"),
        (lambda net, t, x, y: (0, net(t, x), y, lambda m: m(t, x)[:, :1]), "prediction of the anchor of shape"),
        (lambda net, t, x, y: (0, net(t, x), y, lambda m: {"out": m(t, x)}), "gave a dict"),
    ],
)
def test_inputs_that_do_not_fit_are_one_error(arguments, message):
    net = network()
    with pytest.raises(ConfigError, match=message):
        started(net).loss(*arguments(net, *batch()))


def test_without_an_anchor_there_is_no_loss():
    net, (t, x, target) = network(), batch()
    with pytest.raises(ConfigError, match="there is no anchor yet"):
        Gradual(10).loss(0, net(t, x), target, lambda model: model(t, x))


def test_what_is_measured_is_the_statistic_of_the_theory():
    net = network()
    gft = started(net, window=3)
    anchor = network()
    assert set(gft.measured()) == {"temperature", "retention"}
    t, x, target = batch()
    gft.loss(0, net(t, x), target, lambda model: model(t, x))
    trained(net)
    batches = []
    for step in range(1, 5):
        t, x, target = batch(step)
        gft.loss(step, net(t, x), target, lambda model, t=t, x=x: model(t, x))
        with torch.no_grad():
            batches.append(statistics(net(t, x), target, anchor(t, x), 1.0))
    expected, measured = summary(batches[-3:]), gft.measured()
    assert (measured["T"], measured["T_stderr"]) == pytest.approx((expected.t.value, expected.t.stderr))
    assert (measured["reached"], measured["reached_stderr"]) == pytest.approx(
        (expected.reached.value, expected.reached.stderr), nan_ok=True
    )
    assert measured["retention"] == 0.5
