"""The monitor ``theory``: its measurements, where its oracle applies, resuming, and refusals."""

import math
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file
from support.theory_runs import MONITOR, failed_checks, points, setting, verdict_of

import gftkit
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.runs import checkpoint
from gftkit.training import loop
from gftkit.training.descent import restore_checkpoint
from gftkit.training.verdict import run_sections
from gftkit_verification.monitors.probes import oracle_obstacles
from gftkit_verification.monitors.theory import Theory
from gftkit_verification.oracles.empirical import EmpiricalFlow

# --- what is measured -------------------------------------------------------------------------------------------------


def test_a_run_has_the_same_weights_with_and_without_the_monitor(finished, tune, config):
    plain = tune(config, monitors=[])
    one, other = (load_file(run.folder / "model.safetensors") for run in (finished, plain))
    assert all(torch.equal(one[name], other[name]) for name in one)


def test_the_start_is_the_anchor(finished):
    first = points(finished)[0]
    assert first["T"] == first["distance_from_pretrained"] == first["gap_squared_by_loss"] == 0
    assert first["reached"] is None
    assert first["remaining"] == 1
    assert first["retention"] == 0.8
    assert first["drift_error"] == pytest.approx(first["gap"])
    assert first["distance_to_optimum"] == pytest.approx(0.2 * first["gap"])
    assert first["predicted_drift_error"] == pytest.approx(0.8 * first["gap"])


def test_measurements_are_those_of_the_raw_weights(finished, config, registry):
    """The last point, computed anew from the checkpoint by its definition, on the states that the monitor drew."""
    state, monitor = last_state(finished), Theory(MONITOR["batches"], MONITOR["states"])
    measured = monitor.observe(state)
    last = points(finished)[-1]
    assert {key: measured[key] for key in ("T", "drift_error", "anchor_norm")} == pytest.approx(
        {key: last[key] for key in ("T", "drift_error", "anchor_norm")}, rel=1e-5
    )
    probe = monitor._probes[""]
    t, x, y = probe.states.t, probe.states.x, probe.states.target
    with torch.no_grad():
        b, anchor = state.drift(t, x), state.anchor(t, x)
    exact = EmpiricalFlow(state.dataset.at(torch.arange(40)).x1, state.path).drift(t, x)
    beta = state.temperature
    goal = (y + beta * anchor) / (1 + beta)
    by_hand = ((b - goal) * (b - anchor)).sum(1).double().reshape(16, 64).mean(1)
    assert last["T"] == pytest.approx(float(by_hand.mean()), abs=1e-5)
    assert last["T_stderr"] == pytest.approx(float(by_hand.std()) / math.sqrt(16), rel=1e-4)
    assert last["drift_error"] == pytest.approx(float((b - exact).square().sum(1).mean().sqrt()), rel=1e-5)
    best = (exact + beta * anchor) / (1 + beta)
    assert last["distance_to_optimum"] == pytest.approx(float((b - best).square().sum(1).mean().sqrt()), rel=1e-5)
    assert last["gap"] == pytest.approx(float((anchor - exact).square().sum(1).mean().sqrt()), rel=1e-5)
    averaged = monitor.observe(replace(state, drift=state.ema))
    assert averaged["T"] != pytest.approx(last["T"], rel=1e-3)


def test_lag_and_best_retention_by_flow_time_are_those_of_their_definitions(finished):
    state, monitor = last_state(finished), Theory(MONITOR["batches"], MONITOR["states"], 4)
    measured = monitor.observe(state)
    states = monitor._probes[""].states
    with torch.no_grad():
        b, anchor = state.drift(states.t, states.x).double(), state.anchor(states.t, states.x).double()
    exact = EmpiricalFlow(state.dataset.at(torch.arange(40)).x1, state.path).drift(states.t, states.x)
    gap = anchor - exact
    for k in range(4):
        here = (states.t >= k / 4) & (states.t < (k + 1) / 4)
        best = ((b - states.target) * (b - anchor))[here].sum() / (b - anchor)[here].square().sum()
        assert measured["best_retention_by_time"][k] == pytest.approx(float(best), rel=1e-4, abs=1e-5)
        lag = ((b - exact) * gap)[here].sum() / gap[here].square().sum()
        assert measured["exact_lag_by_time"][k] == pytest.approx(float(lag), rel=1e-4, abs=1e-5)
    last = points(finished)[-1]
    assert last["lag"] == pytest.approx(-last["best_retention"] / (1 - last["best_retention"]))
    assert last["lag_stderr"] == pytest.approx(last["best_retention_stderr"] / (1 - last["best_retention"]) ** 2)
    assert points(finished)[0]["lag_by_time"] == [None] * 8  # the drift was its anchor


