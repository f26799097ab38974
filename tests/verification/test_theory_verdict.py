"""The report and the verdict of the monitor ``theory``: sound runs pass, and each kind of broken run is caught."""

import json

import pytest
import torch
from support.theory_runs import failed_checks, points, verdict_of

import gftkit
from gftkit.api import Run
from gftkit.experiment import probes
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks.anchor import FrozenAnchor
from gftkit.study.comparison import compare_runs
from gftkit.theory import objective
from gftkit.training import steps
from gftkit.training.verdict import run_sections, verify_run
from gftkit_verification.monitors.theory import Theory
from gftkit_verification.monitors.theory.checks import CHECKS

# --- the report and the verdict ---------------------------------------------------------------------------------------


def test_the_report_shows_the_picture_and_why(finished):
    part, *_ = run_sections(finished, "gft")
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
    made = FrozenAnchor.__init__

    def shared(self, drift, made_of=None, weights=None):
        made(self, drift, made_of, weights)
        self.module = drift

    monkeypatch.setattr(FrozenAnchor, "__init__", shared)
    with pytest.raises(ConfigError, match="it changes with the weights that are trained"):
        tune(config)
    monkeypatch.setattr(probes, "check_anchor_stays", lambda *_: None)
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
    monkeypatch.setitem(objective.LOSSES, "blended", lambda b, y, anchor, beta, w: (b - y).flatten(1).square().sum(1))
    verdict = verdict_of(tune(config))
    assert failed_checks(verdict) == {"overshoot"}
    assert "T13: no overshoot" in " ".join(verdict.lines)


def test_one_over_one_plus_beta_is_caught(tune, config, monkeypatch):
    """rho replaced by 1 - rho at a constant temperature: by the exact gap, since the run's own end is wrong too."""
    blended = objective.LOSSES["blended"]
    monkeypatch.setitem(objective.LOSSES, "blended", lambda b, y, anchor, beta, w: blended(b, y, anchor, 1 / beta, w))
    verdict = verdict_of(tune(config, schedule={"name": "constant", "value": 4.0}))
    assert failed_checks(verdict) == {"overshoot"}
    assert verdict.findings["status"] == "beyond"


def test_a_run_that_climbs_is_caught(tune, config, monkeypatch):
    """A sign: the anchor's mirror image of the target."""
    monkeypatch.setitem(objective.LOSSES, "blended", lambda b, y, anchor, beta, w: (b - 2 * anchor + y).square().sum(1))
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


# --- refusals ---------------------------------------------------------------------------------------------------------


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
