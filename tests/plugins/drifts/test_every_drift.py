"""Every registered drift keeps the contract; mlp and unet refuse what they can't take."""

import hypothesis
import pytest
import torch
from hypothesis import strategies as st
from torch import nn
from torch.func import jvp

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit_plugins.drifts.unet import Attention

REGISTRY = gftkit.load()
EVENT = (1, 8, 8)
CLASSES = 3
SMALL = {"mlp": {"width": 16}, "unet": {"width": 8, "attention": 2}}
"""Options that make the built-ins quick to test."""

quick = hypothesis.settings(max_examples=15, deadline=None)


def can_be_made(name):
    """Whether a drift needs nothing but what the kernel supplies."""
    options = REGISTRY.describe("drift", name).options
    return all(option.supplied or not option.required for option in options)


NAMES = [name for name in REGISTRY.names("drift") if can_be_made(name)]
CONDITIONAL = [
    name for name in NAMES if "conditional" in {option.name for option in REGISTRY.describe("drift", name).options}
]


def make(name, seed=0, event_shape=EVENT, **options):
    """A drift with every parameter moved off its start, so that layers that start at zero are seen."""
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        options = {**SMALL.get(name, {}), **options}
        drift = REGISTRY.build(
            "drift", {"name": name, **options}, event_shape=list(event_shape), classes=options.pop("classes", CLASSES)
        )
        with torch.no_grad():
            for parameter in drift.parameters():
                parameter += 0.05 * torch.randn_like(parameter)
    return drift


def inputs(batch=6, event_shape=EVENT, dtype=torch.float32):
    generator = torch.Generator().manual_seed(1)
    t = torch.rand(batch, generator=generator, dtype=dtype)
    x = torch.randn(batch, *event_shape, generator=generator, dtype=dtype)
    return t, x, torch.arange(batch) % CLASSES


def conditions(drift, label):
    return {"label": label} if "label" in getattr(drift, "conditions", ()) else {}


def test_the_built_ins_are_registered():
    assert {"mlp", "unet"} <= set(NAMES)
    assert {"mlp", "unet"} <= set(CONDITIONAL)


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_shape_and_dtype_come_back(name, dtype):
    drift = make(name).to(dtype)
    t, x, label = inputs(dtype=dtype)
    out = drift(t, x, **conditions(drift, label))
    assert out.shape == x.shape
    assert out.dtype == dtype
    assert torch.isfinite(out).all()


