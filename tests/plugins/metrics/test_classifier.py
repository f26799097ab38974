"""The classifier two-sample test: it finds what differs, and nothing where nothing does."""

import math

import numpy as np
import pytest
from support.evaluations import Made, draw, measures


def pair(n=40, m=40, d=3, shift=0.0, seed=0):
    return draw(n, d, seed=2 * seed), draw(m, d, seed=2 * seed + 1) + shift


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
