"""Every metric that compares samples with data: names, intervals, and what is refused before anything is sampled."""

import math
import re
import sys

import numpy as np
import pytest
from support.evaluations import REGISTRY, Made, draw, measure, measures

import gftkit
from gftkit.evaluation.metrics import Scope, check_metrics
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.storage.log import measured_names

NAMES = (
    "classifier-two-sample", "energy", "forgetting", "frechet", "kernel-distance", "memorisation", "precision-recall",
    "sliced-wasserstein", "vendi", "wasserstein",
)  # fmt: skip
SCOPE = Scope(count=40, reference=40, training=40, held_out=True, event_shape=(2,), inherits=True)


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


@pytest.mark.parametrize("name", ["energy", "kernel-distance"])
def test_unbiased_distances_of_equal_laws_lie_about_0_and_their_intervals_hold_it(name):
    made = [measure(name, Made(*pair(60, 60, 2, seed=seed)), seed) for seed in range(60)]
    values = np.array([each.value for each in made])
    assert abs(values.mean()) < 4 * values.std(ddof=1) / math.sqrt(60)
    held = sum(each.interval[0] <= 0 <= each.interval[1] for each in made)
    assert held >= 51  # of a true 95 % fewer happen once in 5,000
    apart = [measure(name, Made(*pair(60, 60, 2, shift=1.0, seed=seed)), seed) for seed in range(5)]
    assert not any(each.interval[0] <= 0 for each in apart)


@pytest.mark.parametrize("name", NAMES)
def test_solver_steps_are_in_every_metric_name_and_used(name):
    x, y = pair(40, 40)
    made = Made(x, y, y + 1, inherited=lambda count: Batch(y))
    options = {"metric": {"name": "energy", "steps": 4}} if name == "forgetting" else {"steps": 4}
    found = measures(name, made, **options)
    assert all(key.endswith("_4_steps") for key in found)
    assert made.steps_asked == 4
    for each in found.values():
        assert math.isfinite(each.value)
        assert each.stderr >= 0


@pytest.mark.parametrize("name", NAMES)
def test_metrics_without_their_data_are_refused_before_anything_is_sampled(name):
    metric = REGISTRY.create("metric", name)
    metric.check(SCOPE)
    with pytest.raises(ConfigError, match=r"evaluate\.metrics\[0\] .*at least 20 samples, and evaluate\.count is 19"):
        check_metrics([("evaluate.metrics[0]", metric)], Scope(19, 40, 40, True, (2,), True))
    few = Scope(40, 40, 19, True, (2,), True) if name == "memorisation" else Scope(40, 19, 40, False, (2,), True)
    if name == "forgetting":
        metric, few = REGISTRY.create("metric", name, data={"name": "two-moons", "count": 19}), SCOPE
    with pytest.raises(ConfigError, match=r"at least 20 .*(19|24)|none are held out"):
        check_metrics([("evaluate.metrics[0]", metric)], few)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("energy", "forgetting")])
def test_features_of_the_wrong_size_are_refused_at_the_start(name):
    metric = REGISTRY.create("metric", name, feature=lambda x: x.sum(1))
    with pytest.raises(ConfigError, match=r"maps \(2, 2\) to \(2, d\), got \(2,\)"):
        check_metrics([("evaluate.metrics[0]", metric)], SCOPE)
    bad = REGISTRY.create("metric", name, feature=lambda x: x / 0)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        check_metrics([("evaluate.metrics[0]", bad)], SCOPE)


def test_options_of_single_metrics_are_refused_at_the_start(monkeypatch):
    with pytest.raises(ConfigError, match="nothing was pretrained"):
        check_metrics([("evaluate.metrics[0]", REGISTRY.create("metric", "forgetting"))], Scope(40, 40, 40, True, (2,)))
    with pytest.raises(ConfigError, match="none are held out"):
        check_metrics(
            [("evaluate.metrics[0]", REGISTRY.create("metric", "memorisation"))], Scope(40, 40, 40, False, (2,))
        )
    with pytest.raises(ConfigError, match="at least 60 samples"):
        check_metrics([("evaluate.metrics[0]", REGISTRY.create("metric", "kernel-distance", subset=60))], SCOPE)
    with pytest.raises(ConfigError, match="at least 62 samples"):
        check_metrics([("evaluate.metrics[0]", REGISTRY.create("metric", "precision-recall", neighbours=30))], SCOPE)
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Set evaluate\.count to 30"):
        check_metrics(
            [("evaluate.metrics[0]", REGISTRY.create("metric", "wasserstein"))], Scope(40, 30, 40, True, (2,))
        )


def test_metric_names_leave_out_options_of_other_metrics():
    assert measured_names(["a", "a_stderr", "a_low", "a_high", "b_low", "b_low_stderr"]) == ["a", "b_low"]


# In runs


def test_a_run_measures_two_sample_metrics_and_reports_their_intervals(finetune_config, tmp_path, with_pictures):
    finetune_config["evaluate"] |= {
        "data": {"name": "gaussian-mixture", "count": 40, "split": "test"},
        "metrics": ["precision-recall", "memorisation", "forgetting"],
    }
    finetune_config["train"]["steps"] = 2
    run = gftkit.finetune(finetune_config, tmp_path / "run")
    values = run.evaluate()
    shown = ["precision", "recall", "density", "coverage", "memorisation", "forgetting_energy"]
    assert measured_names(values) == shown
    line = run.history()[-1]
    assert all(line[name] == values[name] for name in values)
    assert all((f"{name}_low" in values) == (name != "density") for name in shown)
    old = gftkit.Run.open(finetune_config["pretrained"]).training_data(32)
    made = run.evaluate(["evaluate.metrics=[energy]", "evaluate.data={name: two-moons, count: 32}"])
    assert values["forgetting_energy"] != made["energy"]  # other points of the same law
    assert old.x1.shape == (32, 2)
    report = (tmp_path / "run" / "report.html").read_text()
    assert f"[{values['memorisation_low']:.3g}, {values['memorisation_high']:.3g}]" in report
    assert "memorisation_low" not in report


@pytest.mark.parametrize(
    ("metric", "message"),
    [
        ("memorisation", "none are held out"),
        ({"name": "kernel-distance", "subset": 33}, "at least 33 samples, and evaluate.count is 32"),
        ({"name": "frechet", "feature": {"name": "efficientnet-lite0"}}, "takes images of shape"),
        ({"name": "vendi", "feature": {"name": "module", "target": "torch.nn:Identity"}, "steps": 0}, "steps: wanted"),
        ({"name": "vendi", "feature": {"name": "module", "target": "torch.nn:Unflatten"}}, "feature.options"),
        ({"name": "forgetting", "data": {"name": "digits"}}, r"wanted samples of shape \(2,\)"),
    ],
)
def test_a_run_refuses_such_metrics_before_it_samples(finetuning, finetune_config, monkeypatch, metric, message):
    monkeypatch.setattr(
        "gftkit.evaluation.evaluation.generate", lambda *_, **__: pytest.fail("sampled before it was refused")
    )
    evaluate = {**finetune_config["evaluate"], "metrics": ["path-length", metric]}
    found = finetuning(evaluate=evaluate)
    assert re.search(message, found)
    assert "evaluate.metrics[1]" in found
