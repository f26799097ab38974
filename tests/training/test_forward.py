"""How a step evaluates its networks: the options that save time and memory change rounding, and nothing else."""

import json

import pytest
import torch
from torch import nn
from torch.utils._python_dispatch import TorchDispatchMode

import gftkit
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.networks.anchor import FrozenAnchor
from gftkit.networks.averages import Averages
from gftkit.runs.schema import Train
from gftkit.training.descent import OVERFLOWS, Descent
from gftkit.training.forward import Forward, recompute_activations
from gftkit.training.optimizer import optimizer_of
from gftkit_verification.testbeds.loops import shipped as loops

CPU = torch.device("cpu")
EVENT = (1, 8, 8)


@pytest.fixture
def unet(registry):
    """A small U-Net whose output isn't 0, in float64."""
    torch.manual_seed(0)
    drift = registry.create("drift", "unet", event_shape=EVENT, width=8, multipliers=(1, 2), dropout=0.1).double()
    for weight in drift.parameters():
        nn.init.normal_(weight, std=0.1)
    return drift


@pytest.fixture
def states():
    generator = torch.Generator().manual_seed(1)
    x = torch.randn(6, *EVENT, generator=generator, dtype=torch.float64)
    return torch.rand(6, generator=generator, dtype=torch.float64), x


def gradients(drift, states, train=None, seed=3):
    forward = Forward(train or Train(), CPU, EVENT)
    forward.place(drift)
    drift.train().zero_grad()
    torch.manual_seed(seed)  # of the dropout
    out, _ = forward(drift, None, *states, {})
    out.square().sum().backward()
    return torch.cat([weight.grad.flatten() for weight in drift.parameters()])


def test_recomputed_activations_give_the_same_gradient_and_run_the_blocks_twice(unet, states):
    wanted = gradients(unet, states)
    runs = []
    unet.middle[0].before.register_forward_hook(lambda *_: runs.append(1))
    gradients(unet, states)
    assert len(runs) == 1
    recompute_activations(unet)
    names = list(unet.state_dict())
    assert torch.equal(gradients(unet, states), wanted)
    assert len(runs) == 3
    assert list(unet.state_dict()) == names
    assert not torch.allclose(gradients(unet, states, seed=4), wanted)  # the dropout's seed matters: it was the same


def test_recomputed_activations_cost_nothing_without_gradient(unet, states):
    recompute_activations(unet)
    runs = []
    unet.middle[0].before.register_forward_hook(lambda *_: runs.append(1))
    with torch.no_grad():
        unet(*states)
    assert len(runs) == 1


def test_a_network_without_blocks_cannot_recompute_them(registry):
    with pytest.raises(ConfigError, match="has no blocks"):
        recompute_activations(registry.create("drift", "mlp", event_shape=(2,), width=4))


def test_the_network_is_asked_where_it_recomputes_by_itself():
    class Own(nn.Linear):
        asked = False

        def enable_gradient_checkpointing(self):
            self.asked = True

    drift = nn.Sequential(Own(1, 1))
    recompute_activations(drift)
    assert drift[0].asked


def test_channels_last_changes_the_layout_only(unet, states):
    """Without dropout, whose mask is drawn in the order of the memory."""
    for module in unet.modules():
        if isinstance(module, nn.Dropout):
            module.p = 0.0
    wanted = gradients(unet, states)
    found = gradients(unet, states, Train(channels_last=True))
    assert unet.first.weight.is_contiguous(memory_format=torch.channels_last)
    torch.testing.assert_close(found, wanted, rtol=1e-9, atol=1e-9)


def test_channels_last_wants_images():
    with pytest.raises(
        ConfigError, match=r"train.channels_last: wanted images \(channels, height, width\), got .*\(2,\)"
    ):
        Forward(Train(channels_last=True), CPU, (2,))


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_half_precision_is_for_the_activations_alone(precision):
    seen = []

    class Spy(nn.Linear):
        def forward(self, t, x):
            out = super().forward(x)
            seen.append(out.dtype)
            return out

    drift, anchor = Spy(3, 3), Spy(3, 3)
    out, anchored = Forward(Train(precision=precision), CPU, (3,))(drift, anchor, torch.rand(4), torch.randn(4, 3), {})
    assert seen == [getattr(torch, precision)] * 2
    assert out.dtype == anchored.dtype == drift.weight.dtype == torch.float32


def test_the_anchor_is_evaluated_at_the_chosen_states_with_their_conditions():
    def anchor(t, x, label):
        return x + (10 * t + 100 * label)[:, None]

    t, x, label = torch.rand(5), torch.randn(5, 2), torch.arange(5)
    forward = Forward(Train(), CPU, (2,))
    for chosen in ([1, 4], []):
        at = torch.tensor(chosen, dtype=torch.int64)
        _, anchored = forward(lambda t, x, label: x, anchor, t, x, {"label": label}, at)
        assert torch.equal(anchored, anchor(t, x, label)[at])
    assert forward(lambda t, x: x, None, t, x, {})[1] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own
