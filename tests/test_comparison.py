"""Stability statistics, and the comparison of fine-tunes of one pretrained flow."""

import json
import math

import numpy as np
import pytest

import gftkit
from gftkit.comparison import compare, table
from gftkit.errors import ConfigError
from gftkit.stability import instant_variance, spearman


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


def test_comparison_writes_numbers_pictures_and_report(runs, tmp_path, with_pictures):
    summary = compare(runs, tmp_path, "energy", "A <title>")
    assert json.loads((tmp_path / "summary.json").read_text()) == summary
    assert list(summary) == ["pretrained", "plain", "gft"]
    for name, numbers in summary.items():
        assert {"energy", "energy_stderr", "path_length"} <= set(numbers)
        assert ({"spearman", "instant_variance", "seconds"} <= set(numbers)) == (name != "pretrained")
    assert summary["pretrained"]["energy"] == runs["gft"].history()[0]["energy"]
    assert summary["gft"]["energy"] == runs["gft"].evaluate()["energy"]
    report = (tmp_path / "report.html").read_text()
    assert "A &lt;title&gt;" in report
    assert "http" not in report.replace("http-equiv", "")  # self-contained
    for name in ("samples.png", "curve.png"):
        assert (tmp_path / name).read_bytes().startswith(b"\x89PNG")
    assert table(summary)[0] == ["", "pretrained", "plain", "gft"]


def test_runs_that_cannot_be_compared_are_refused(runs, pretrained, tmp_path):
    with pytest.raises(ConfigError, match="doesn't measure frechet: it has energy"):
        compare(runs, tmp_path, "frechet", "title")
    with pytest.raises(ConfigError, match="one pretrained run"):
        compare({"pre": gftkit.Run.open(pretrained)}, tmp_path, "energy", "title")
    assert not list(tmp_path.iterdir())
