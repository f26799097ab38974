"""The convention doctor finds the convention that a network was made with, says when it can't, and never guesses."""

import pytest
import torch
from support import networks as oracles
from torch import nn

import gftkit
from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.experiment.building import build_source
from gftkit.inspection import hypotheses as trial
from gftkit.inspection import probing, ranking
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError, InspectionError
from gftkit.networks.convention import PRESETS, Convention
from gftkit.networks.foreign_weights import Candidate

REGISTRY = gftkit.load()
PATH = REGISTRY.build("path", {"name": "linear"})
INDEPENDENT = REGISTRY.build("coupling", {"name": "independent"})


class Law:
    """Samples of an oracle's data."""

    range = None

    def __init__(self, truth):
        self.truth, self.event_shape = truth, truth.mean1.shape

    def draw(self, n, generator):
        root = torch.linalg.cholesky(self.truth.cov1)
        noise = torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float64)
        return Batch((self.truth.mean1 + noise @ root.mT).float())


class Told(nn.Module):
    """An oracle with a weight that turns it off, so that it can be untrained."""

    def __init__(self, oracle):
        super().__init__()
        self.oracle, self.on = oracle, nn.Parameter(torch.ones((), dtype=torch.float64))

    def answer(self, t, x):
        return (self.on * self.oracle(t.double(), x.double())).to(x.dtype)

    def forward(self, t, x):
        return self.answer(t, x)


def look(network, truth, weights=None, coupling=INDEPENDENT, **options):
    """An inspection of a network, whose weights are compared with those turned off."""
    trained = {name: value.clone() for name, value in network.state_dict().items()}
    network.on.data.zero_()
    candidates = [Candidate(name, {**trained, **changed}) for name, changed in (weights or {"": {}}).items()]
    samples = Samples(Law(truth), "data")
    facts = Facts(tuple(samples.event_shape), None, None)
    source = build_source({"name": "gaussian"}, facts.event_shape, REGISTRY)
    options = {"count": 2048, **options}
    return ranking.inspect(network, candidates, samples, facts, path=PATH, source=source, coupling=coupling, **options)


TRUTH = oracles.a_gaussian(PATH, seed=2)
USUAL = {"time": "forward", "time_scale": 1.0, "predicts": "velocity", "sign": 1}
"""Fields that are known where a test asks for others."""

MADE = [
    {},
    {"reverse": True, "scale": 1000.0},
    {"reverse": True},
    {"scale": 1000.0, "sign": -1},
    {"predicts": "noise"},
    {"predicts": "noise", "reverse": True, "scale": 1000.0},
    {"predicts": "data", "sign": -1},
    {"predicts": "score", "reverse": True},
]


@pytest.mark.parametrize("made", MADE, ids=str)
def test_the_convention_that_a_network_was_made_with_is_found(made):
    found = look(Told(oracles.Oracle(TRUTH, **made)), TRUTH)
    best = found.best.hypothesis.convention
    assert found.verdict == "clear"
    assert best.time == ("reversed" if made.get("reverse") else "forward")
    assert best.time_scale == made.get("scale", 1.0)
    assert best.predicts == made.get("predicts", "velocity")
    assert best.sign == made.get("sign", 1)
    assert best.call == "t, x"
    assert found.best.slope.value == pytest.approx(1, abs=5 * found.best.slope.stderr)
    assert not found.notes


@pytest.mark.parametrize("state", [False, True])
def test_the_range_is_found_for_bounded_data(state):
    """Data well within [-1, 1], which the network knows in [0, 1]."""
    small = torch.tensor(0.2, dtype=torch.float64)
    truth = oracles.Gaussian(PATH, *oracles.law(0, normal=True), small * TRUTH.mean1, small**2 * TRUTH.cov1)
    network = Told(oracles.Oracle(truth.known_as(0.5, 0.5, state), reverse=True))
    found = look(network, truth, fixed={"predicts": "velocity", "sign": 1})
    best = found.best.hypothesis.convention
    assert found.verdict == "clear"
    assert (best.range, best.rescales, best.time) == ((0.0, 1.0), "state" if state else "data", "reversed")


