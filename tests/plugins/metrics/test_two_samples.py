"""Metrics that compare samples with data: against libraries and closed forms, and twins that they must reject."""

import math
import re
import sys

import numpy as np
import ot
import pytest
import torch
from sklearn.metrics.pairwise import polynomial_kernel
from sklearn.neighbors import NearestNeighbors
from support.evaluations import REGISTRY, Made, draw, measure, measures

import gftkit
from gftkit.evaluation.metrics import Scope, check
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import ConfigError
from gftkit.storage.log import names
from gftkit_plugins.metrics.precision_recall import shares

ROUND_OFF = 1e-9
NAMES = (
    "classifier-two-sample", "energy", "forgetting", "frechet", "kernel-distance", "memorisation", "precision-recall",
    "sliced-wasserstein", "vendi", "wasserstein",
)  # fmt: skip
SCOPE = Scope(count=40, reference=40, training=40, held_out=True, event_shape=(2,), inherits=True)


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


# Kernel distance


def mmd(x, y, unbiased=True, degree=3, gamma=None):
    """Binkowski et al., by scikit-learn's kernel."""
    xx, yy, xy = (polynomial_kernel(a, b, degree, gamma, coef0=1) for a, b in ((x, x), (y, y), (x, y)))
    n, m = xy.shape
    if not unbiased:
        return xx.mean() + yy.mean() - 2 * xy.mean()
    within = (xx.sum() - np.trace(xx)) / (n * (n - 1)) + (yy.sum() - np.trace(yy)) / (m * (m - 1))
    return within - 2 * xy.mean()


def test_kernel_distance_is_the_unbiased_mmd_of_the_cubic_kernel():
    x, y = pair(30, 45, shift=0.5)
    found = measure("kernel-distance", Made(x, y))
    assert found.value == pytest.approx(mmd(x, y), rel=ROUND_OFF)
    assert found.interval[0] < found.value < found.interval[1]
    for wrong in (mmd(x, y, unbiased=False), mmd(x, y, degree=2), mmd(x, y, gamma=1.0)):
        assert found.value != pytest.approx(wrong, rel=1e-3)


def test_kernel_distance_over_subsets():
    x, y = pair(40, 40, shift=0.5)
    whole = measure("kernel-distance", Made(x, y), subset=40, subsets=2)
    assert whole.value == pytest.approx(mmd(x, y), rel=1e-6)
    halves = [measure("kernel-distance", Made(x, y), seed=seed, subset=20, subsets=200) for seed in (0, 1)]
    spread = abs(halves[0].value - halves[1].value)
    assert spread < 0.5 * halves[0].stderr  # the same data: only the choice of subsets differs
    assert abs(halves[0].value - mmd(x, y)) < halves[0].stderr
    with pytest.raises(ValueError, match="a subset takes 60 samples, got 40"):
        measure("kernel-distance", Made(x, y), subset=60)


@pytest.mark.parametrize("name", ["energy", "kernel-distance"])
def test_unbiased_distances_of_equal_laws_lie_about_0_and_their_intervals_hold_it(name):
    made = [measure(name, Made(*pair(60, 60, 2, seed=seed)), seed) for seed in range(60)]
    values = np.array([each.value for each in made])
    assert abs(values.mean()) < 4 * values.std(ddof=1) / math.sqrt(60)
    held = sum(each.interval[0] <= 0 <= each.interval[1] for each in made)
    assert held >= 51  # of a true 95 % fewer happen once in 5,000
    apart = [measure(name, Made(*pair(60, 60, 2, shift=1.0, seed=seed)), seed) for seed in range(5)]
    assert not any(each.interval[0] <= 0 for each in apart)


# Precision, recall, density, coverage


def by_neighbours(x, y, k):
    """The four numbers by scikit-learn's neighbours and loops."""
    reach = {}
    for name, of in (("x", x), ("y", y)):
        reach[name] = NearestNeighbors(n_neighbors=k + 1).fit(of).kneighbors(of)[0][:, k]
    near = [[math.dist(a, b) for b in y.tolist()] for a in x.tolist()]
    inside = [[near[i][j] <= reach["y"][j] for j in range(len(y))] for i in range(len(x))]
    return {
        "precision": np.mean([any(row) for row in inside]),
        "recall": np.mean([any(near[i][j] <= reach["x"][i] for i in range(len(x))) for j in range(len(y))]),
        "density": np.sum(inside) / (k * len(x)),
        "coverage": np.mean(np.any(inside, axis=0)),
    }


