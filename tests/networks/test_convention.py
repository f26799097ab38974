"""Conventions of foreign networks: presets, bad blocks, and what a path or a coupling contradicts."""

import pytest
from torch import nn

import gftkit
from gftkit.kernel.errors import ConfigError, GftkitError
from gftkit.networks.convention import PRESETS, Convention, parse_call
from gftkit.networks.foreign import ForeignDrift, check_path, check_score

PATHS = {
    "linear": {"name": "linear"},
    "trigonometric": {"name": "trigonometric"},
    "affine": {"name": "affine", "alpha": "t**2", "sigma": "1 - t"},
}


REGISTRY = gftkit.load()


def path_of(name):
    return REGISTRY.build("path", PATHS[name])


class Recorder(nn.Module):
    """Gives what it was told to, and remembers how it was called."""

    def __init__(self, out=lambda x: x):
        super().__init__()
        self.out, self.calls = out, []

    def forward(self, *arguments, **named):
        self.calls.append((arguments, named))
        states = [value for value in (*arguments, *named.values()) if getattr(value, "ndim", 0) == 2]
        return self.out(states[0])


@pytest.mark.parametrize(
    ("call", "message"),
    [
        ("t", "lacks x"),
        ("cat(t, label)", "lacks x"),
        ("cat(x)", "'cat.x.' is neither"),
        ("cat(x, t", "neither"),
        ("cat(x, )", "neither"),
        ("cat(x, cat(t, y))", "neither"),
        ("cat(x, t), t", "has the value 't' twice"),
        ("x, x", "has the value 'x' twice"),
        ("x, a=t, a=label", "has the argument 'a' twice"),
        ("sample=x, t", "'t' by position after an argument by name"),
        ("x, 2t", "'2t' is neither WHAT nor NAME=WHAT"),
        ("x, a=b=c", "neither WHAT nor NAME=WHAT"),
        ("x,", "'' is neither"),
        ("x, lambda=t", "neither"),
    ],
)
def test_bad_call_strings_are_refused(call, message):
    with pytest.raises(ConfigError, match=message):
        parse_call(call)
    with pytest.raises(ConfigError, match=message):
        Convention.of({"call": call})


# --- presets ----------------------------------------------------------------------------------------------------------


def test_presets_and_their_fields_can_be_overridden():
    assert Convention.of("diffusers") == Convention.of({"preset": "diffusers"})
    changed = Convention.of({"preset": "diffusers", "predicts": "noise"})
    assert (changed.predicts, changed.time, changed.output) == ("noise", "reversed", "sample")
    for name in PRESETS:
        found = Convention.of(name)
        assert Convention.of(found.to_dict()) == found
        assert Convention.of(found.differing()) == found
    assert len({Convention.of(name) for name in ()} | {str(Convention.of(name)) for name in PRESETS}) == len(PRESETS)


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"preset": "difusers"}, "unknown preset of a convention: 'difusers'. Did you mean 'diffusers'?"),
        ({"tme": "reversed"}, "unknown option of convention: 'tme'. Did you mean 'time'?"),
        ({"time": "backward"}, "convention.time: wanted 'forward' or 'reversed', got 'backward'"),
        ({"time_scale": 0}, "convention.time_scale: wanted float, > 0, got 0"),
        ({"sign": 0}, "convention.sign: wanted 1 or -1, got 0"),
        ({"predicts": "epsilon"}, "convention.predicts: wanted 'velocity' or 'drift' or 'noise'"),
        ({"range": [1, -1]}, "wanted .low, high. with low < high"),
    ],
)
def test_bad_convention_blocks_are_refused(block, message):
    with pytest.raises(GftkitError, match=message):
        Convention.of(block)


# --- paths and scores -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("block", "message"),
    [
        ({"predicts": "velocity"}, "velocity doesn't determine the drift on this path"),
        ({"predicts": "score"}, "score doesn't determine the drift on this path"),
        ({"predicts": "drift", "time": "reversed"}, "g.2 times the score"),
        ({"predicts": "drift", "range": (0, 1)}, "rescaled only on paths without noise"),
    ],
)
def test_a_convention_that_contradicts_a_noisy_path_is_refused(block, message):
    bridge = REGISTRY.build("path", {"name": "brownian-bridge"})
    with pytest.raises(ConfigError, match=message):
        check_path(Convention.of(block), bridge)
    check_path(Convention.of(block), path_of("linear"))
    check_path(Convention.of({"predicts": "drift", "time_scale": 1000.0}), bridge)


@pytest.mark.parametrize("block", [{"predicts": "noise"}, {"range": (0, 1)}])
def test_a_conversion_wants_a_path(block):
    with pytest.raises(ConfigError, match="requires the path of the run"):
        ForeignDrift(Recorder(), Convention.of(block))


def test_a_score_wants_independent_pairs_and_a_normal_source():
    score = Convention.of({"predicts": "score"})
    check_score(score, independent=True, normal=True)
    check_score(Convention.of("torchcfm"), independent=False, normal=False)
    with pytest.raises(ConfigError, match="only if x0 is independent of x1"):
        check_score(score, independent=False, normal=True)
    with pytest.raises(ConfigError, match="only for the source"):
        check_score(score, independent=True, normal=False)
