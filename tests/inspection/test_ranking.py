"""The convention doctor finds the convention that a network was made with, says when it can't, and never guesses."""

import pytest
import torch
from support import oracles
from support.inspections import INDEPENDENT, PATH, REGISTRY, TRUTH, USUAL, Law, Told, look
from torch import nn

from gftkit.data.description import Facts
from gftkit.data.samples import Samples
from gftkit.inspection import probing, ranking
from gftkit.kernel.errors import ConfigError
from gftkit.networks.convention import PRESETS, Convention

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


def test_inspection_refuses_stochastic_paths_and_few_samples():
    bridge = REGISTRY.build("path", {"name": "brownian-bridge"})
    samples = Samples(Law(TRUTH), "data")
    rest = {"path": bridge, "source": None, "coupling": INDEPENDENT}
    with pytest.raises(ConfigError, match="a path with noise has no one-step denoising error"):
        ranking.inspect(Told(oracles.Oracle(TRUTH)), [], samples, Facts((3,), None, None), **rest)
    with pytest.raises(ConfigError, match="--count: wanted at least 64"):
        look(Told(oracles.Oracle(TRUTH)), TRUTH, count=63)


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


def test_every_preset_is_within_reach():
    """What the doctor tries holds every preset's time, scale, sign and prediction."""
    attempt = probing.Attempt({"call": "t, x"})
    ways = list(ranking._conventions(attempt, INDEPENDENT, bounded=True))
    tried = {(way.time, way.time_scale, way.predicts, way.sign) for way in ways}
    assert len({repr(way) for way in ways}) == len(ways)
    for name in set(PRESETS) - {"gftkit"}:
        preset = Convention.of(name)
        assert (preset.time, preset.time_scale, preset.predicts, preset.sign) in tried


def test_a_given_time_is_compared_and_not_changed():
    usual = {"predicts": "velocity", "sign": 1, "time_scale": 1.0}
    right = look(Told(oracles.Oracle(TRUTH, reverse=True)), TRUTH, fixed={**usual, "time": "reversed"})
    assert right.verdict == "clear"
    assert not any("may be wrong" in note for note in right.notes)
    assert len(right.alternatives) == 3
    wrong = look(Told(oracles.Oracle(TRUTH, reverse=True)), TRUTH, fixed={**usual, "time": "forward"})
    assert wrong.best.hypothesis.convention.time == "forward"
    assert any("With time: reversed, time_scale: 1.0 the denoising error" in note for note in wrong.notes)
    assert not look(Told(oracles.Oracle(TRUTH)), TRUTH, fixed={"predicts": "velocity", "sign": 1}).alternatives
