"""Means, spreads and paired differences over seeds, and their tables."""

import math

import numpy as np
import pytest
from scipy import stats

from gftkit.study.statistics import differences, holm, interval, p_value, spreads
from gftkit.study.tables import compared, markdown_table, means


def row(method, seed, value, size=50, coupling="independent", metric="energy"):
    return {"method": method, "coupling": coupling, "size": size, "seed": seed, "metric": metric, "value": value}


@pytest.fixture
def rows():
    """Two methods that differ by about 1 in each seed, where seeds differ by 10."""
    base = [10.0, 20.0, 30.0, 40.0]
    gains = [0.9, 1.1, 1.0, 1.2]
    made = [row("plain", seed, value) for seed, value in enumerate(base)]
    return made + [row("gft", seed, value - gain) for seed, (value, gain) in enumerate(zip(base, gains, strict=True))]


def test_an_interval_covers_the_mean_as_often_as_it_says():
    generator = np.random.default_rng(0)
    draws = generator.normal(3.0, 2.0, size=(4000, 4))
    found = [interval(list(values)) for values in draws]
    covered = np.mean([one.low <= 3.0 <= one.high for one in found])
    assert abs(covered - 0.95) < 4 * math.sqrt(0.95 * 0.05 / 4000)
    normal = [abs(one.mean - 3.0) <= 1.96 * one.spread / 2 for one in found]  # the wrong twin: no Student
    assert np.mean(normal) < 0.9


def test_an_interval_is_that_of_a_t_test():
    values = [1.2, 0.7, 2.2, 1.9, 0.1]
    wanted = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    found = interval(values)
    assert math.isclose(found.low, wanted.low)
    assert math.isclose(found.high, wanted.high)
    assert interval(values[:1]).low is None


def test_a_p_value_is_that_of_a_t_test():
    values = [1.2, 0.7, 2.2, 1.9, 0.1]
    assert math.isclose(p_value(interval(values)), stats.ttest_1samp(values, 0).pvalue)
    assert p_value(interval([2.0, 2.0])) == 0.0
    assert p_value(interval([0.0, 0.0])) == 1.0


def test_holm_keeps_the_share_of_families_with_a_false_alarm():
    families = np.random.default_rng(0).uniform(size=(4000, 7))
    error = 4 * math.sqrt(0.05 * 0.95 / 4000)
    assert abs(np.mean([min(holm(list(family))) <= 0.05 for family in families]) - (1 - (1 - 0.05 / 7) ** 7)) < error
    assert np.mean(families.min(axis=1) <= 0.05) > 0.25  # the wrong twin: no correction
    # By hand: thresholds 0.05/3, 0.05/2, 0.05; the second step fails, so the third isn't taken.
    assert [p <= 0.05 for p in holm([0.04, 0.01, 0.03])] == [False, True, False]


def test_differences_are_corrected_over_the_couplings_and_sizes_of_a_method_and_metric(rows):
    one = differences(rows, "plain")[0]
    assert one.p == p_value(one.over)
    others = [{**each, "size": size} for size in (60, 70) for each in rows]
    assert math.isclose(differences([*rows, *others], "plain")[0].p, 3 * p_value(one.over))
    apart = [{**each, "metric": "frechet"} for each in rows]
    assert differences([*rows, *apart], "plain")[0].p == one.p
    assert differences([each for each in rows if each["seed"] == 0], "plain")[0].p is None


def test_differences_are_paired_by_seed(rows):
    (found,) = differences(rows, "plain")
    assert found.method == "gft"
    assert math.isclose(found.over.mean, -1.05)
    assert found.over.high < -0.8  # clear, though seeds differ by 10
    assert math.isclose(found.relative.mean, np.mean([-0.9 / 10, -1.1 / 20, -1.0 / 30, -1.2 / 40]))
    shuffled = [{**one, "seed": (one["seed"] + 1) % 4} if one["method"] == "gft" else one for one in rows]
    (wrong,) = differences(shuffled, "plain")
    assert wrong.over.low < 0 < wrong.over.high  # pairs of different seeds hide it


def test_only_pairs_of_one_coupling_and_size_count(rows):
    others = [row("gft", 9, 0.0), row("gft", 0, 0.0, size=60), row("gft", 0, 0.0, coupling="optimal-transport")]
    others += [row("gft", 0, 0.0, metric="frechet"), row("plain", 5, None), row("gft", 5, 1.0)]
    (found,) = differences(rows + others, "plain")
    assert found.over.count == 4
    assert differences(rows, "gft")[0].method == "plain"


def test_there_are_no_percentages_of_what_may_be_negative(rows):
    made = [{**one, "value": one["value"] - 25} for one in rows]
    assert differences(made, "plain")[0].relative is None


def test_a_rank_correlation_has_no_percentages(rows):
    assert differences(rows, "plain")[0].relative is not None
    made = [{**one, "metric": "spearman", "value": one["value"] / 100} for one in rows]
    assert differences(made, "plain")[0].relative is None


def test_tables_show_methods_by_sizes(rows):
    made = [*rows, row("plain", 0, 7.0, size=400)]
    table = means(spreads(made), "energy", "independent")
    assert table == [["method", "50", "400"], ["plain", "25 ± 12.91 (4)", "7 (1)"], ["gft", "23.95 ± 12.81 (4)", "-"]]
    (head, line) = compared(differences(made, "plain"), "energy", "independent")
    assert head == ["method", "50"]
    assert line[0] == "gft"
    assert line[1].startswith("-1.05 [-1.26, -0.845]; -")
    assert line[1].endswith("%* (4)")
    assert means(spreads(made), "energy", "optimal-transport") == [["method"]]
    assert markdown_table(table).splitlines()[1] == "| --- | --- | --- |"
