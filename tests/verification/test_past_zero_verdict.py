"""Verdicts on runs past zero and with profiles: sound ones are consistent, and their broken twins are caught."""

import json
import shutil

import pytest
import torch
from support.theory_runs import failed_checks, points, verdict_of

import gftkit
from gftkit.api import Run
from gftkit.theory import objective
from gftkit.theory.temperature import mean_retention
from gftkit.training import steps
from gftkit.training.verdict import run_sections
from gftkit_plugins.profiles import Linear
from gftkit_verification.monitors.theory import Theory
from gftkit_verification.monitors.theory.recommendation import recommend

PAST = {"name": "exponential", "end": -0.2}
PROFILE = {"name": "exponential", "end": {"name": "step", "early": -0.3, "late": 0.5, "cut": 0.5}}


@pytest.fixture(scope="module")
def longer(config):
    """Of more steps: below 0 an optimum is further away."""
    return {**config, "train": {**config["train"], "steps": 240}}


@pytest.fixture(scope="module")
def past(tune, longer):
    """A run that ends at a retention of -0.2. Don't write to it: take ``rewritten``."""
    return tune(longer, schedule=PAST)


@pytest.fixture(scope="module")
def stepped(tune, longer):
    """A run that ends at -0.3 early in flow time, and at 0.5 late. Don't write to it."""
    return tune(longer, schedule=PROFILE)


@pytest.fixture
def rewritten(tmp_path):
    """A copy of a run with its log changed, and theory.json as if it had been so."""

    def rewrite(run, change):
        copy = Run.open(shutil.copytree(run.folder, tmp_path / "copy"), run.registry)
        lines = [json.loads(line) for line in (copy.folder / "metrics.jsonl").read_text().splitlines()]
        for line in lines:
            if line["kind"] == "monitor":
                change(line)
        (copy.folder / "metrics.jsonl").write_text("".join(json.dumps(line) + "\n" for line in lines))
        Theory().finish(copy.folder)
        return copy

    return rewrite


def test_a_run_past_zero_followed_and_arrived(past):
    verdict, last = verdict_of(past), points(past)[-1]
    assert verdict.followed, verdict.lines
    assert verdict.findings["arrived"], verdict.lines
    assert last["retention"] == last["remaining_at_optimum"] == pytest.approx(-0.2)
    assert last["remaining"] == pytest.approx(-0.2, abs=0.1)
    assert last["lag"] == pytest.approx(-0.2, abs=0.1)
    assert "retention_by_time" not in last
    assert "(temperature -0.167)" in " ".join(verdict.lines)


def test_a_run_with_a_profile_followed_and_arrived(stepped):
    verdict, (first, *_, last) = verdict_of(stepped), points(stepped)
    assert verdict.followed, verdict.lines
    assert verdict.findings["arrived"], verdict.lines
    assert "retention -0.3 to 0.5 by flow time" in " ".join(verdict.lines)
    assert first["distance_to_optimum"] == pytest.approx(first["optimum_way"])
    assert last["retention_by_time"] == pytest.approx([-0.3] * 4 + [0.5] * 4)
    assert all(abs(lag - 0.5) < 0.2 for lag in last["lag_by_time"][4:])
    assert last["lag_by_time"][3] < 0  # beyond the target; earlier in flow time it is less well known
    json.dumps(verdict.findings, allow_nan=False)


def test_the_report_shows_lag_and_retention_by_flow_time(stepped):
    whole, by_time = run_sections(stepped, "gft")
    assert whole.title == "gft: Theory"
    assert by_time.title == "gft: Theory by flow time"
    assert by_time.picture.startswith(b"\x89PNG")
    assert by_time.table[0][:3] == ("flow time", "rho", "lag c")
    assert len(by_time.table) == 9
    assert "held-out targets wouldn't" in by_time.text


# --- broken twins -----------------------------------------------------------------------------------------------------


