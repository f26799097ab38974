"""The monitor ``memorisation`` on a memorising bed and on one that is not, and where it does not apply."""

from dataclasses import replace

import pytest
import torch

import gftkit
from gftkit.api import Run
from gftkit.data.samples import Samples
from gftkit.estimation import energy_distances, jackknife_stderr
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.theory import gap as statistics
from gftkit.theory.objective import blend, retention
from gftkit_verification.monitors.memorisation import (
    Memorisation,
    distance_ratio,
    held_out_ratio,
    nearest,
    position,
)
from gftkit_verification.monitors.memorisation.monitor import BATCHES
from gftkit_verification.oracles.empirical import EmpiricalFlow


def normal(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


def standard_errors(estimate, expected):
    return abs(estimate.value - expected) / estimate.stderr


def test_fresh_samples_have_a_ratio_of_one_and_copies_of_nothing():
    data = normal(60, 5)
    fresh = distance_ratio(normal(500, 5, seed=1), data, torch.Generator())
    assert standard_errors(fresh, 1.0) < 3
    copies = distance_ratio(data + 1e-3 * normal(60, 5, seed=2), data, torch.Generator())
    assert copies.value < 0.1  # (d_1 (n - 1) + d_2)/n isn't 0: one datum of n is left out
    beside = distance_ratio(normal(500, 5, seed=1) + 3, data, torch.Generator())
    assert beside.value > 2
    half = distance_ratio(torch.cat([data, normal(60, 5, seed=3)]), data, torch.Generator())
    assert standard_errors(half, 1.0) > 5


def test_distances_average_over_the_datum_that_is_left_out():
    """The formula against leaving out each in turn."""
    generated, data = normal(7, 3), normal(6, 3, seed=1)
    one_less = [torch.cdist(generated, torch.cat([data[:k], data[k + 1 :]])).min(1).values for k in range(6)]
    samples, others = nearest(torch.cdist(generated, data), torch.cdist(data, data))
    assert float(samples) == pytest.approx(float(torch.stack(one_less).mean()))
    assert float(others) == pytest.approx(
        sum(float(torch.cdist(data[k : k + 1], torch.cat([data[:k], data[k + 1 :]])).min()) for k in range(6)) / 6
    )


def test_the_held_out_ratio_is_one_for_fresh_samples_and_small_for_copies():
    data, held_out = normal(40, 4), normal(30, 4, seed=1)
    assert standard_errors(held_out_ratio(normal(900, 4, seed=2), data, held_out, torch.Generator()), 1.0) < 5
    assert held_out_ratio(data + 0.01, data[:30], held_out, torch.Generator()).value < 0.9


@pytest.fixture(scope="module")
def tuned(pretrained, tmp_path_factory, registry):
    """A fine-tune with independent coupling, in which the memorising drift is known."""
    config = {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 30},
        "schedule": {"name": "exponential"},
        "train": {"steps": 20, "batch_size": 32},
        "evaluate": {
            "data": {"name": "gaussian-mixture", "count": 40, "seed": 5},
            "every": 10,
            "count": 24,
            "solver": {"name": "euler", "steps": 2},
        },
        "monitors": [{"name": "memorisation", "count": 50}],
        "seed": 2,
    }
    return gftkit.finetune(config, tmp_path_factory.mktemp("tuned") / "run", registry=registry, device="cpu")


@pytest.fixture(scope="module")
def last_state(pretrained, registry, tmp_path_factory):
    """The state that a monitor was given at the end of a fine-tune."""
    states = []

    class Spy:
        """Keeps the state."""

        def observe(self, state):
            states.append(state)
            return {}

        def finish(self, folder):
            """Nothing."""

    plugin = type("Plugin", (), {"gftkit_monitors": gftkit.hookimpl(lambda self: {"spy": Spy})})()
    config = {
        "pretrained": str(pretrained),
        "data": {"name": "gaussian-mixture", "count": 30},
        "schedule": {"name": "constant", "value": 1.0},
        "train": {"steps": 4, "batch_size": 8},
        "evaluate": {"every": 4, "count": 24, "solver": {"name": "euler", "steps": 4}},
        "monitors": ["spy"],
    }
    gftkit.finetune(config, tmp_path_factory.mktemp("seen") / "run", registry=gftkit.load(plugins={"spy": plugin}))
    return states[-1]


class FunctionDrift(torch.nn.Module):
    """A function as a drift."""

    conditions = ()

    def __init__(self, function):
        super().__init__()
        self.function = function

    def forward(self, t, x):
        return self.function(t.clamp(max=0.999), x)


@pytest.mark.parametrize("beta", [0.0, 0.5, 4.0])
def test_the_position_is_one_minus_the_retention_at_every_optimum(last_state, beta):
    """Its negative control: of a drift in another direction it is not."""
    data = last_state.dataset.at(torch.arange(30)).x1
    exact = EmpiricalFlow(data, last_state.path)
    optimum = FunctionDrift(lambda t, x: blend(exact.drift(t, x), last_state.anchor(t, x), beta))
    monitor = Memorisation(count=24)
    measured = monitor.observe(replace(last_state, drift=optimum, ema=optimum))
    assert measured["position"] == pytest.approx(1 - retention(beta), abs=1e-3)  # float32, and t is cut at 0.999
    away = FunctionDrift(lambda t, x: last_state.anchor(t, x) - exact.drift(t, x))
    assert monitor.observe(replace(last_state, drift=away))["position"] < 0


