"""Evaluations along a run: of averaged weights, of metrics at the ends only, and what is refused."""

import json

import pytest
from support.runs_on_moons import STEPS, interrupt, model, same

import gftkit
from gftkit.kernel.errors import GftkitError


def test_averaged_weights_are_measured_along_the_run_where_asked_for(tuning, tmp_path, registry):
    plain = gftkit.finetune(tuning, tmp_path / "plain", registry=registry)
    tuning["evaluate"]["averaged"] = True
    run = gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    assert same(model(plain.folder), model(run.folder))
    where = [(line["step"], line["weights"]) for line in run.history() if line["kind"] == "evaluation"]
    assert where == [(0, "raw"), (8, "raw"), (8, "ema"), (16, "raw"), (16, "ema"), (STEPS, "raw"), (STEPS, "ema")]
    values = [line["path_length"] for line in run.history() if line.get("weights") == "ema"]
    assert len(set(values)) == len(values)  # each of its own step
    raw = [line for line in run.history() if line.get("weights") == "raw"]
    assert raw == [line for line in plain.history() if line.get("weights") == "raw"]
    whole = (run.folder / "metrics.jsonl").read_text()
    interrupt(run.folder, 16)
    gftkit.finetune(tuning, run.folder, registry=registry, resume=True)
    assert (run.folder / "metrics.jsonl").read_text() == whole


def test_metrics_of_the_ends_are_measured_there_only(tuning, tmp_path, registry):
    tuning["evaluate"] |= {"averaged": True, "ends": ["straightness"]}
    run = gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    lines = [line for line in run.history() if line["kind"] == "evaluation"]
    having = [(line["step"], line["weights"]) for line in lines if "straightness" in line]
    assert having == [(0, "raw"), (STEPS, "ema")]
    assert all("path_length" in line for line in lines)
    assert (
        run.evaluate()["straightness"] == json.loads((run.folder / "summary.json").read_text())["ema"]["straightness"]
    )
    report = (run.folder / "report.html").read_text()
    assert '<h2 id="path_length">' in report
    assert '<h2 id="straightness">' not in report  # two points are no curve


@pytest.mark.parametrize(
    ("ends", "match"),
    [
        (["path-length"], r"evaluate\.ends\[0\] \(PathLength\) measures path_length, as a metric before it does"),
        (["memorisation"], r"evaluate\.ends\[0\] \(Memorisation\): memorisation compares"),
        (["frechett"], r"evaluate\.ends\[0\]"),
    ],
)
def test_bad_metrics_of_the_ends_are_refused_before_the_first_step(tuning, tmp_path, registry, ends, match):
    tuning["evaluate"]["ends"] = ends
    with pytest.raises(GftkitError, match=match):
        gftkit.finetune(tuning, tmp_path / "run", registry=registry)
    assert not (tmp_path / "run" / "config.yaml").exists()