def last_state(run):
    """What the monitor saw last, with the raw weights of the last checkpoint."""
    states = []

    class Spy:
        def observe(self, state):
            states.append(state)
            return {}

        def finish(self, folder):
            pass

    stopped = loop_of(run, [("spy", Spy())])
    newest, _ = checkpoint.latest(run.folder / "checkpoints")
    restore_checkpoint(newest, stopped.steps.drift, stopped.steps.descent)
    stopped.evaluator.lines(run.config.train.steps, "raw", [])
    return states[0]


def loop_of(run, monitors):
    from gftkit.experiment.build import build
    from gftkit.runtime.devices import start_accelerator
    from gftkit.runtime.progress import Progress

    experiment = build(run.config, run.registry)
    experiment = replace(experiment, measurement=replace(experiment.measurement, monitors=monitors))
    experiment.networks.drift.train()
    return loop.Loop(
        experiment,
        run.registry,
        run.folder,
        start_accelerator("cpu"),
        Progress(run.config.train.steps, "finetune", quiet=True),
    )


def test_conditional_targets_and_the_oracle_agree(finished):
    """T with label noise and T against the exact drift differ by noise, at every evaluation."""
    for point in points(finished)[1:]:
        assert abs(point["T"] - point["T_exact"]) < 6 * math.hypot(point["T_stderr"], point["T_exact_stderr"])


def test_held_out_targets_are_measured_where_there_are_some(finished, tune, config):
    assert not any(key.startswith("held_out") for key in points(finished)[0])
    held_out = {**config["evaluate"], "data": {"name": "gaussian-mixture", "count": 30, "split": "test"}}
    run = tune(config, evaluate=held_out, data={**config["data"], "split": "train"})
    last = points(run)[-1]
    assert last["held_out_T"] != last["T"]
    assert last["held_out_T_stderr"] > 0


def test_a_weight_enters_every_norm(tune, config):
    run = tune(config, objective={"weight": "2"}, train={**config["train"], "steps": 2}, schedule={"name": "zero"})
    plain = tune(config, train={**config["train"], "steps": 2}, schedule={"name": "zero"})
    assert points(run)[0]["gap"] == pytest.approx(math.sqrt(2) * points(plain)[0]["gap"])


def test_a_resumed_run_has_the_same_theory(finished, copied, registry, config):
    for stop in (80, 160):
        kept = [
            path
            for path in checkpoint.checkpoints_of(copied.folder / "checkpoints")
            if int(path.stem.removeprefix("step-")) > stop
        ]
        for path in kept if stop == 80 else []:
            path.unlink()
        for name in ("model.safetensors", "theory.json"):
            (copied.folder / name).unlink()
        gftkit.finetune(config, copied.folder, registry=registry, device="cpu", resume=True)
        assert (copied.folder / "theory.json").read_text() == (finished.folder / "theory.json").read_text()


# --- where the oracle applies -----------------------------------------------------------------------------------------


def test_the_oracle_applies_to_affine_paths_and_the_bridge(before, finished, tune, config):
    edges = [k / 8 for k in range(9)]
    assert setting(finished) == {"oracle": "applies", "batches": 16, "states": 64, "edges": edges, "pairing_batch": 64}
    other = {
        "pretrained": str(before / "model.safetensors"),  # a weights file goes with any path
        "drift": {"name": "mlp", "width": 48, "depth": 2},
        "train": {"steps": 2, "batch_size": 8},
        "evaluate": {**config["evaluate"], "solver": None},
    }
    for path in ({"name": "trigonometric"}, {"name": "brownian-bridge", "scale": 0.5}):
        run = tune(config, **other, path=path)
        assert setting(run)["oracle"] == "applies"
        assert points(run)[0]["drift_error"] > 0
        assert "targets" not in failed_checks(verdict_of(run))


