"""The rule ``copying``: a run ends where its samples copy the data and it has stopped improving, not before."""

import json
import math

import pytest
from support.memorisation import measured

import gftkit
from gftkit_plugins.stops import CopyingStop


class Near:
    """Wrong, a twin of ``copying``: ends as soon as samples lie near the data, whatever they are worth."""

    needs = ("memorisation",)

    def __init__(self):
        self.done, self.reason = False, ""

    def observe(self, progress, measurements):
        ratio, error = (measurements["memorisation"][key] for key in ("distance_ratio", "distance_ratio_stderr"))
        self.done = progress > 0 and ratio - 2 * error <= 1
        self.reason = "near." if self.done else ""

    def state_dict(self):
        return {}

    def load_state_dict(self, state):
        pass


class Stalled(Near):
    """Wrong, another twin: ends where the energy distance is no lower than at the evaluation before."""

    last = math.inf

    def observe(self, progress, measurements):
        now = measurements["memorisation"]["energy"]
        self.done, self.last = now >= self.last, now


def end(rule, series, every=0.05):
    """The index of the evaluation at which a rule ends a run, None where it doesn't."""
    for k, measurements in enumerate(series):
        rule.observe(k * every, measurements)
        if rule.done:
            return k
    return None


NARROW = [measured(0.8, 2 * 0.8**k, common=0.3, own=0.01, seed=k) for k in range(20)]
"""Samples of a law narrower than the data's: near from the start, while the run improves to its end."""
COPIES = [measured(2 - 0.2 * min(k, 7), 0.05 + 0.5 ** (k + 1), common=0.3, own=0.01, seed=k) for k in range(20)]
"""A run that comes to its data, and stands still there."""
BESIDE = [measured(1.5, 0.05 + 0.5 ** (k + 1), common=0.3, own=0.01, seed=k) for k in range(20)]
"""One that stands still beside them."""


def test_a_run_that_still_improves_is_not_ended_though_its_samples_lie_near_the_data():
    assert end(CopyingStop(), NARROW[:15]) is None
    assert end(Near(), NARROW) == 1


def test_a_run_that_copies_and_stands_still_is_ended():
    ended = end(CopyingStop(), COPIES)
    assert 6 <= ended <= 11
    assert end(Near(), COPIES) <= ended


def test_a_run_that_stands_still_beside_the_data_goes_on():
    assert end(CopyingStop(), BESIDE) is None
    assert end(Stalled(), [measured(1.5, 0.1), measured(1.5, 0.1)]) == 1


def test_the_start_does_not_end_a_run_and_patience_must_be_over():
    flat = [measured(0.8, 0.1, own=0.001, seed=k) for k in range(9)]
    rule = CopyingStop()
    rule.observe(0.0, flat[0])
    assert (rule.done, rule.reason) == (False, "")
    assert end(CopyingStop(), flat, every=0.05) == 2
    assert end(CopyingStop(), flat, every=0.04) == 3
    assert end(CopyingStop(), flat, every=0.5) == 1
    assert end(CopyingStop(patience=0.3), flat, every=0.1) == 3


def test_what_all_evaluations_have_in_common_is_no_doubt():
    """An improvement by five of its paired errors, and a sixth of the errors of either distance."""
    two = [measured(0.8, energy, common=0.3, own=0.01, seed=k) for k, energy in enumerate((0.5, 0.45, 0.4))]
    assert end(CopyingStop(), two) is None
    apart = [measured(0.8, energy, own=0.4, seed=k) for k, energy in enumerate((0.5, 0.45, 0.4))]
    assert end(CopyingStop(), apart) == 2  # the negative control: nothing in common


def test_a_slow_improvement_is_seen_over_the_whole_patience():
    """By a hundredth of a standard error from one evaluation to the next, but significant over a patience."""
    slow = [measured(0.8, 0.5 - 0.001 * k, common=0.3, own=0.001, seed=k) for k in range(50)]
    assert end(CopyingStop(patience=0.2), slow, every=0.02) is None
    assert end(CopyingStop(patience=0.02), slow, every=0.02) == 1


def test_a_fall_that_is_not_known_is_no_standstill():
    """It isn't significant, and could be a third of the distance; where it couldn't be a tenth, the run ends."""
    vague = [measured(0.8, 0.5, own=0.08, seed=k) for k in range(9)]
    assert end(CopyingStop(), vague) is None
    known = [measured(0.8, 0.5, own=0.008, seed=k) for k in range(9)]
    assert end(CopyingStop(), known) == 2
    nothing_left = [measured(0.8, 0.1, own=0.08, seed=k) for k in range(9)]
    assert end(CopyingStop(), nothing_left) == 2