def test_precision_recall_density_and_coverage_are_those_of_the_papers():
    x, y = pair(30, 45, 2, shift=0.8)
    found = measures("precision-recall", Made(x, y), neighbours=3)
    wanted = by_neighbours(x, y, 3)
    assert {name: each.value for name, each in found.items()} == pytest.approx(wanted, rel=ROUND_OFF)
    turned = by_neighbours(y, x, 3)
    assert turned["precision"] == pytest.approx(wanted["recall"])
    assert wanted["precision"] != wanted["recall"]
    without_itself = by_neighbours(x, y, 2)
    assert all(found[name].value != pytest.approx(without_itself[name], rel=1e-6) for name in ("density", "coverage"))


def test_density_and_coverage_of_equal_laws_are_naeems():
    n, m, k = 50, 30, 3
    made = np.array([
        shares(*(torch.cdist(a, b) for a, b in ((x, x), (y, y), (x, y))), k)
        for x, y in (pair(n, m, 2, seed=seed) for seed in range(200))
    ])  # fmt: skip
    errors = made.std(0, ddof=1) / math.sqrt(len(made))
    wanted = 1 - math.comb(m - 1, k) / math.comb(n + m - 1, k)
    assert abs(made[:, 2].mean() - 1) < 4 * errors[2]
    assert abs(made[:, 3].mean() - wanted) < 4 * errors[3]
    assert abs(made[:, 3].mean() - (1 - math.comb(n - 1, k) / math.comb(n + m - 1, k))) > 12 * errors[3]


def test_a_lost_mode_lowers_recall_and_coverage_and_noise_lowers_precision_and_density():
    _, y = pair(80, 80, 2)
    y[:40] += 20
    lost = measures("precision-recall", Made(draw(80, 2, seed=5), y))
    noisy = measures("precision-recall", Made(torch.cat([draw(40, 2, seed=6) * 30 + 200, y[:40] + 0.01]), y))
    assert lost["recall"].value <= 0.55
    assert lost["coverage"].value <= 0.55
    assert lost["precision"].value > 0.8
    assert noisy["precision"].value <= 0.55
    assert noisy["density"].value <= 0.7
    for each in (*lost.values(), *noisy.values()):
        assert each.interval is None or 0 <= each.interval[0] <= each.value <= each.interval[1] <= 1


@pytest.mark.parametrize("which", ["samples", "data"])
def test_features_that_coincide_are_refused(which):
    x, y = pair(40, 40, 2)
    one = torch.ones_like(x)
    made = Made(one, y) if which == "samples" else Made(x, one)
    with pytest.raises(ValueError, match=f"features of the {which} coincide.*one class"):
        measures("precision-recall", made)
    with pytest.raises(ValueError, match="20 neighbours want at least 42"):
        measures("precision-recall", Made(x, y), neighbours=20)


# Wasserstein


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (24, 37)])
def test_wasserstein_is_pots(p, n, m):
    x, y = pair(n, m, 2, shift=0.7)
    found = measure("wasserstein", Made(x, y), p=p)
    cost = ot.dist(x.numpy(), y.numpy(), "euclidean") ** p
    wanted = ot.emd2(ot.unif(n), ot.unif(m), cost) ** (1 / p)
    assert found.value == pytest.approx(wanted, rel=1e-8)
    assert found.stderr > 0
    assert found.value != pytest.approx(cost.mean() ** (1 / p), rel=0.01)  # the independent plan


def test_unequal_numbers_want_pot(monkeypatch):
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ValueError, match=r"Set evaluate.count to 24, or install it: pip install 'gftkit\[transport\]'"):
        measure("wasserstein", Made(*pair(24, 37)))
    assert measure("wasserstein", Made(*pair(24, 24))).value > 0


