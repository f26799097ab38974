"""The monitor ``theory``: what it measures, where its oracle applies, resuming, its report and its verdict."""

import json
import math
import shutil
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file

import gftkit
from gftkit.api import Run
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks.anchor import FrozenAnchor
from gftkit.runs import checkpoint
from gftkit.study.comparison import compare_runs
from gftkit.training import loop, steps
from gftkit.training.descent import restore_checkpoint
from gftkit.training.verdict import run_sections, verify_run
from gftkit_verification.monitors.probes import oracle_obstacles
from gftkit_verification.monitors.theory import Theory
from gftkit_verification.monitors.theory.checks import CHECKS
from gftkit_verification.oracles.empirical import EmpiricalFlow

MONITOR = {"name": "theory", "batches": 16, "states": 64}


@pytest.fixture(scope="module")
def before(tmp_path_factory, registry):
    """A flow that knows two-moons well enough to have something to unlearn."""
    config = {
        "drift": {"name": "mlp", "width": 48, "depth": 2},
        "data": {"name": "two-moons"},
        "train": {"steps": 300, "batch_size": 64, "learning_rate": 4e-3},
        "evaluate": {"every": 300, "count": 40, "solver": {"name": "euler", "steps": 2}},
    }
    return gftkit.pretrain(config, tmp_path_factory.mktemp("before") / "run", registry=registry, device="cpu").folder


@pytest.fixture(scope="module")
def config(before):
    """A fine-tune that has time to follow; don't change it."""
    return {
        "pretrained": str(before),
        "data": {"name": "gaussian-mixture", "count": 40},
        "schedule": {"name": "exponential"},
        "train": {"steps": 160, "batch_size": 64, "learning_rate": 4e-3, "checkpoint_every": 80},
        "evaluate": {"every": 20, "count": 40, "metrics": ["path-length"], "solver": {"name": "euler", "steps": 2}},
        "monitors": [MONITOR],
        "seed": 3,
    }


@pytest.fixture(scope="module")
def tune(tmp_path_factory, registry):
    """Makes a fine-tune in a folder of its own."""

    def go(config, registry=registry, **changes):
        folder = tmp_path_factory.mktemp("tuned") / "run"
        return gftkit.finetune({**config, **changes}, folder, registry=registry, device="cpu")

    return go


@pytest.fixture(scope="module")
def finished(tune, config):
    """A finished run that was watched. Don't write to it: take ``copied``."""
    return tune(config)


@pytest.fixture
def copied(finished, tmp_path):
    """A copy of it, to be tampered with."""
    folder = shutil.copytree(finished.folder, tmp_path / "copy")
    return Run.open(folder, finished.registry)


def points(run):
    return json.loads((run.folder / "theory.json").read_text())["points"]


def setting(run):
    return json.loads((run.folder / "theory.json").read_text())["setting"]


def verdict_of(run):
    ((name, verdict),) = verify_run(run)
    assert name == "theory"
    return verdict


def failed_checks(verdict):
    return {name for name, check in verdict.findings["checks"].items() if not check["holds"]}


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
    assert setting(finished) == {"oracle": "applies", "batches": 16, "states": 64, "pairing_batch": 64}
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
    (part,) = run_sections(run, "run")
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


def test_runs_that_can_not_be_verified_are_refused_with_the_reason(copied, pretrained, registry, tune, config):
    def refusal():
        with pytest.raises(RunError) as caught:
            verify_run(copied)
        return str(caught.value)

    with pytest.raises(RunError, match="is a pretraining"):
        verify_run(Run.open(pretrained, registry))
    with pytest.raises(RunError, match=r"Add `monitors: \[\{name: theory\}\]`"):
        verify_run(tune(config, monitors=["anchor-distance"], train={"steps": 2, "batch_size": 8}))
    whole = (copied.folder / "theory.json").read_text()
    (copied.folder / "theory.json").write_text(whole[:200])
    assert "theory.json is damaged" in refusal()
    (copied.folder / "theory.json").write_text("[]")
    assert "wanted a mapping with a list of points" in refusal()
    (copied.folder / "theory.json").unlink()
    assert "theory.json is missing" in refusal()
    (copied.folder / "theory.json").write_text(whole)
    log = (copied.folder / "metrics.jsonl").read_text().splitlines(keepends=True)
    (copied.folder / "metrics.jsonl").write_text("".join(log[:4]))
    assert "metrics.jsonl is cut off" in refusal()
    (copied.folder / "metrics.jsonl").write_text("".join(log).replace('"anchor_norm"', '"other"'))
    assert "metrics.jsonl is damaged" in refusal()
    (copied.folder / "metrics.jsonl").write_text("".join(log).replace('"temperature": ', '"temperature": -'))
    assert "metrics.jsonl is damaged" in refusal()
    (copied.folder / "metrics.jsonl").unlink()
    assert "metrics.jsonl is cut off" in refusal()
    (copied.folder / "model.safetensors").unlink()
    assert "isn't finished" in refusal()


