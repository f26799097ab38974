"""Networks of every convention give one drift: closed forms of a Gaussian, each told by an oracle of its own."""

import itertools

import pytest
import torch
from support import oracles
from torch import nn

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.networks.convention import Convention
from gftkit.networks.foreign import ForeignDrift
from gftkit.sampling.integrate import generate

REGISTRY = gftkit.load()
EXACT = 1e-10
"""Float64 round-off, amplified by divisions by sigma or alpha, where t is farther from its ends than the margins."""

PATHS = {
    "linear": {"name": "linear"},
    "trigonometric": {"name": "trigonometric"},
    "affine": {"name": "affine", "alpha": "t**2", "sigma": "1 - t"},
}
PREDICTS = ("velocity", "noise", "data", "score")
RANGES = {"as is": {}, "0 to 1": {"range": (0.0, 1.0)}, "latent": {"latent_scale": 0.3, "latent_shift": 0.7}}


def path_of(name):
    return REGISTRY.build("path", PATHS[name])


def inputs(d=3, batch=9, seed=1, low=0.06, high=0.98):
    generator = torch.Generator().manual_seed(seed)
    t = low + (high - low) * torch.rand(batch, generator=generator, dtype=torch.float64)
    return t, torch.randn(batch, d, generator=generator, dtype=torch.float64)


def error(convention, oracle, truth, t, x):
    """The largest error of the drift, in units of its typical size."""
    wanted = truth.velocity(t, x)
    with torch.no_grad():
        got = ForeignDrift(oracle, Convention.of(convention), truth.path)(t, x)
    return float((got - wanted).abs().max() / (1 + wanted.abs().mean()))


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("predicts", PREDICTS)
@pytest.mark.parametrize("values", RANGES)
@pytest.mark.parametrize("rescales", ["data", "state"])
def test_every_convention_tells_the_same_drift(path, predicts, values, rescales):
    truth = oracles.a_gaussian(path_of(path))
    block = {"predicts": predicts, "rescales": rescales, **RANGES[values]}
    convention = Convention.of(block)
    told = truth.known_as(*convention.scale_and_shift, rescales == "state")
    if rescales == "state" and path != "linear":
        told = Mapped(truth, *convention.scale_and_shift)  # the state map is no Gaussian path of the same form
    t, x = inputs()
    for reverse, scale, sign in itertools.product((False, True), (1.0, 1000.0), (1, -1)):
        oracle = oracles.Oracle(told, predicts, reverse, scale, sign)
        right = {**block, "time": "reversed" if reverse else "forward", "time_scale": scale, "sign": sign}
        assert error(right, oracle, truth, t, x) < EXACT
        if (reverse, scale, sign) != (True, 1000.0, -1):
            continue
        for wrong in (
            {"time": "forward" if reverse else "reversed"},
            {"time_scale": 1001.0 - scale},
            {"sign": -sign},
            {"predicts": "data" if predicts == "noise" else "noise"},
            {"range": (-1.0, 2.0)},
            {"latent_shift": 0.1},
        ):
            assert error({**right, **wrong}, oracle, truth, t, x) > 1e-3, wrong


class Mapped(oracles.Gaussian):
    """A flow whose whole state is known as a x + c: its answers are those of the truth, in other values."""

    def __init__(self, truth, scale, shift):
        self.truth, self.scale, self.shift = truth, scale, shift

    def _back(self, y):
        return (y - self.shift) / self.scale

    def expectations(self, t, y):
        return tuple(self.scale * value + self.shift for value in self.truth.expectations(t, self._back(y)))

    def score(self, t, y):
        return self.truth.score(t, self._back(y)) / self.scale

    def velocity(self, t, y):
        return self.scale * self.truth.velocity(t, self._back(y))


@pytest.mark.parametrize("predicts", ["velocity", "noise", "data"])
def test_any_source_does_where_no_score_is_asked_for(predicts):
    truth = oracles.a_gaussian(path_of("linear"), normal=False)
    t, x = inputs()
    for block in ({}, {"range": (0.0, 1.0)}):
        convention = {**block, "predicts": predicts}
        told = truth.known_as(*Convention.of(convention).scale_and_shift, state=False)
        assert error(convention, oracles.Oracle(told, predicts), truth, t, x) < EXACT