@pytest.mark.parametrize("p", [1, 2])
@pytest.mark.parametrize(("n", "m"), [(30, 30), (24, 37)])
def test_sliced_wasserstein_is_pots_and_exact_on_a_line(p, n, m):
    x, y = pair(n, m, 4, shift=0.7)
    generator = torch.Generator().manual_seed(3)
    directions = torch.randn(50, 4, generator=generator, dtype=torch.float64)
    directions /= directions.norm(dim=1, keepdim=True)
    wanted = ot.sliced_wasserstein_distance(x.numpy(), y.numpy(), projections=directions.T.numpy(), p=p)
    assert measure("sliced-wasserstein", Made(x, y), 3, p=p, projections=50).value == pytest.approx(wanted, rel=1e-8)
    line = measure("sliced-wasserstein", Made(x[:, :1], y[:, :1]), p=p).value
    exact = ot.wasserstein_1d(x[:, 0].numpy(), y[:, 0].numpy(), p=p) ** (1 / p)
    assert line == pytest.approx(exact, rel=1e-8)


def test_sliced_wasserstein_of_a_shift_is_its_length_over_the_root_of_the_dimension():
    x = draw(200, 5, seed=0)
    shift = draw(5, seed=1)
    found = measure("sliced-wasserstein", Made(x, x + shift), projections=1000).value
    assert found == pytest.approx(float(shift.norm()) / math.sqrt(5), rel=0.1)
    assert found != pytest.approx(float(shift.norm()), rel=0.5)


@pytest.mark.parametrize("name", ["wasserstein", "sliced-wasserstein"])
def test_errors_of_transport_distances_are_their_spread(name):
    made = [measure(name, Made(*pair(60, 60, 2, shift=1.5, seed=seed)), seed) for seed in range(40)]
    spread = np.std([each.value for each in made], ddof=1)
    assert np.mean([each.stderr for each in made]) / spread == pytest.approx(1, abs=0.4)


# Classifier two-sample test


def test_a_classifier_finds_what_differs_and_nothing_where_nothing_does():
    same = [measures("classifier-two-sample", Made(*pair(60, 60, 2, seed=seed)), seed) for seed in range(6)]
    values = np.array([each["classifier_two_sample"].value for each in same])
    null = same[0]["classifier_two_sample_null"]
    assert (null.value, null.stderr) == (0.5, pytest.approx(1 / (2 * math.sqrt(120))))
    assert abs(values.mean() - 0.5) < 4 * 1.5 * null.stderr / math.sqrt(6)
    assert values.std(ddof=1) < 2.5 * null.stderr
    apart = measures("classifier-two-sample", Made(*pair(60, 80, 2, shift=8.0)))["classifier_two_sample"]
    assert apart.value == 1
    assert 0.95 < apart.interval[0] < 1
    x, y = pair(200, 200, 2)
    circle = measures("classifier-two-sample", Made(x, 3 * y / y.norm(dim=1, keepdim=True)))  # of equal means
    assert circle["classifier_two_sample"].value > 0.85


def test_a_classifier_is_judged_on_what_it_has_not_seen():
    """In many dimensions it learns its own data by heart: with these, accuracy would be near 1."""
    found = measures("classifier-two-sample", Made(*pair(40, 40, 100)))["classifier_two_sample"]
    assert 0.3 < found.value < 0.7


# Vendi score


def vendi(x):
    x = x.numpy() / np.linalg.norm(x.numpy(), axis=1, keepdims=True)
    values = np.linalg.eigvalsh(x @ x.T / len(x))
    values = values[values > 1e-12]
    return math.exp(-(values * np.log(values)).sum())


@pytest.mark.parametrize("d", [3, 70])
def test_vendi_is_the_entropy_of_the_kernels_eigenvalues(d):
    x, y = pair(40, 50, d)
    found = measures("vendi", Made(x, y))
    assert found["vendi"].value == pytest.approx(vendi(x), rel=1e-8)
    assert found["vendi_reference"].value == pytest.approx(vendi(y[:40]), rel=1e-8)
    assert found["vendi"].value != pytest.approx(vendi(x - x.mean(0)), rel=1e-4)
    assert found["vendi_reference"].value != pytest.approx(vendi(y), rel=1e-4)
    with pytest.raises(ValueError, match="feature of the samples is zero"):
        measures("vendi", Made(0 * x, y))