def test_errors_set_what_counts():
    falling = [measured(0.95, 0.5 - 0.03 * k, own=0.01, seed=k) for k in range(5)]
    assert end(CopyingStop(errors=0.0), falling) is None
    still = [measured(0.95, 0.5, own=0.04, seed=k) for k in range(5)]
    assert end(CopyingStop(errors=0.0), still) == 2
    assert end(CopyingStop(errors=0.0), still) == 2
    assert end(CopyingStop(), still) is None


def test_the_reason_has_both_numbers():
    rule = CopyingStop()
    end(rule, [measured(0.85, 0.1, own=0.01)] * 3)
    assert rule.reason == (
        "samples lie 0.85 ± 0.05 times as far from the training data as these from each other, and their energy "
        "distance fell by 0 ± 0, to 0.1, in the last 10% of the run."
    )


def test_the_state_is_complete():
    for cut in range(1, len(COPIES)):
        one, other = CopyingStop(), CopyingStop()
        end(one, COPIES[:cut])
        other.load_state_dict(json.loads(json.dumps(one.state_dict())))
        for k in range(cut, len(COPIES)):
            for rule in (one, other):
                rule.observe(k * 0.05, COPIES[k])
            assert (one.done, one.reason, one.state_dict()) == (other.done, other.reason, other.state_dict())


@pytest.fixture
def fields(registry, tmp_path):
    """A fine-tune from weak fields to strong ones, near which the pretrained samples lie."""
    train = {"steps": 150, "batch_size": 64, "learning_rate": 3e-3}
    pretrain = {
        "drift": {"name": "mlp", "width": 32, "depth": 2},
        "data": {"name": "random-fields", "size": 8, "std": 0.5},
        "train": train,
        "evaluate": {"every": 150, "count": 40},
    }
    gftkit.pretrain(pretrain, tmp_path / "pretrained", registry=registry)
    strong = {"name": "random-fields", "size": 8, "law": "lognormal", "mean": 1.0, "std": 1.5}
    return {
        "pretrained": str(tmp_path / "pretrained"),
        "data": {**strong, "count": 60},
        "train": {**train, "steps": 200, "learning_rate": 1e-3},
        "evaluate": {"every": 20, "count": 100, "metrics": ["energy"], "data": {**strong, "count": 300, "seed": 1}},
    }


def test_a_run_on_fields_is_not_ended_while_it_improves(fields, registry, tmp_path, monkeypatch):
    """Its samples lie near from the start; the twin that asks for no more ends it far above plain fine-tuning."""

    def distance(name, **keys):
        run = gftkit.finetune({**fields, **keys}, tmp_path / name, registry=registry)
        return next(line["energy"] for line in reversed(run.history()) if line.get("weights") == "ema")

    plain, copying = {"schedule": {"name": "zero"}}, {"stop": {"name": "copying"}}
    reached = distance("plain", **plain)
    assert distance("stopped", **plain, **copying) < 1.2 * reached
    assert distance("adaptive", schedule={"name": "adaptive"}) < 1.5 * reached
    near = property(lambda rule: rule._ratio is not None and rule._ratio[0] - 2 * rule._ratio[1] <= 1)
    monkeypatch.setattr(CopyingStop, "done", near)
    assert distance("twin", **plain, **copying) > 2 * reached


def test_a_pretraining_that_copies_is_ended(registry, tmp_path):
    """It needs no held-out data and no anchor; the monitor is added."""
    config = {
        "drift": {"name": "mlp", "width": 64, "depth": 2},
        "data": {"name": "gaussian", "event_shape": [32], "mean": 1.0, "count": 24},
        "train": {"steps": 1000, "batch_size": 32, "learning_rate": 3e-3},
        "evaluate": {"every": 100, "count": 40},
        "stop": {"name": "copying"},
    }
    run = gftkit.pretrain(config, tmp_path / "run", registry=registry)
    last = [line for line in run.history() if line["kind"] == "monitor"][-1]
    assert run.steps() < 1000
    assert "their energy distance fell by" in json.loads((run.folder / "summary.json").read_text())["stopped"]["reason"]
    assert last["distance_ratio"] + 2 * last["distance_ratio_stderr"] < 1
