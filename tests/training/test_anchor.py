"""The anchor in training: which weights it has, when it is evaluated, and what it holds on to."""

import pytest
from support.runs_on_moons import STEPS, model

import gftkit
from gftkit.networks.anchor import FrozenAnchor, drift_hash
from gftkit.storage.tensors import digest
from gftkit.training import loop


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