def test_a_collapse_lowers_the_vendi_score():
    y = draw(60, 6, seed=1)
    found = measures("vendi", Made(y[:3].repeat(20, 1), y))
    assert found["vendi"].value <= 3 + 1e-9
    assert found["vendi_reference"].value > 4.5


# Memorisation


def test_memorisation_is_1_where_nothing_is_known_and_less_for_copies():
    made = [
        measure("memorisation", Made(draw(80, 2, seed=3 * s), draw(60, 2, seed=3 * s + 1), draw(60, 2, seed=3 * s + 2)))
        for s in range(40)
    ]
    logs = np.log([each.value for each in made])
    assert abs(logs.mean()) < 4 * logs.std(ddof=1) / math.sqrt(40)
    assert sum(each.interval[0] <= 1 <= each.interval[1] for each in made) >= 34
    old, new, fresh = (draw(60, 2, seed=seed) for seed in (1, 2, 3))
    half = torch.cat([old[:30] + 1e-3 * draw(30, 2, seed=4), fresh[:30]])
    found = measure("memorisation", Made(half, new, old))
    assert found.interval[1] < 1
    near = [np.mean([min(math.dist(a, b) for b in of.tolist()) for a in half.tolist()]) for of in (old, new)]
    assert found.value == pytest.approx(near[0] / near[1], rel=1e-8)


def test_memorisation_compares_equal_numbers():
    """More training data would lie nearer by their number alone."""
    x, new, old = draw(100, 2, seed=0), draw(40, 2, seed=1), draw(4000, 2, seed=2)
    found = measure("memorisation", Made(x, new, old))
    whole = torch.cdist(x, old).amin(1).mean() / torch.cdist(x, new).amin(1).mean()
    assert whole < 0.3
    assert found.interval[0] < 1 < found.interval[1]


def test_memorisation_wants_held_out_data():
    x, y = pair()
    for made in (Made(x, y, y, held_out=False), Made(x, y)):
        with pytest.raises(ValueError, match="nothing is held out"):
            measure("memorisation", made)
    with pytest.raises(ValueError, match="copy of a held-out"):
        measure("memorisation", Made(y, y, x))


# Forgetting


def test_forgetting_is_the_distance_from_the_old_distribution():
    x, y = pair(shift=4.0)
    old = draw(50, 3, seed=9)
    asked = []

    def inherited(count):
        asked.append(count)
        return Batch(old)

    found = measures("forgetting", Made(x, y, inherited=inherited))
    wanted = measures("energy", Made(x, old))["energy"]
    assert found == {"forgetting_energy": wanted}
    assert asked == [40]
    assert wanted.value != pytest.approx(measure("energy", Made(x, y)).value, rel=0.1)
    other = measures("forgetting", Made(x, y, inherited=inherited), metric={"name": "kernel-distance", "steps": 4})
    assert list(other) == ["forgetting_kernel_distance_4_steps"]


def test_forgetting_scales_the_data_that_it_is_given():
    images = draw(30, 1, 8, 8, seed=0).clamp(-1, 1)
    made = Made(images, images)
    found = measure("forgetting", made, data={"name": "digits", "count": 30})
    digits = REGISTRY.create("dataset", "digits", count=30)
    scaled = digits.batch(torch.arange(30)).x1 / 8 - 1
    assert found.value == pytest.approx(measure("energy", Made(images, scaled.double())).value, rel=1e-5)
    with pytest.raises(ValueError, match="isn't known"):
        measure("forgetting", made)


# Every metric that compares samples with data


@pytest.mark.parametrize("name", NAMES)
def test_steps_are_in_every_name_and_asked_for(name):
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
def test_what_cannot_be_measured_is_refused_before_anything_is_sampled(name):
    metric = REGISTRY.create("metric", name)
    metric.check(SCOPE)
    with pytest.raises(ConfigError, match=r"evaluate\.metrics\[0\] .*at least 20 samples, and evaluate\.count is 19"):
        check([("evaluate.metrics[0]", metric)], Scope(19, 40, 40, True, (2,), True))
    few = Scope(40, 40, 19, True, (2,), True) if name == "memorisation" else Scope(40, 19, 40, False, (2,), True)
    if name == "forgetting":
        metric, few = REGISTRY.create("metric", name, data={"name": "two-moons", "count": 19}), SCOPE
    with pytest.raises(ConfigError, match=r"at least 20 .*(19|24)|nothing is held out"):
        check([("evaluate.metrics[0]", metric)], few)


