"""How a step evaluates its networks: the options that save time and memory change rounding, and nothing else."""

import json

import pytest
import torch
from torch import nn

import gftkit
from gftkit.kernel.errors import ConfigError, DivergenceError
from gftkit.networks.anchor import FrozenAnchor
from gftkit.runs.schema import Train
from gftkit.theory import objective
from gftkit.training.forward import Forward, recompute_activations

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
    out, _ = forward(drift, None, *states, {}, {})
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
    out, anchored = Forward(Train(precision=precision), CPU, (3,))(
        drift, anchor, torch.rand(4), torch.randn(4, 3), {}, {}
    )
    assert seen == [getattr(torch, precision)] * 2
    assert out.dtype == anchored.dtype == drift.weight.dtype == torch.float32


def test_the_anchor_is_evaluated_at_the_chosen_states_with_their_conditions():
    def anchor(t, x, label):
        return x + (10 * t + 100 * label)[:, None]

    t, x, label = torch.rand(5), torch.randn(5, 2), torch.arange(5)
    forward = Forward(Train(), CPU, (2,))
    for chosen in ([1, 4], []):
        at = torch.tensor(chosen, dtype=torch.int64)
        _, anchored = forward(lambda t, x, label: x, anchor, t, x, {"label": label}, {"label": label}, at)
        assert torch.equal(anchored, anchor(t, x, label)[at])
    assert forward(lambda t, x: x, None, t, x, {}, {})[1] is None


@pytest.mark.slow
@pytest.mark.filterwarnings("ignore:.*torch.jit.*:DeprecationWarning")  # torch's own
def test_compiled_networks_are_the_same_to_rounding(registry):
    """Drift and anchor in one graph; the share of the anchor may change from step to step."""
    torch.manual_seed(0)
    drift = registry.create("drift", "mlp", event_shape=(2,), width=8).double()
    t, x = torch.rand(6, dtype=torch.float64), torch.randn(6, 2, dtype=torch.float64)
    plain, compiled = (Forward(Train(compile=how), CPU, (2,)) for how in (False, True))
    for chosen in (None, torch.tensor([0, 2, 3]), torch.tensor([1])):
        found = [forward(drift, FrozenAnchor(drift), t, x, {}, {}, chosen) for forward in (plain, compiled)]
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


def test_a_run_that_overflows_suggests_bfloat16(pretrained, tmp_path, registry, monkeypatch):
    monkeypatch.setitem(objective.LOSSES, "blended", lambda b, *_: 1e38 * b.flatten(1).exp().sum(1) * 1e38)
    config = {**CONFIG, "train": {**CONFIG["train"], "precision": "float16"}}
    with pytest.raises(DivergenceError, match=r"not finite at step 1, .*set train\.precision to bfloat16"):
        gftkit.pretrain(config, tmp_path / "run", registry=registry)