def test_the_better_weights_of_a_file_are_found():
    found = look(
        Told(oracles.Oracle(TRUTH)), TRUTH, {"raw": {"on": torch.tensor(0.8).double()}, "ema": {}}, fixed=USUAL
    )
    assert found.verdict == "clear"
    assert found.best.hypothesis.weights == "ema"


def test_weights_that_are_hardly_better_are_a_close_call():
    nearly = {"on": torch.tensor(0.98).double()}
    found = look(Told(oracles.Oracle(TRUTH)), TRUTH, {"raw": nearly, "ema": {}}, fixed=USUAL, count=128)
    assert found.verdict == "close call"
    assert {found.best.hypothesis.weights, *(rival.hypothesis.weights for rival in found.rivals)} == {"raw", "ema"}


def test_equal_weights_are_one_hypothesis():
    found = look(Told(oracles.Oracle(TRUTH)), TRUTH, {"raw": {}, "ema": {}}, fixed=USUAL)
    assert found.verdict == "clear"
    assert [same.weights for same in found.best.same] == ["ema"]
    assert any("differences don't matter" in note for note in found.notes)


def test_a_symmetric_case_is_said_to_be_one():
    """For data N(0, I) v(1 - t, x) = -v(t, x): the direction of time can't be known, and needn't be."""
    normal = oracles.Gaussian(PATH, *oracles.law(0, normal=True), *oracles.law(0, normal=True))
    found = look(Told(oracles.Oracle(normal)), normal, count=4096)
    assert found.verdict == "clear"
    assert found.best.hypothesis.convention.time == "forward"
    assert any(same.convention.time == "reversed" for same in found.best.same)
    assert any("differences don't matter" in note for note in found.notes)


def random_network(d, seed):
    with torch.random.fork_rng():
        torch.manual_seed(seed)
        return Told(Layers(d))


class Layers(nn.Module):
    def __init__(self, d):
        super().__init__()
        self.layers = nn.Sequential(nn.Linear(d + 1, 32), nn.SiLU(), nn.Linear(32, d)).double()

    def forward(self, t, x):
        return self.layers(torch.cat([x, t[:, None]], 1))


@pytest.mark.parametrize("seed", range(6))
def test_random_weights_fit_nothing(seed):
    found = look(random_network(3, seed), TRUTH)
    assert found.verdict == "none"


def test_a_network_of_other_data_fits_nothing():
    other = oracles.Gaussian(PATH, TRUTH.mean0, TRUTH.cov0, -3 * TRUTH.mean1, 0.1 * TRUTH.cov1)
    assert look(Told(oracles.Oracle(other)), TRUTH).verdict == "none"


def test_a_network_of_a_shifted_time_is_noted_by_its_slope():
    """Its time isn't in any hypothesis: the best of them is not a conditional expectation."""

    class Shifted(oracles.Oracle):
        def forward(self, t, x):
            return super().forward(t / (t + 3 * (1 - t)), x)

    sharp = oracles.Gaussian(PATH, TRUTH.mean0, TRUTH.cov0, TRUTH.mean1, 0.02 * TRUTH.cov1)
    assert not look(Told(oracles.Oracle(sharp)), sharp, fixed={"predicts": "velocity"}).notes
    found = look(Told(Shifted(sharp)), sharp, fixed={"predicts": "velocity"})
    assert found.verdict == "none" or any("The slope of the best" in note for note in found.notes)


def test_known_fields_are_taken_as_known():
    network = Told(oracles.Oracle(TRUTH, reverse=True))
    found = look(network, TRUTH, fixed={"time": "reversed", "predicts": "velocity"})
    assert found.verdict == "clear"
    assert {each.hypothesis.convention.time for each in found.findings} == {"reversed"}
    wrong = look(Told(oracles.Oracle(TRUTH, reverse=True)), TRUTH, fixed={"time": "forward", "sign": 1})
    assert wrong.verdict == "none"


def test_a_score_is_no_hypothesis_under_optimal_transport():
    pairing = REGISTRY.build("coupling", {"name": "optimal-transport"})
    found = look(Told(oracles.Oracle(TRUTH)), TRUTH, coupling=pairing)
    assert {each.hypothesis.convention.predicts for each in found.findings} == {"velocity", "noise", "data"}
    assert found.best.hypothesis.convention == Convention.of({})