def test_a_score_tells_nothing_for_another_source():
    truth = oracles.a_gaussian(path_of("linear"), normal=False)
    assert error({"predicts": "score"}, oracles.Oracle(truth, "score"), truth, *inputs()) > 0.1


@pytest.mark.parametrize(("predicts", "end"), [("noise", 0.0), ("score", 0.0), ("data", 1.0)])
@pytest.mark.parametrize("values", RANGES)
def test_at_its_singular_end_a_prediction_is_taken_at_the_margin(predicts, end, values):
    truth = oracles.a_gaussian(path_of("linear"))
    margin = 1e-3
    convention = {"predicts": predicts, "margin": margin, **RANGES[values]}
    told = truth.known_as(*Convention.of(convention).scale_and_shift, state=False)
    _, x = inputs()
    for beyond in (0.0, margin / 2):
        t = torch.full((len(x),), abs(end - beyond), dtype=torch.float64)
        # the drift's own change over the margin, of order margin times its time derivative
        assert 0 < error(convention, oracles.Oracle(told, predicts), truth, t, x) < 20 * margin
    other = torch.full((len(x),), 1 - end, dtype=torch.float64)
    assert error(convention, oracles.Oracle(told, predicts), truth, other, x) < EXACT
    assert error(convention, oracles.Oracle(told, predicts), truth, (1 - 2 * other) * margin + other, x) < 1e-6


@pytest.mark.parametrize(("predicts", "solver"), [("noise", "euler"), ("score", "heun"), ("data", "heun")])
def test_the_usual_margin_spares_a_network_that_is_not_exact(predicts, solver, registry):
    """Its error is divided by alpha or sigma at the margin, and a solver's first or last step takes it from there."""
    path = path_of("linear")
    truth = oracles.a_gaussian(path)
    exact = oracles.Oracle(truth, predicts)
    x0 = torch.randn(200, 3, generator=torch.Generator().manual_seed(1), dtype=torch.float64)

    def end(margin, wrong):
        convention = Convention.of({"predicts": predicts, "margin": margin})
        drift = ForeignDrift(Wrong(exact, wrong), convention, path)
        return generate(drift, path, registry.create("solver", solver), 20, x0, torch.Generator())

    def apart(one, other):
        return float((one - other).square().mean().sqrt())

    assert apart(end(None, 0.0), end(1e-3, 0.0)) < 0.03  # what the margin costs
    spared, lost = (apart(end(margin, 0.1), end(margin, 0.0)) for margin in (None, 1e-3))
    assert spared < 0.6
    assert lost > 5 * spared


class Wrong(torch.nn.Module):
    """A network with a constant error."""

    def __init__(self, network, error):
        super().__init__()
        self.network, self.error = network, error

    def forward(self, t, x):
        return self.network(t, x) + self.error


@pytest.mark.parametrize("values", RANGES)
def test_a_velocity_has_no_singular_end(values):
    truth = oracles.a_gaussian(path_of("trigonometric"))
    told = truth.known_as(*Convention.of(RANGES[values] or {"sign": 1}).scale_and_shift, state=False)
    _, x = inputs()
    for end in (0.0, 1.0):
        t = torch.full((len(x),), end, dtype=torch.float64)
        assert error(RANGES[values], oracles.Oracle(told), truth, t, x) < EXACT


@pytest.mark.parametrize(("shape", "seen"), [("batch", (9,)), ("column", (9, 1)), ("event", (9, 1)), ("scalar", ())])
def test_the_time_comes_in_the_shape_that_is_wanted(shape, seen):
    truth, (t, x) = oracles.a_gaussian(path_of("linear")), inputs()
    oracle = oracles.Oracle(truth)
    assert error({"time_shape": shape}, oracle, truth, t, x) < EXACT
    assert oracle.seen == [seen] * (9 if shape == "scalar" else 1)
    same = torch.full_like(t, 0.3)
    assert error({"time_shape": shape}, oracle, truth, same, x) < EXACT
    assert oracle.seen[-1] == seen
    assert len(oracle.seen) == (10 if shape == "scalar" else 2)


def test_integer_times_are_the_nearest():
    truth, (t, x) = oracles.a_gaussian(path_of("linear")), inputs()
    oracle = oracles.Oracle(truth, scale=1000.0, integer=True)
    block = {"time_scale": 1000.0, "integer_time": True}
    assert error(block, oracle, truth, t.mul(1000).round() / 1000, x) < EXACT
    assert 1e-6 < error(block, oracle, truth, t, x) < 1e-2


