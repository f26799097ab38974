"""The standardised errors of statistical claims are standard normal: over 50 seeds, in mean, variance, distribution."""

import math

import numpy as np
import pytest
from scipy import stats

import gftkit
from gftkit.runtime.randomness import stream
from gftkit.verify.claims import FALSE_ALARM, Measurement, statistical
from gftkit.verify.collect import collect

SEEDS = 50
ALARM = 1e-4
"""How often the tests of this file fail although all is well: shared by every claim and its three tests."""

CLAIMS = [claim for claim in collect(gftkit.load()) if claim.bound.kind == "statistical"]


def p_values(deviates):
    """Of a mean of 0, of a variance of 1, and of a standard normal law (Kolmogorov, Smirnov)."""
    n = len(deviates)
    spread = stats.chi2(n).cdf(np.square(deviates).sum())
    return {
        "mean": 2 * stats.norm.sf(abs(np.mean(deviates)) * math.sqrt(n)),
        "variance": 2 * min(spread, 1 - spread),
        "distribution": stats.kstest(deviates, "norm").pvalue,
    }


@pytest.mark.slow
@pytest.mark.parametrize("claim", [pytest.param(claim, id=claim.name) for claim in CLAIMS])
def test_standardised_errors_are_standard_normal(claim):
    deviates = []
    for seed in range(SEEDS):
        measured = claim.measure(claim.subject, stream(seed, "statistics", claim.name))
        value = measured.value if isinstance(measured, Measurement) else measured
        deviates.append(claim.bound.normal(value))
    low = {test: p for test, p in p_values(np.array(deviates)).items() if p < ALARM / (3 * len(CLAIMS))}
    assert not low, (np.mean(deviates), np.std(deviates), low)


def test_deviates_that_are_not_standard_normal_are_detected():
    draws = np.random.default_rng(0).standard_normal(SEEDS)
    level = ALARM / 100
    assert min(p_values(draws).values()) > level
    assert p_values(draws + 1)["mean"] < level
    assert p_values(2 * draws)["variance"] < level
    assert p_values(draws / 4)["variance"] < level
    assert p_values(np.sign(draws))["distribution"] < level


def test_the_suite_alarms_falsely_less_than_once_in_ten_thousand_runs():
    assert sum(claim.false_alarm for claim in CLAIMS) < 1e-4
    assert math.isclose(statistical().false_alarm, FALSE_ALARM, rel_tol=1e-9)