def test_an_inspection_is_a_function_of_its_seed():
    one, same, other = (
        look(Told(oracles.Oracle(TRUTH)), TRUTH, fixed=USUAL, seed=seed).best.denoising for seed in (1, 1, 2)
    )
    assert one == same
    assert one != other


def test_what_cannot_be_inspected():
    bridge = REGISTRY.build("path", {"name": "brownian-bridge"})
    samples = Samples(Law(TRUTH), "data")
    rest = {"path": bridge, "source": None, "coupling": INDEPENDENT}
    with pytest.raises(ConfigError, match="a path with noise has no one-step denoising error"):
        ranking.inspect(Told(oracles.Oracle(TRUTH)), [], samples, Facts((3,), None, None), **rest)
    with pytest.raises(ConfigError, match="--count: wanted at least 64"):
        look(Told(oracles.Oracle(TRUTH)), TRUTH, count=63)


# --- the measurements -------------------------------------------------------------------------------------------------


def test_the_data_that_a_drift_points_at():
    for name, options in (("linear", {}), ("trigonometric", {}), ("affine", {"alpha": "t**2", "sigma": "1 - t"})):
        path = REGISTRY.build("path", {"name": name, **options})
        t = torch.linspace(0.1, 0.9, 9, dtype=torch.float64)
        x0, x1 = torch.randn(2, 9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
        x, b = gftkit.theory.flow.sample(path, t, x0, x1, None), gftkit.theory.flow.drift(path, t, x0, x1, None)
        torch.testing.assert_close(trial.denoised(path, t, x, b), x1, rtol=1e-10, atol=1e-10)
        assert not torch.allclose(trial.denoised(path, t, x, -b), x1, atol=0.1)


def test_the_linear_denoiser_is_the_best_for_isotropic_data():
    """Against the closed form; and no worse than any other baseline."""
    truth = oracles.Gaussian(PATH, *oracles.law(0, normal=True), TRUTH.mean1, 0.5 * torch.eye(3).double())
    found = look(Told(oracles.Oracle(truth)), truth, count=20_000)
    linear = found.baselines["linear"]
    assert found.best.score == pytest.approx(linear.value, rel=0.02)
    assert linear.value == min(value.value for value in found.baselines.values())
    low, high = trial.TIMES
    t = torch.linspace(low, high, 1001, dtype=torch.float64)
    exact = float((0.5 * (1 - t) ** 2 / ((1 - t) ** 2 + 0.5 * t**2)).mean())
    assert linear.value == pytest.approx(exact, abs=5 * linear.stderr + 0.01)


def test_equally_good_hypotheses_are_told_apart_as_rarely_as_said(monkeypatch):
    """At a false-alarm rate of 0.1 in all, over eight rivals of equal law."""
    monkeypatch.setattr(ranking, "FALSE_ALARM", 0.1)
    generator = torch.Generator().manual_seed(0)
    rounds, alarms = 400, 0
    for _ in range(rounds):
        shared = torch.randn(16, generator=generator)
        scores = sorted(((shared + torch.randn(9, 16, generator=generator)).tolist()), key=sum)
        alarms += ranking.is_significantly_less(scores[0], scores[1], 8)
    assert alarms / rounds <= 0.1
    better, worse = [0.0, 0.1, 0.2, 0.1], [1.0, 1.2, 1.1, 1.1]
    assert ranking.is_significantly_less(better, worse, 8)
    assert not ranking.is_significantly_less(worse, better, 8)
    assert ranking.is_significantly_less(better, [float("inf")] * 4, 8)
    assert not ranking.is_significantly_less([float("inf")] * 4, [float("inf")] * 4, 8)


def test_a_network_is_asked_once_for_what_hypotheses_share():
    class Counting(Told):
        asked = 0

        def forward(self, t, x):
            Counting.asked += 1
            return self.answer(t, x)

    look(Counting(oracles.Oracle(TRUTH)), TRUTH, fixed={"call": "t, x", "time": "forward", "time_scale": 1.0})
    # four predictions with two signs, trained and not: two questions, of 4 and 28 batches; the probe; 8 to merge
    assert Counting.asked <= 2 * 2 + 1 + 8


# --- calls ------------------------------------------------------------------------------------------------------------


class XT(Told):
    def forward(self, x, timestep, class_labels=None):
        return self.answer(timestep, x)


class Keywords(Told):
    def forward(self, mode="a", *, sample, timestep):
        return {"first": 3, "sample": self.answer(timestep, sample)}


class Column(Told):
    def forward(self, x, t):
        both = torch.cat([x, t], 1)
        return self.answer(both[:, -1], both[:, :-1])


class Tuple(Told):
    def forward(self, x, t):
        return self.answer(t, x), None


class SideBySide(Told):
    def forward(self, both):
        return self.answer(both[:, 0], both[:, 1:])


class Table(Told):
    def __init__(self, oracle):
        super().__init__(oracle)
        self.table = torch.linspace(0, 1, 1000)

    def forward(self, x, t):
        return torch.cat([self.answer(self.table[t], x), x], 1)


@pytest.mark.parametrize(
    ("network", "scale", "fields"),
    [
        (XT, 1.0, {"call": "x, t"}),
        (Keywords, 1.0, {"call": "sample=x, timestep=t", "output": "sample"}),
        (Column, 1.0, {"call": "x, t", "time_shape": "column"}),
        (Tuple, 1.0, {"call": "x, t", "output": 0}),
        (SideBySide, 1000.0, {"call": "cat(t, x)"}),
        (Table, 999.0, {"call": "x, t", "integer_time": True, "drop_channels": True}),
    ],
)
def test_the_call_is_found(network, scale, fields):
    oracle = oracles.Oracle(TRUTH, scale=scale) if scale == 1000 else oracles.Oracle(TRUTH)
    found = look(network(oracle), TRUTH, fixed={"predicts": "velocity", "sign": 1})
    best = found.best.hypothesis.convention
    assert found.verdict == "clear"
    wanted = Convention.of({**fields, "time_scale": scale})
    assert best == wanted
    failed = {attempt.fields["call"]: attempt.failure for attempt in found.attempts if attempt.failure}
    assert all(": " in failure for failure in failed.values())


def test_both_orders_are_tried_where_the_names_say_nothing():
    class Names(Told):
        def forward(self, a, b):
            return self.answer(b, a)

    assert look(Names(oracles.Oracle(TRUTH)), TRUTH, fixed=USUAL).best.hypothesis.convention.call == "x, t"


def test_a_network_that_cannot_be_called_is_refused():
    class Three(Told):
        def forward(self, a, b, c):
            return a

    with pytest.raises(
        InspectionError, match=r"can't be called in any of the ways tried:\n  t, x: TypeError"
    ) as caught:
        look(Three(oracles.Oracle(TRUTH)), TRUTH)
    assert "Set convention.call, or wrap the network in a class with forward(t, x)" in str(caught.value)


def test_labels_go_where_the_network_takes_them():
    class Needs(nn.Module):
        def forward(self, x, t, y):
            return x

    class May(nn.Module):
        def forward(self, x, t, y=None):
            return x

    labelled, plain = Facts((3,), 2, None), Facts((3,), None, None)

    def calls(network, facts):
        return [
            a.fields["call"]
            for a in probing.attempts(network, facts, {})
            if not a.failure and a.fields["call"][0] == "x"
        ]

    assert calls(Needs(), labelled) == ["x, t, y=label"]
    assert calls(Needs(), plain) == []
    assert calls(May(), labelled) == ["x, t", "x, t, y=label"]
    assert calls(May(), plain) == ["x, t"]


def test_every_preset_is_within_reach():
    """What the doctor tries holds every preset's time, scale, sign and prediction."""
    attempt = probing.Attempt({"call": "t, x"})
    ways = list(ranking._conventions(attempt, INDEPENDENT, bounded=True))
    tried = {(way.time, way.time_scale, way.predicts, way.sign) for way in ways}
    assert len({repr(way) for way in ways}) == len(ways)
    for name in set(PRESETS) - {"gftkit"}:
        preset = Convention.of(name)
        assert (preset.time, preset.time_scale, preset.predicts, preset.sign) in tried