# --- the report and the verdict ---------------------------------------------------------------------------------------


def test_the_report_shows_the_picture_and_why(finished):
    (part,) = run_sections(finished, "gft")
    assert part.title == "gft: Theory"
    assert part.picture.startswith(b"\x89PNG")
    rows = {row[0] for row in part.table}
    assert "drift error |b - b_tgt|" in rows
    page = (finished.folder / "report.html").read_text()
    assert ">Theory</h2>" in page
    assert 'alt="Theory"' in page


def test_a_comparison_shows_the_picture_of_each_run(finished, tmp_path, with_pictures):
    compare_runs({"gft": finished}, tmp_path, "path_length", "Title")
    assert ">gft: Theory</h2>" in (tmp_path / "report.html").read_text()


@pytest.mark.cuda
def test_measurements_on_cuda_are_those_on_the_cpu(finished, config, tmp_path, registry):
    run = gftkit.finetune(config, tmp_path / "run", registry=registry, device="cuda")
    one, other = points(run), points(finished)
    for key in ("gap", "drift_error", "anchor_norm", "label_noise"):
        assert one[0][key] == pytest.approx(other[0][key], rel=1e-3, abs=1e-5)
    verdict = verdict_of(run)
    assert verdict.followed, verdict.lines
    assert verdict.findings["arrived"]


def test_a_good_run_followed_and_arrived(finished):
    verdict = verdict_of(finished)
    assert verdict.followed, verdict.lines
    assert verdict.lines[0] == "The run is consistent with the theory."
    assert verdict.findings["arrived"], verdict.lines
    assert set(verdict.findings["checks"]) == {check.name for check in CHECKS}
    json.dumps(verdict.findings, allow_nan=False)


def test_a_run_that_is_too_short_lags_and_is_consistent(tune, config):
    short = tune(config, train={**config["train"], "learning_rate": 1e-4}, schedule={"name": "zero"})
    verdict = verdict_of(short)
    assert verdict.followed, verdict.lines
    assert verdict.findings["status"] == "lags"
    assert verdict.findings["reached"] < 0.9
    assert any(line.startswith("arrived: no.") and "T13" in line for line in verdict.lines)


def test_a_run_without_a_gap_goes_nowhere_and_is_consistent(tune, config):
    verdict = verdict_of(tune(config, data={"name": "two-moons"}, train={**config["train"], "steps": 50}))
    assert verdict.followed, verdict.lines
    assert verdict.findings["status"] in ("nowhere", "arrived", "beyond")


def test_an_anchor_that_shares_the_trained_weights_is_caught(tune, config, monkeypatch):
    def shared(self, drift, made_of=None, weights=None):
        self.module, self.hash, self.conditions = drift, "hash", ()

    monkeypatch.setattr(FrozenAnchor, "__init__", shared)
    verdict = verdict_of(tune(config))
    assert not verdict.followed
    assert failed_checks(verdict) >= {"anchor", "overshoot"}
    assert any("left it at step 20 (temperature 1.89)" in line for line in verdict.lines)


def test_an_anchor_that_follows_the_average_is_caught(tune, config, monkeypatch):
    whole = steps.Steps.__init__

    def averaged(self, *arguments):
        whole(self, *arguments)
        self.anchor.module = self.ema

    monkeypatch.setattr(steps.Steps, "__init__", averaged)
    assert "anchor" in failed_checks(verdict_of(tune(config)))


def test_an_objective_that_forgets_the_anchor_is_caught(tune, config, monkeypatch):
    """The anchor stands still here, and nothing that is recorded is wrong: only the drift tells."""
    monkeypatch.setitem(steps.LOSSES, "blended", lambda b, y, anchor, beta, w: (b - y).flatten(1).square().sum(1))
    verdict = verdict_of(tune(config))
    assert failed_checks(verdict) == {"overshoot"}
    assert "T13: no overshoot" in " ".join(verdict.lines)