# --- calls and outputs ------------------------------------------------------------------------------------------------


class Recorder(nn.Module):
    """Gives what it was told to, and remembers how it was called."""

    def __init__(self, out=lambda x: x):
        super().__init__()
        self.out, self.calls = out, []

    def forward(self, *arguments, **named):
        self.calls.append((arguments, named))
        states = [value for value in (*arguments, *named.values()) if getattr(value, "ndim", 0) == 2]
        return self.out(states[0])


def test_a_foreign_network_is_called_as_written():
    network = Recorder()
    block = {"call": "sample=x, timestep=t, y=label", "constants": {"return_dict": False}}
    drift = ForeignDrift(network, Convention.of(block))
    assert drift.conditions == ("label",)
    t, x = inputs()
    label = torch.arange(9)
    drift(t, x, label=label)
    ((by_position, by_name),) = network.calls
    assert by_position == ()
    assert list(by_name) == ["sample", "timestep", "y", "return_dict"]
    assert by_name["sample"] is x
    assert torch.equal(by_name["timestep"], t)
    assert by_name["y"] is label
    assert by_name["return_dict"] is False
    network = Recorder()
    ForeignDrift(network, Convention.of("sit"))(t, x, label=label)
    ((by_position, by_name),) = network.calls
    assert by_position[0] is x
    assert by_position[2] is label
    assert by_name == {}
    with pytest.raises(ConfigError, match="uses 'label', which these data don't have"):
        drift(t, x)


@pytest.mark.parametrize("shape", ["batch", "column", "event", "scalar"])
def test_state_and_time_may_be_given_side_by_side(shape):
    network = Recorder(lambda both: both[:, :3])
    t, x = inputs()
    label = torch.arange(9)
    drift = ForeignDrift(network, Convention.of({"call": "input=cat(x, t, label)", "time_shape": shape}))
    assert drift.conditions == ("label",)
    same = torch.full_like(t, 0.3)
    drift(same, x, label=label)
    assert torch.equal(network.calls[0][1]["input"], torch.cat([x, same[:, None], label[:, None]], 1))
    network = Recorder(lambda both: both[:, 1:])
    assert torch.equal(ForeignDrift(network, Convention.of({"call": "cat(t, x)", "time_shape": shape}))(t, x), x)
    assert torch.equal(torch.cat([call[0][0] for call in network.calls]), torch.cat([t[:, None], x], 1))
    with pytest.raises(ConfigError, match=r"takes numbers and vectors, got shapes .9, 3, 1., .9,"):
        ForeignDrift(network, Convention.of({"call": "cat(x, t)"}))(t, x[:, :, None])


class Output(tuple):
    @property
    def sample(self):
        return self[1]


def test_the_output_is_the_part_that_is_named():
    t, x = inputs(d=4)
    for block, out in (
        ({"output": "sample"}, lambda x: Output([None, 2 * x])),
        ({"output": "sample"}, lambda x: {"sample": 2 * x}),
        ({"output": 1}, lambda x: (x, 2 * x)),
        ({"drop_channels": True}, lambda x: torch.cat([2 * x, x], 1)),
        ({"output": 0, "drop_channels": True}, lambda x: (torch.cat([2 * x, x, x], 1),)),
    ):
        assert torch.equal(ForeignDrift(Recorder(out), Convention.of(block))(t, x), 2 * x)


@pytest.mark.parametrize(
    ("block", "out", "message"),
    [
        ({}, lambda x: (x, x), "wanted a tensor, got a tuple of 2. Set `output` to the part"),
        ({}, lambda x: {"sample": x}, "got a dict with sample"),
        ({"output": "sample"}, lambda x: x, "a tensor of shape .* has no 'sample'"),
        ({"output": 2}, lambda x: (x, x), "a tuple of 2, has no '2'"),
        ({}, lambda x: torch.cat([x, x], 1), "drop_channels: true keeps the first"),
        ({}, lambda x: x[:, :1], "the network gives .9, 1. for a state of .9, 4."),
    ],
)
def test_outputs_that_do_not_fit_are_refused(block, out, message):
    drift = ForeignDrift(Recorder(out), Convention.of({"sign": 1, **block}))
    with pytest.raises(ConfigError, match=message):
        drift(*inputs(d=4))