@pytest.mark.parametrize("name", [name for name in NAMES if name not in ("energy", "forgetting")])
def test_features_of_the_wrong_size_are_refused_at_the_start(name):
    metric = REGISTRY.create("metric", name, feature=lambda x: x.sum(1))
    with pytest.raises(ConfigError, match=r"maps \(2, 2\) to \(2, d\), got \(2,\)"):
        check([("evaluate.metrics[0]", metric)], SCOPE)
    bad = REGISTRY.create("metric", name, feature=lambda x: x / 0)
    with pytest.raises(ConfigError, match="NaN or infinity"):
        check([("evaluate.metrics[0]", bad)], SCOPE)


def test_special_refusals_at_the_start(monkeypatch):
    with pytest.raises(ConfigError, match="nothing was pretrained"):
        check([("evaluate.metrics[0]", REGISTRY.create("metric", "forgetting"))], Scope(40, 40, 40, True, (2,)))
    with pytest.raises(ConfigError, match="nothing is held out"):
        check([("evaluate.metrics[0]", REGISTRY.create("metric", "memorisation"))], Scope(40, 40, 40, False, (2,)))
    with pytest.raises(ConfigError, match="at least 60 samples"):
        check([("evaluate.metrics[0]", REGISTRY.create("metric", "kernel-distance", subset=60))], SCOPE)
    with pytest.raises(ConfigError, match="at least 62 samples"):
        check([("evaluate.metrics[0]", REGISTRY.create("metric", "precision-recall", neighbours=30))], SCOPE)
    monkeypatch.setitem(sys.modules, "ot", None)
    monkeypatch.setattr("importlib.util.find_spec", lambda name: None)
    with pytest.raises(ConfigError, match=r"Set evaluate\.count to 30"):
        check([("evaluate.metrics[0]", REGISTRY.create("metric", "wasserstein"))], Scope(40, 30, 40, True, (2,)))


def test_names_leave_out_what_belongs_to_another_name():
    assert names(["a", "a_stderr", "a_low", "a_high", "b_low", "b_low_stderr"]) == ["a", "b_low"]


# In runs


def test_a_run_measures_them_and_reports_their_intervals(finetune_config, tmp_path, with_pictures):
    finetune_config["evaluate"] |= {
        "data": {"name": "gaussian-mixture", "count": 40, "split": "test"},
        "metrics": ["precision-recall", "memorisation", "forgetting"],
    }
    finetune_config["train"]["steps"] = 2
    run = gftkit.finetune(finetune_config, tmp_path / "run")
    values = run.evaluate()
    shown = ["precision", "recall", "density", "coverage", "memorisation", "forgetting_energy"]
    assert names(values) == shown
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
        ("memorisation", "nothing is held out"),
        ({"name": "kernel-distance", "subset": 33}, "at least 33 samples, and evaluate.count is 32"),
        ({"name": "frechet", "feature": {"name": "efficientnet-lite0"}}, "wants images of shape"),
        ({"name": "vendi", "feature": {"name": "module", "target": "torch.nn:Identity"}, "steps": 0}, "steps: wanted"),
        ({"name": "vendi", "feature": {"name": "module", "target": "torch.nn:Unflatten"}}, "feature.options"),
        ({"name": "forgetting", "data": {"name": "digits"}}, r"wanted samples of shape \(2,\)"),
    ],
)
def test_a_run_refuses_what_cannot_be_measured(finetuning, finetune_config, monkeypatch, metric, message):
    monkeypatch.setattr(
        "gftkit.evaluation.evaluation.generate", lambda *_, **__: pytest.fail("sampled before it was refused")
    )
    evaluate = {**finetune_config["evaluate"], "metrics": ["path-length", metric]}
    found = finetuning(evaluate=evaluate)
    assert re.search(message, found)
    assert "evaluate.metrics[1]" in found