def test_the_distance_ratio_separates_a_memorising_flow_from_one_that_knows_the_law(last_state):
    """The drift of the training set itself makes copies; that of a hundred times as many data makes new samples."""
    own = last_state.dataset.at(torch.arange(30)).x1
    many = gftkit.load().create("dataset", "gaussian-mixture").draw(3000, torch.Generator().manual_seed(3)).x1
    scheme = replace(last_state.evaluation.scheme, steps=20)
    ratios = {}
    for name, data in (("own", own), ("many", many)):
        flow = FunctionDrift(EmpiricalFlow(data, last_state.path).drift)
        last_state.evaluation.scheme = scheme
        measured = Memorisation(count=300).observe(replace(last_state, drift=flow, ema=flow))
        ratios[name] = (measured["distance_ratio"], measured["distance_ratio_stderr"])
    assert ratios["own"][0] < 0.3
    assert abs(ratios["many"][0] - 1) < 3 * ratios["many"][1]


def test_samples_of_a_narrower_law_lie_near_and_their_energy_distance_tells():
    """Why a run isn't judged by nearness alone: in ten dimensions a law of half the width has a ratio below 1."""
    data, narrow = normal(60, 10), 0.4 * normal(500, 10, seed=1)
    ratio = distance_ratio(narrow, data, torch.Generator())
    assert ratio.value + 2 * ratio.stderr < 1
    energy = energy_distances([narrow], data, torch.Generator(), leave_nearest=True).estimate(torch.squeeze)
    assert energy.value > 5 * energy.stderr


def test_the_energy_distance_of_an_evaluation_can_be_paired_with_that_of_another(tuned):
    """By the values without each group, as the rule ``copying`` does: the fall is known better than its ends."""
    first, *_, last = (line for line in tuned.history() if line["kind"] == "monitor")
    assert len(first["energy_left_out"]) == len(last["energy_left_out"]) == 15  # of 30 data
    for line in (first, last):
        left_out = torch.tensor(line["energy_left_out"], dtype=torch.float64)
        assert float(jackknife_stderr(left_out)) == pytest.approx(line["energy_stderr"])
    fall = torch.tensor([a - b for a, b in zip(first["energy_left_out"], last["energy_left_out"], strict=True)])
    assert float(jackknife_stderr(fall)) < 0.5 * min(first["energy_stderr"], last["energy_stderr"])


def test_all_gauges_are_logged_and_reported(tuned, registry):
    lines = [line for line in tuned.history() if line["kind"] == "monitor"]
    assert [line["step"] for line in lines] == [0, 10, 20]
    assert (lines[0]["oracle"], lines[0]["points"], lines[0]["samples"]) == ("applies", 30, 50)
    assert lines[0]["position"] == pytest.approx(0, abs=1e-6)  # the start is the anchor
    assert all(
        line[f"{key}_stderr"] > 0 for line in lines[1:] for key in ("distance_ratio", "position", "held_out_ratio")
    )
    (section,) = registry.create("monitor", "memorisation").sections(lines)
    assert "1 - rho" in section.text
    assert [row[0] for row in section.table] == [
        "",
        "distance ratio",
        "energy distance to the training data",
        "distance to training data over that to held-out data",
        "position between pretrained and memorising drift",
    ]
    assert section.picture
    assert registry.create("monitor", "memorisation").sections(lines[:1]) == []
    assert "Memorisation" in (tuned.folder / "report.html").read_text()


def test_a_feature_and_fewer_points_are_used(last_state):
    measured = Memorisation(count=24, points=10, feature=lambda x: x[:, :1]).observe(replace(last_state, step=0))
    assert measured["points"] == 10


def test_without_the_oracle_the_reason_is_recorded(last_state):
    class Paired:
        """A coupling that pairs."""

        def pair(self, x0, x1, generator, label=None):
            return torch.arange(len(x0))

    config = replace(last_state.config, coupling={"name": "optimal-transport"})
    measured = Memorisation(count=24).observe(replace(last_state, step=0, coupling=Paired(), config=config))
    assert "position" not in measured
    assert measured["oracle"] == "the coupling is 'optimal-transport', not an independent one"


@pytest.mark.parametrize("size", [None, 3])
def test_laws_and_tiny_sets_are_refused(last_state, registry, size):
    law = registry.create("dataset", "gaussian-mixture", **({} if size is None else {"count": size}))
    with pytest.raises(ConfigError, match="compares samples with a finite training set of at least 4"):
        Memorisation().observe(replace(last_state, dataset=Samples(law, "data")))


def test_positions_without_a_gap_are_not_numbers():
    same = torch.ones(4 * BATCHES, 2)
    assert position(same, same, same).value != position(same, same, same).value


def test_the_statistic_agrees_with_the_position(last_state):
    """At temperature 0, T = R - P and the position is P/|Delta|^2: for b on the segment both follow from its place."""
    exact, anchor = normal(8 * BATCHES, 3), normal(8 * BATCHES, 3, seed=1)
    b = anchor + 0.4 * (exact - anchor)
    assert position(b, anchor, exact).value == pytest.approx(0.4)
    measured = statistics.summary(
        [statistics.statistics(*p, 0.0) for p in zip(*(v.chunk(8) for v in (b, exact, anchor)), strict=True)]
    )
    assert measured.reached.value == pytest.approx(0.4)


def test_a_pretraining_is_measured_too(pretrain_config, tmp_path, registry):
    config = {**pretrain_config, "data": {"name": "two-moons", "count": 20}, "monitors": ["memorisation"]}
    run = gftkit.pretrain(config, tmp_path / "run", registry=registry)
    line = next(line for line in run.history() if line["kind"] == "monitor")
    assert line["oracle"] == "a pretraining has no drift that it started from"
    assert isinstance(Run.open(run.folder), Run)
    assert Batch
