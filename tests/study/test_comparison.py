"""Stability statistics, and the comparison of fine-tunes of one pretrained flow."""

import itertools
import json
import math
import sys

import numpy as np
import pytest

import gftkit
from gftkit.estimation.stability import first_reaching, instant_variance, largest_setback, spearman
from gftkit.kernel.errors import ConfigError, MissingPackageError
from gftkit.study.comparison import compare_runs, summary_table


def test_spearman_is_the_correlation_of_ranks():
    steps, values = [1, 2, 3, 4, 5], [5.0, 9.0, 3.0, 2.0, 1.0]
    ranks = np.argsort(np.argsort(values))
    assert math.isclose(spearman(steps, values), np.corrcoef(steps, ranks)[0, 1])
    assert spearman(steps, [v**3 for v in values]) == spearman(steps, values)  # any rising map of the values
    assert math.isnan(spearman([1, 2], [3.0, 4.0]))
    assert math.isnan(spearman(steps, [1.0] * 5))


def test_instant_variance_is_the_noise_about_a_trend():
    generator = np.random.default_rng(0)
    steps = np.arange(1, 4001)
    noise = 0.3 * generator.standard_normal(4000)
    measured = instant_variance(steps, 5 - steps + noise)
    assert math.isclose(measured, 0.09, rel_tol=0.06)  # 3 standard errors, as neighbouring windows share points
    assert math.isclose(measured, instant_variance(steps, noise), rel_tol=1e-6)  # a line changes nothing
    windows = np.lib.stride_tricks.sliding_window_view(5 - steps + noise, 5)
    assert windows.var(axis=1, ddof=1).mean() > 2  # where the line isn't removed, it would
    early = np.where(steps <= 800, 100.0 * generator.standard_normal(4000), noise)
    assert math.isclose(instant_variance(steps, early), 0.09, rel_tol=0.06)  # the first fifth is left out
    assert math.isnan(instant_variance(steps[:5], noise[:5]))
    whole = instant_variance(steps, early, left_out=0)
    windows = np.lib.stride_tricks.sliding_window_view(early, 5)
    assert math.isclose(whole, windows.var(axis=1, ddof=1).mean(), rel_tol=0.05)  # a line takes little of such noise
    assert math.isclose(instant_variance(range(5), [1.0, -1, 1, -1, 1], left_out=0), 1.6)


def test_the_largest_setback_is_above_the_lowest_before():
    values = [9.0, 5.0, 7.5, 4.0, 4.5, 8.0, 1.0, 2.0]
    wanted = max(v - u for i, u in enumerate(values) for v in values[i:])
    assert largest_setback(values) == wanted == 4.0
    assert wanted != max(v - u for u, v in itertools.pairwise(values))  # a single step's rise
    assert wanted != max(values) - min(values)
    assert largest_setback(sorted(values, reverse=True)) == 0
    assert math.isnan(largest_setback([]))


def test_a_threshold_is_reached_at_the_first_evaluation_at_or_below_it():
    steps, values = [2, 4, 6, 8], [5.0, 3.0, 4.0, 1.0]
    assert [first_reaching(steps, values, at) for at in (9.0, 3.0, 2.9)] == [2, 4, 8]
    assert math.isnan(first_reaching(steps, values, 0.5))


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


def test_what_is_not_reached_or_not_known_is_left_open(runs, tmp_path):
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