@pytest.mark.parametrize(
    ("changes", "why"),
    [
        ({"coupling": {"name": "optimal-transport"}}, "the coupling is 'optimal-transport', not an independent one"),
        ({"source": {"name": "gaussian", "std": 2.0}}, "the source is not N(0, I)"),
        ({"source": {"name": "gaussian", "mean": 1.0}}, "the source is not N(0, I)"),
        ({"source": {"name": "gaussian-mixture"}}, "the source is not N(0, I)"),
        ({"data": {"name": "gaussian-mixture"}}, "the training data are a law, not a finite set"),
        ({"monitors": [{**MONITOR, "oracle": False}]}, "switched off by its option `oracle`"),
    ],
    ids=["coupling", "std", "mean", "source", "law", "option"],
)
@pytest.mark.filterwarnings("ignore")
def test_where_the_oracle_does_not_apply_the_reason_is_recorded(tune, config, changes, why):
    run = tune(config, train={"steps": 3, "batch_size": 8}, **changes)
    assert setting(run)["oracle"] == why
    assert "drift_error" not in points(run)[-1]
    part, *_ = run_sections(run, "run")
    assert why in part.text
    assert any(why in line for line in verdict_of(run).lines)


class Set:
    """A finite set whose samples may be augmented or come with partners."""

    event_shape = (2,)
    range = None

    def __init__(self, noise=0.0, partners=False):
        self.noise, self.partners = noise, partners

    def __len__(self):
        return 20

    def batch(self, indices):
        x1 = torch.stack([indices.float(), -indices.float()], 1)
        return Batch(x1 + self.noise * torch.randn(x1.shape), None, x1 if self.partners else None)


@pytest.mark.parametrize(
    ("data", "conditions", "why"),
    [
        (Set(), (), []),
        (Set(noise=0.1), (), ["augmented"]),
        (Set(partners=True), (), ["bring their own source samples"]),
        (Set(), ("label",), ["has conditions"]),
    ],
    ids=["plain", "augmented", "paired", "labels"],
)
def test_data_and_drifts_for_which_the_oracle_does_not_apply(finished, data, conditions, why):
    from gftkit.data.samples import Samples

    state = last_state(finished)
    drift = SimpleNamespace(conditions=conditions)
    reasons = oracle_obstacles(replace(state, dataset=Samples(data, "data"), drift=drift))
    assert len(reasons) == len(why)
    assert all(part in reason for part, reason in zip(why, reasons, strict=True))


def test_fewer_states_are_compared_with_a_large_set(finished, monkeypatch):
    from gftkit_verification.monitors import probes as module

    monkeypatch.setattr(module, "WORK", {"cpu": 16 * 3 * 80.0})
    monitor = Theory()
    measured = monitor.observe(last_state(finished))
    assert monitor._probes[""].exact.shape == (16, 3, 2)
    assert measured["gap"] == pytest.approx(points(finished)[0]["gap"], rel=0.4)
    monkeypatch.setattr(module, "LARGEST", 79)
    assert any("more than 79 numbers" in reason for reason in oracle_obstacles(last_state(finished)))


def test_pairs_are_of_the_whole_training_set_and_its_own_partners(finished):
    state = last_state(finished)
    generator = torch.Generator().manual_seed(0)
    small = replace(state, training=state.training[:1])
    assert len(torch.unique(small.draw(40, generator).target, dim=0)) == 40
    from gftkit.data.samples import Samples

    paired = replace(state, dataset=Samples(Set(partners=True), "data"))
    drawn = paired.draw(20, generator, keep=5)
    assert len(drawn.t) == 5
    assert not drawn.target.any()  # x1 - x0 of partners that are equal


# --- refusals ---------------------------------------------------------------------------------------------------------


def test_a_pretraining_is_refused(pretrain_config, tmp_path, registry):
    with pytest.raises(ConfigError, match="measures a fine-tune against the drift it started from"):
        gftkit.pretrain({**pretrain_config, "monitors": ["theory"]}, tmp_path / "new", registry=registry, device="cpu")
    assert not (tmp_path / "new" / "config.yaml").exists()


def test_options_are_checked(registry):
    with pytest.raises(ConfigError, match="batches"):
        registry.create("monitor", "theory", batches=1)