def other_profile(line):
    if "retention_by_time" in line:
        line["retention_by_time"] = line["retention_by_time"][::-1]


def no_profile(line):
    for key in ("retention_by_time", "retention_low", "retention_high", "gap_batches"):
        line.pop(key, None)


def positive(line):
    if line["temperature"] < 0:
        line["temperature"] *= -1
        line["retention"] = line["temperature"] / (1 + line["temperature"])


@pytest.mark.parametrize(
    ("run", "change", "complaint"),
    [
        ("stepped", other_profile, "; the config's schedule has"),
        ("stepped", no_profile, "the config's schedule has a retention that depends on flow time"),
        ("past", positive, "the config's schedule has the temperature -"),
        ("past", lambda line: line.update(retention_by_time=[0.0] * 8), "has no retention that depends on flow time"),
    ],
    ids=["reversed", "no profile", "sign", "a profile"],
)
def test_a_record_of_other_retentions_is_caught(request, rewritten, run, change, complaint):
    verdict = verdict_of(rewritten(request.getfixturevalue(run), change))
    assert "schedule" in failed_checks(verdict)
    assert complaint in " ".join(verdict.lines), verdict.lines


def test_a_retention_that_rises_at_some_flow_times_is_caught(tune, longer, registry):
    class Turning:
        """Its mean falls, and late in flow time it rises."""

        def temperature(self, progress):
            retention = mean_retention(self.profile(progress))
            return retention / (1 - retention)

        def profile(self, progress):
            return Linear(0.5 - progress, 0.2 + progress / 4)

    plugin = type("Plugin", (), {"gftkit_schedules": gftkit.hookimpl(lambda self: {"turning": Turning})})
    turning = gftkit.load(plugins={"turning": plugin()})
    train = {**longer["train"], "steps": 40}
    verdict = verdict_of(tune(longer, registry=turning, schedule={"name": "turning"}, train=train))
    assert "schedule" in failed_checks(verdict)
    assert "rises, from 0.2" in " ".join(verdict.lines)


def test_a_loop_that_goes_too_far_past_zero_is_caught(tune, longer, monkeypatch):
    """All that is recorded is right: only the drift tells, by the exact gap."""
    blended = objective.LOSSES["blended"]
    monkeypatch.setitem(objective.LOSSES, "blended", lambda b, y, anchor, beta, w: blended(b, y, anchor, -0.4, w))
    verdict = verdict_of(tune(longer, schedule=PAST))
    assert failed_checks(verdict) == {"overshoot"}, verdict.lines


def test_a_loop_that_stops_at_zero_does_not_arrive(tune, longer, monkeypatch):
    blended = objective.LOSSES["blended"]
    loss = lambda b, y, anchor, beta, w: blended(b, y, anchor, max(beta, 0.0), w)  # noqa: E731
    monkeypatch.setitem(objective.LOSSES, "blended", loss)
    verdict = verdict_of(tune(longer, schedule=PAST))
    assert verdict.followed, verdict.lines
    assert verdict.findings["status"] == "lags"


def test_a_loop_that_reverses_flow_time_is_caught(tune, longer, monkeypatch):
    class Backwards:
        def __init__(self, profile):
            self.profile = profile

        def retention(self, t):
            return self.profile.retention(1 - t)

    def reversed_temperatures(self, step):
        profile = self.profile(step)
        return steps.temperatures_of(Backwards(profile), self._times_of(step)[0])

    monkeypatch.setattr(steps.Steps, "_temperatures", reversed_temperatures)
    verdict = verdict_of(tune(longer, schedule=PROFILE))
    assert failed_checks(verdict) == {"overshoot"}, verdict.lines
    assert "around flow time" in " ".join(verdict.lines)