@pytest.mark.parametrize("name", NAMES)
def test_samples_of_a_batch_do_not_see_each_other(name):
    drift = make(name).double().eval()
    t, x, label = inputs(dtype=torch.float64)
    whole = drift(t, x, **conditions(drift, label))
    alone = drift(t[2:3], x[2:3], **conditions(drift, label[2:3]))
    torch.testing.assert_close(whole[2:3], alone, rtol=1e-9, atol=1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_output_depends_on_time(name):
    drift = make(name).double().eval()
    t, x, label = inputs(dtype=torch.float64)
    moved = drift(1 - t, x, **conditions(drift, label)) - drift(t, x, **conditions(drift, label))
    assert (moved.flatten(1).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("name", NAMES)
def test_saved_and_loaded_weights_give_the_same_drift(name):
    first, second = make(name, seed=1).eval(), make(name, seed=2).eval()
    t, x, label = inputs()
    before = first(t, x, **conditions(first, label))
    assert not torch.equal(before, second(t, x, **conditions(second, label)))
    second.load_state_dict(first.state_dict())
    assert torch.equal(before, second(t, x, **conditions(second, label)))


@pytest.mark.parametrize("name", NAMES)
def test_gradients_reach_every_parameter(name):
    drift = make(name, conditional=True) if name in CONDITIONAL else make(name)
    t, x, label = inputs()
    drift(t, x, **conditions(drift, label)).square().sum().backward()
    untouched = [key for key, value in drift.named_parameters() if value.grad is None or not value.grad.any()]
    assert not untouched


@pytest.mark.filterwarnings("ignore:.torch.jit.script. is deprecated:DeprecationWarning")  # torch's own, at first use
@pytest.mark.parametrize("name", NAMES)
def test_forward_mode_derivative_agrees_with_a_difference(name):
    drift = make(name).double().eval()
    t, x, label = inputs(dtype=torch.float64)
    given, h = conditions(drift, label), 1e-5
    _, exact = jvp(lambda state: drift(t, state, **given), (x,), (torch.ones_like(x),))
    difference = (drift(t, x + h, **given) - drift(t, x - h, **given)) / (2 * h)
    torch.testing.assert_close(exact, difference, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("name", NAMES)
def test_initial_weights_come_from_the_global_generator_alone(name):
    first, again, other = make(name, seed=1), make(name, seed=1), make(name, seed=2)
    same = [torch.equal(a, b) for a, b in zip(first.parameters(), again.parameters(), strict=True)]
    assert all(same)
    assert not all(torch.equal(a, b) for a, b in zip(first.parameters(), other.parameters(), strict=True))


@pytest.mark.parametrize("name", CONDITIONAL)
def test_label_changes_the_output_of_a_conditional_drift(name):
    drift = make(name, conditional=True).double().eval()
    assert drift.conditions == ("label",)
    t, x, label = inputs(dtype=torch.float64)
    moved = drift(t, x, label=label) - drift(t, x, label=(label + 1) % CLASSES)
    assert (moved.flatten(1).norm(dim=1) > 1e-6).all()


@pytest.mark.parametrize("name", CONDITIONAL)
@pytest.mark.parametrize(
    ("label", "message"),
    [
        (None, "label is missing"),
        (torch.zeros(5, dtype=torch.int64), r"wanted integers of shape \(6,\)"),
        (torch.zeros(6), r"got torch.float32"),
        (torch.full((6,), CLASSES + 1), "wanted classes from 0 to 2, or 3 for none, got up to 4"),
    ],
)
def test_a_conditional_drift_refuses_a_bad_label(name, label, message):
    drift = make(name, conditional=True)
    t, x, _ = inputs()
    with pytest.raises(ValueError, match=message):
        drift(t, x, label=label)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_an_unconditional_drift_refuses_a_label(name):
    drift = make(name)
    t, x, label = inputs()
    assert drift.conditions == ()
    with pytest.raises(ValueError, match="doesn't use labels"):
        drift(t, x, label=label)


@pytest.mark.parametrize("name", CONDITIONAL)
def test_conditional_without_classes_is_refused(name):
    with pytest.raises(ConfigError, match="the data have none"):
        REGISTRY.create("drift", name, event_shape=list(EVENT), conditional=True)


@pytest.mark.parametrize("name", ["mlp", "unet"])
@pytest.mark.parametrize(("t", "x"), [((6,), (6, 8, 8)), ((5,), (6, 1, 8, 8)), ((6, 1), (6, 1, 8, 8)), ((), (1, 8, 8))])
def test_wrong_shapes_are_refused(name, t, x):
    with pytest.raises(ValueError, match=r"x of shape \(batch, 1, 8, 8\), got"):
        make(name)(torch.zeros(t), torch.zeros(x))


@quick
@hypothesis.given(event=st.lists(st.integers(1, 5), max_size=4), depth=st.integers(1, 3), batch=st.integers(1, 3))
def test_mlp_takes_any_event_shape(event, depth, batch):
    drift = make("mlp", event_shape=event, depth=depth)
    t, x, _ = inputs(batch, tuple(event))
    assert drift(t, x).shape == x.shape
    assert sum(isinstance(layer, nn.SiLU) for layer in drift.modules()) == depth


@quick
@hypothesis.given(
    channels=st.integers(1, 4),
    sides=st.tuples(st.integers(2, 5), st.integers(2, 5)),
    multipliers=st.lists(st.integers(1, 3), min_size=1, max_size=3),
    blocks=st.integers(1, 2),
    attention=st.integers(0, 3),
    width=st.sampled_from([4, 6, 8]),
)
def test_unet_takes_images_whose_sides_divide(channels, sides, multipliers, blocks, attention, width):
    event = (channels, *(side * 2 ** (len(multipliers) - 1) for side in sides))
    options = {"multipliers": multipliers, "blocks": blocks, "attention": attention, "width": width}
    drift = make("unet", event_shape=event, **options)
    t, x, _ = inputs(2, event)
    assert drift(t, x).shape == x.shape


@pytest.mark.parametrize(("event", "advice"), [((1, 10, 8), "fewer multipliers"), ((64,), "Use mlp")])
def test_unet_refuses_what_it_can_not_halve(event, advice):
    with pytest.raises(ConfigError, match=advice):
        make("unet", event_shape=event)


def attended(attention, x, heads):
    """What a layer of attention should give, by torch's own."""
    parts = attention.to_qkv(attention.norm(x).flatten(2)).chunk(3, dim=1)
    query, key, value = (part.unflatten(1, (heads, -1)).mT for part in parts)  # (batch, heads, pixels, channels)
    given = nn.functional.scaled_dot_product_attention(query, key, value)
    return x + attention.out(given.mT.flatten(1, 2)).reshape(x.shape)


@pytest.mark.parametrize(("heads", "head_channels"), [(1, None), (3, 4)])
def test_attention_has_heads_of_its_own(heads, head_channels):
    with torch.random.fork_rng():
        torch.manual_seed(0)
        attention, x = Attention(12, head_channels).double(), torch.randn(2, 12, 3, 2, dtype=torch.float64)
        nn.init.normal_(attention.out.weight)
    out = attention(x)
    torch.testing.assert_close(out, attended(attention, x, heads))
    assert not torch.allclose(out, attended(attention, x, 2))


def test_unet_refuses_heads_that_do_not_divide_its_channels():
    assert make("unet", attention=1, head_channels=16)(*inputs()[:2]).shape == (6, *EVENT)
    with pytest.raises(ConfigError, match="head_channels: 16 doesn't divide the 8 channels of a level with attention"):
        make("unet", attention=3, head_channels=16)


def test_a_new_unet_is_zero():
    drift = REGISTRY.create("drift", "unet", event_shape=list(EVENT), width=8)
    t, x, _ = inputs()
    assert not drift(t, x).any()


def test_dropout_acts_in_training_only():
    drift = make("unet", dropout=0.5)
    t, x, _ = inputs()
    assert not torch.equal(drift(t, x), drift(t, x))
    drift.eval()
    assert torch.equal(drift(t, x), drift(t, x))


class ForgetsTime(nn.Module):
    """A broken drift: the check of time must reject it."""

    def forward(self, t, x):
        return x


class MixesBatch(nn.Module):
    """A broken drift: the check of independence must reject it."""

    def forward(self, t, x):
        return x - x.mean(0)


@pytest.mark.parametrize(
    ("broken", "check"),
    [(ForgetsTime, test_output_depends_on_time), (MixesBatch, test_samples_of_a_batch_do_not_see_each_other)],
)
def test_broken_drifts_are_rejected(broken, check, monkeypatch):
    monkeypatch.setitem(globals(), "make", lambda name: broken())
    with pytest.raises(AssertionError):
        check("broken")
