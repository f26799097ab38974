"""The anchor in training: which weights it has, when it is evaluated, and what it holds on to."""

import pytest
from support.runs_on_moons import STEPS, model

import gftkit
from gftkit.experiment.probes import PROBED
from gftkit.networks.anchor import FrozenAnchor, drift_hash
from gftkit.storage.tensors import digest
from gftkit.training import loop, steps


def test_the_anchor_is_the_pretrained_ema_and_stays_so(tuning, tmp_path, registry, monkeypatch):
    seen = []
    whole = loop.write_model

    def spy(folder, drift, facts, notes):
        seen.append(notes["anchor"])
        whole(folder, drift, facts, notes)

    monkeypatch.setattr(loop, "write_model", spy)
    gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    spec = {
        "drift": {"name": "mlp", "width": 16, "depth": 2, "conditional": False, "conditions": []},
        "event_shape": [2],
    }
    assert seen == [drift_hash(digest(model(tuning["pretrained"])), spec)]


@pytest.mark.parametrize(("schedule", "wanted"), [("zero", 0), ("constant", STEPS), ("linear", 22)])
def test_the_anchor_costs_one_pass_and_none_without_temperature(
    tuning, tmp_path, registry, monkeypatch, schedule, wanted
):
    calls = []
    forward = FrozenAnchor.__call__

    def counted(self, t, x, **conditions):
        out = forward(self, t, x, **conditions)
        if len(x) > PROBED:
            calls.append(out.requires_grad)
        return out

    monkeypatch.setattr(FrozenAnchor, "__call__", counted)
    gftkit.finetune({**tuning, "schedule": {"name": schedule}}, tmp_path / "run", registry=registry)
    assert len(calls) == wanted  # linear is exactly 0 from s = 0.9 on: steps 22 and 23
    assert not any(calls)


def test_a_high_temperature_keeps_the_pretrained_drift(tuning, tmp_path, registry):
    """rho near 1: the drift stays; rho 0: it goes. An anchor that shared the trained weights would let it go."""
    distance = {}
    for value in (0.0, 1e4):
        config = {**tuning, "schedule": {"name": "constant", "value": value}, "monitors": ["anchor-distance"]}
        config["train"] = {**config["train"], "learning_rate": 0.01}
        run = gftkit.finetune(config, tmp_path / f"run-{value}", registry=registry)
        distance[value] = [line for line in run.history() if line["kind"] == "monitor"][-1]["anchor_distance"]
    assert distance[1e4] < 0.2 * distance[0.0]


def test_a_dropped_label_is_each_network_s_own_null(tmp_path, registry, monkeypatch):
    """A network of two classes has the null 2, which is a class to the anchor of three, whose null is 3."""
    base = {"data": {"name": "two-moons"}, "train": {"steps": 2, "batch_size": 32, "condition_dropout": 0.5}}
    for name, classes in (("own", 2), ("other", 3)):
        drift = {"name": "mlp", "width": 8, "depth": 1, "conditional": True, "classes": classes}
        gftkit.pretrain({**base, "drift": drift}, tmp_path / name, registry=registry)
    seen = {"drift": set(), "anchor": set()}

    def watched(who, call):
        def watching(self, t, x, **conditions):
            seen[who] |= set(conditions["label"].tolist())
            return call(self, t, x, **conditions)

        return watching

    monkeypatch.setattr(FrozenAnchor, "__call__", watched("anchor", FrozenAnchor.__call__))
    monkeypatch.setattr(steps.Steps, "_losses", losses_seeing(seen))
    tuning = {
        **base,
        "pretrained": str(tmp_path / "own"),
        "anchor": {"name": "external", "pretrained": str(tmp_path / "other")},
        "schedule": {"name": "constant"},
    }
    gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    assert seen == {"drift": {0, 1, 2}, "anchor": {0, 1, 3}}


def losses_seeing(seen):
    """The loss of a step, which tells the labels that the drift is given."""
    losses = steps.Steps._losses

    def watching(self, inputs, part):
        seen["drift"] |= set(inputs.conditions["label"].tolist())
        return losses(self, inputs, part)

    return watching