@pytest.mark.parametrize(
    "schedule",
    [
        {"name": "constant", "value": -0.6},
        {"name": "exponential", "end": {"name": "linear", "early": -2.0, "late": 0.2}},
    ],
    ids=["constant", "profile"],
)
def test_below_minus_one_it_is_not_known_how_far_the_run_came(tune, config, schedule):
    run = tune(config, schedule=schedule, train={**config["train"], "steps": 60, "learning_rate": 5e-4})
    verdict, last = verdict_of(run), points(run)[-1]
    assert verdict.followed, verdict.lines
    assert verdict.findings["status"] == "unknown"
    assert last["gap_squared_by_loss"] is None
    assert last["remaining"] is None
    json.dumps(verdict.findings, allow_nan=False)
    assert run_sections(run, "run")


# --- what is recommended ----------------------------------------------------------------------------------------------


def test_a_run_that_stopped_early_is_told_to_go_past_zero(tune, config):
    lagging = tune(config, schedule={"name": "zero"}, train={**config["train"], "learning_rate": 3e-4})
    findings = verdict_of(lagging).findings
    assert points(lagging)[-1]["lag"] > 0.1
    assert findings["recommended_retention"] < -0.1
    assert findings["best_retention"] < findings["recommended_retention"]  # shrunk towards 0
    assert "To end at -" in " ".join(verdict_of(lagging).lines)


def test_a_run_that_memorises_is_told_to_keep_some_of_the_anchor_by_held_out_targets(tune, config):
    held_out = {**config["evaluate"], "data": {"name": "gaussian-mixture", "count": 200, "split": "test"}}
    few = tune(
        config,
        data={"name": "gaussian-mixture", "count": 8, "split": "train"},
        evaluate=held_out,
        schedule={"name": "zero"},
        train={**config["train"], "steps": 400},
    )
    findings, last = verdict_of(few).findings, points(few)[-1]
    assert last["held_out_best_retention"] > last["best_retention"] + 5 * last["held_out_best_retention_stderr"]
    assert findings["recommended_retention"] > 0.1
    assert any(rho > 0.1 for rho in findings["recommended_by_time"])
    *_, by_time = run_sections(few, "few")
    assert "r*, held-out" in by_time.table[0]


def document(value, stderr, prefix="", retention=0.0):
    """theory.json with one part of flow time."""
    last = {
        "retention": retention,
        "gap_squared_by_loss": 4.0,
        "gap_squared_by_loss_stderr": 0.1,
        "lag": 0.0,
        "lag_stderr": 0.1,
    }
    for name in {"best_retention", f"{prefix}best_retention"}:
        last |= {name: value, f"{name}_stderr": stderr}
        last |= {f"{name}_by_time": [value], f"{name}_by_time_stderr": [stderr]}
    return {"setting": {"edges": [0.0, 1.0], "batches": 16}, "points": [last]}


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (document(-0.2, 0.02), -0.198),
        (document(-0.2, 0.1), 0.0),  # not significant
        (document(0.2, 0.02), 0.0),  # training targets don't ask for more
        (document(0.2, 0.02, "held_out_"), 0.198),
        (document(-0.2, 0.02, "held_out_", retention=0.5), 0.401),
        (document(-0.2, 0.02, retention=-0.2), -0.4376),
    ],
)
def test_the_recommendation_is_shrunk_and_zero_unless_significant(given, expected):
    assert recommend(given).findings["recommended_retention"] == pytest.approx(expected)


def test_nothing_is_recommended_for_a_run_that_closed_no_gap():
    still = document(-0.2, 0.02)
    still["points"][0]["gap_squared_by_loss"] = 0.05
    assert recommend(still).sentences == []


def test_a_recommendation_is_seldom_given_without_reason():
    """Where r* is 0, at most 5 % of the runs are told something else: of 16 batches, by Student's law."""
    drawn = torch.randn(2000, 16, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    told = [
        recommend(document(float(batch.mean()), float(batch.std() / 4), "held_out_")).findings["recommended_retention"]
        for batch in drawn / 10
    ]
    assert 0.01 < sum(rho != 0 for rho in told) / len(told) < 0.06  # here both tests are the same one