def test_one_over_one_plus_beta_is_caught(tune, config, monkeypatch):
    """rho replaced by 1 - rho at a constant temperature: by the exact gap, since the run's own end is wrong too."""
    blended = steps.LOSSES["blended"]
    monkeypatch.setitem(steps.LOSSES, "blended", lambda b, y, anchor, beta, w: blended(b, y, anchor, 1 / beta, w))
    verdict = verdict_of(tune(config, schedule={"name": "constant", "value": 4.0}))
    assert failed_checks(verdict) == {"overshoot"}
    assert verdict.findings["status"] == "beyond"


def test_a_run_that_climbs_is_caught(tune, config, monkeypatch):
    """A sign: the anchor's mirror image of the target."""
    monkeypatch.setitem(steps.LOSSES, "blended", lambda b, y, anchor, beta, w: (b - 2 * anchor + y).square().sum(1))
    verdict = verdict_of(tune(config, schedule={"name": "constant", "value": 1.0}))
    assert failed_checks(verdict) == {"direction"}
    assert verdict.findings["status"] == "nowhere"


def test_a_start_from_other_weights_is_caught(tune, config, monkeypatch):
    whole = steps.Steps.__init__

    def moved(self, *arguments):
        whole(self, *arguments)
        with torch.no_grad():
            for values in self.drift.parameters():
                values.mul_(1.01)

    monkeypatch.setattr(steps.Steps, "__init__", moved)
    assert "start" in failed_checks(verdict_of(tune(config, train={**config["train"], "steps": 20})))


def test_pairs_of_another_law_are_caught(tune, config, monkeypatch):
    """A source of N(0, 4 I) under the name of N(0, I)."""
    from gftkit.experiment import build

    whole = build.build_source

    def doubled(*arguments):
        source = whole(*arguments)
        return lambda n, generator: 2 * source(n, generator) + 1

    monkeypatch.setattr(build, "build_source", doubled)
    assert "targets" in failed_checks(verdict_of(tune(config, train={**config["train"], "steps": 2})))


def rewritten(run, change, *kinds):
    """Change lines of a finished run's log, and write theory.json anew from it, as if they had been so."""
    lines = [json.loads(line) for line in (run.folder / "metrics.jsonl").read_text().splitlines()]
    for line in lines:
        if line["kind"] in kinds:
            change(line)
    (run.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
    Theory().finish(run.folder)
    return run


def test_a_wrong_retention_is_caught(copied):
    def wrong(line):
        line["retention"] = 1 / (1 + line["temperature"])

    assert "schedule" in failed_checks(verdict_of(rewritten(copied, wrong, "train")))
    assert "schedule" in failed_checks(verdict_of(rewritten(copied, wrong, "monitor")))


def test_another_temperature_than_the_schedules_is_caught(copied):
    def colder(line):
        line["temperature"] /= 2
        line["retention"] = line["temperature"] / (1 + line["temperature"])

    verdict = verdict_of(rewritten(copied, colder, "monitor"))
    assert "schedule" in failed_checks(verdict)
    assert "the config's schedule has the temperature 4" in " ".join(verdict.lines)


def test_a_schedule_that_rises_is_caught(tune, config):
    class Rising:
        """Rises."""

        def temperature(self, progress: float) -> float:
            return progress

    class Plugin:
        @gftkit.hookimpl
        def gftkit_schedules(self):
            return {"rising": Rising}

    registry = gftkit.load(plugins={"rising": Plugin()})
    train = {**config["train"], "steps": 50}
    verdict = verdict_of(tune(config, registry=registry, schedule={"name": "rising"}, train=train))
    assert "schedule" in failed_checks(verdict)
    assert "the temperature rises" in " ".join(verdict.lines)


def test_a_record_that_was_changed_is_caught(copied):
    path = copied.folder / "theory.json"
    values = json.loads(path.read_text())
    values["points"][3]["T"] += 1
    path.write_text(json.dumps(values))
    verdict = verdict_of(copied)
    assert failed_checks(verdict) == {"record"}
    assert "differs from metrics.jsonl at step 60 (temperature 0.422) in T." in " ".join(verdict.lines)
    values["points"].pop()
    path.write_text(json.dumps(values))
    assert failed_checks(verdict_of(copied)) == {"record"}
