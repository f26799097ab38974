"""The comparison of fine-tunes of one pretrained flow."""

import json
import sys

import pytest

import gftkit
from gftkit.kernel.errors import ConfigError
from gftkit.runtime.extras import MissingPackageError
from gftkit.study.comparison import compare_runs, summary_table


@pytest.fixture(scope="module")
def runs(pretrained, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs")
    config = {
        "pretrained": str(pretrained),
        "data": {"name": "two-moons", "count": 20},
        "train": {"steps": 12, "batch_size": 8},
        "evaluate": {"every": 2, "count": 40, "metrics": ["energy", "path-length"]},
    }
    return {
        name: gftkit.finetune({**config, "schedule": {"name": schedule}}, folder / name)
        for name, schedule in (("plain", "zero"), ("gft", "exponential"))
    }


def test_a_comparison_without_matplotlib_is_refused_before_it_begins(runs, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(MissingPackageError, match=r"a comparison: .*pip install 'gftkit\[report\]'"):
        compare_runs(runs, tmp_path, "energy", "A title")
    assert not list(tmp_path.iterdir())


def test_comparison_writes_numbers_pictures_and_report(runs, tmp_path, with_pictures):
    summary = compare_runs(runs, tmp_path, "energy", "A <title>")
    stability = {"spearman", "instant_variance", "instant_variance_whole", "largest_setback", "steps_to_threshold"}
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert list(summary) == ["pretrained", "plain", "gft"]
    for name, numbers in summary.items():
        assert {"energy", "energy_stderr", "path_length"} <= set(numbers)
        assert (stability | {"seconds"} <= set(numbers)) == (name != "pretrained")
    assert summary["pretrained"]["energy"] == runs["gft"].history()[0]["energy"]
    assert summary["gft"]["energy"] == runs["gft"].evaluate()["energy"]
    last = {name: run.history()[-2]["energy"] for name, run in runs.items()}
    for name, run in runs.items():
        reached = summary[name]["steps_to_threshold"]
        assert reached in run.seconds()
        assert summary[name]["seconds_to_threshold"] == run.seconds()[reached] <= summary[name]["seconds"]
        values = {line["step"]: line["energy"] for line in run.history() if line.get("weights") == "raw"}
        assert values[reached] <= max(last.values()) < min([values[s] for s in values if 0 < s < reached], default=99)
    report = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in report
    assert "http" not in report.replace("http-equiv", "")  # self-contained
    for name in ("samples.png", "curve.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    head, *rows = summary_table(summary)
    assert head == ["", "pretrained", "plain", "gft"]
    assert not {"energy_stderr", "energy_low", "energy_high"} & {row[0] for row in rows}
    assert "[" in next(row for row in rows if row[0] == "energy")[2]


def test_thresholds_not_reached_or_not_known_are_left_open(runs, tmp_path):
    summary = compare_runs(runs, tmp_path, "energy", "title", threshold=-99.0)
    assert summary["gft"]["steps_to_threshold"] is None
    assert summary["gft"]["seconds_to_threshold"] is None


def test_seconds_of_training_rise_and_leave_evaluations_out(runs):
    for run in runs.values():
        seconds = run.seconds()
        assert list(seconds) == [2, 4, 6, 8, 10, 12]
        assert list(seconds.values()) == sorted(seconds.values())
        told = [json.loads(line) for line in (run.folder / "seconds.jsonl").read_text().splitlines()]
        assert all(line["training"] <= line["seconds"] for line in told)
        assert told[-1]["training"] < told[-1]["seconds"]


def test_runs_that_cannot_be_compared_are_refused(runs, pretrained, tmp_path):
    with pytest.raises(ConfigError, match="doesn't measure frechet: it has energy"):
        compare_runs(runs, tmp_path, "frechet", "title")
    with pytest.raises(ConfigError, match="one pretrained run"):
        compare_runs({"pre": gftkit.Run.open(pretrained)}, tmp_path, "energy", "title")
    assert not list(tmp_path.iterdir())