def test_compiled_networks_are_the_same_to_rounding(registry):
    """Drift and anchor in one graph; the share of the anchor may change from step to step."""
    torch.manual_seed(0)
    drift = registry.create("drift", "mlp", event_shape=(2,), width=8).double()
    t, x = torch.rand(6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    plain, compiled = (Forward(Train(compile=how), CPU, (2,)) for how in (False, True))
    for chosen in (None, torch.tensor([0, 2, 3]), torch.tensor([1])):
        found = [forward(drift, FrozenAnchor(drift), t, x, {}, chosen) for forward in (plain, compiled)]
        for one, other in zip(*found, strict=True):
            torch.testing.assert_close(one, other, rtol=1e-12, atol=1e-12)


# The loop


CONFIG = {
    "drift": {"name": "mlp", "width": 16, "depth": 2},
    "data": {"name": "two-moons"},
    "train": {"steps": 12, "batch_size": 12, "checkpoint_every": 4, "log_every": 4},
    "evaluate": {"every": 12, "count": 20, "metrics": [], "solver": {"name": "euler", "steps": 2}},
}


@pytest.fixture(scope="module")
def pretrained(tmp_path_factory, registry):
    return gftkit.pretrain(CONFIG, tmp_path_factory.mktemp("runs") / "pre", registry=registry).folder


@pytest.fixture
def tune(pretrained, tmp_path, registry):
    """Fine-tune with some options of ``train``; gives the final weights."""

    def tuned(objective=None, **train):
        config = {
            **json.loads(json.dumps(CONFIG)),
            "pretrained": str(pretrained),
            "schedule": {"name": "constant", "value": 0.5},
            "objective": objective or {},
        }
        config.pop("drift")
        config["train"].update(train)
        name = "-".join(map(str, [*train.values(), *(objective or {}).values()])) or "plain"
        return gftkit.finetune(config, tmp_path / name, registry=registry)

    return tuned


def apart(one, other):
    """The largest difference between two runs' final weights."""
    return max(
        float((a - b).abs().max()) for a, b in zip(*(run.weights()[0].values() for run in (one, other)), strict=True)
    )


def test_a_batch_in_parts_is_the_same_step(tune):
    """Float32 rounding, through twelve steps of Adam."""
    plain = tune()
    assert apart(plain, tune(accumulate=3)) < 2e-5
    assert apart(plain, tune(batch_size=4)) > 1e-3  # what a step of the first part alone would give
    shared = {"anchor_share": 0.5}
    assert apart(tune(shared), tune(shared, accumulate=2)) < 2e-5


@pytest.mark.parametrize("precision", ["bfloat16", "float16"])
def test_a_run_in_half_precision_stays_near(tune, precision):
    assert 0 < apart(tune(), tune(precision=precision)) < 2e-2


def test_a_batch_that_cannot_be_divided_is_refused(tune):
    with pytest.raises(
        ConfigError, match=r"12 pairs can't be divided evenly between 1 processes with 5 parts .* multiple of 5"
    ):
        tune(accumulate=5)


def test_recomputing_is_refused_before_anything_is_written(tune, tmp_path):
    with pytest.raises(ConfigError, match=r"train\.gradient_checkpointing"):
        tune(gradient_checkpointing=True)
    assert not any(tmp_path.rglob("config.yaml"))


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


def small_loop(registry, share=1.0, drift=None, **train):
    """The shipped steps on a Gaussian problem in two dimensions."""
    torch.manual_seed(0)
    return loops.build_loop(
        registry=registry,
        drift=drift or registry.create("drift", "mlp", event_shape=(2,), width=8),
        data=registry.create("dataset", "gaussian-mixture"),
        source=lambda n, generator: torch.randn(n, 2, generator=generator),
        path=registry.create("path", "linear"),
        coupling=registry.create("coupling", "optimal-transport"),
        schedule=0.5,
        train=Train(**{"steps": 8, "batch_size": 8, **train}),
        seed=1,
        anchor_share=share,
    )


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


def test_a_run_that_overflows_suggests_bfloat16(pretrained, tmp_path, registry, monkeypatch):
    from gftkit.training import steps

    monkeypatch.setitem(steps.LOSSES, "blended", lambda b, *_: 1e38 * b.flatten(1).exp().sum(1) * 1e38)
    config = {**CONFIG, "train": {**CONFIG["train"], "precision": "float16"}}
    with pytest.raises(DivergenceError, match=r"not finite at step 1, .*set train\.precision to bfloat16"):
        gftkit.pretrain(config, tmp_path / "run", registry=registry)


# The anchor on a share of the batch


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
