"""The energy distance against a double loop and closed forms on the line."""

import math

import numpy as np
import pytest
from support.evaluations import Made, draw, measure

ROUND_OFF = 1e-8  # relative; float64 through two eigendecompositions
STANDARD_ERRORS = 4.0  # two-sided false-alarm rate 6e-5
SEEDS = 50
SPREAD = 0.35  # a spread over 50 seeds is known to 10 %, a mean of 50 standard errors to 2 %; the rest is bias


def energy_by_loops(x, y, unbiased=True, two=2.0):
    def within(points):
        n = len(points)
        total = sum(math.dist(a, b) for a in points for b in points)
        return total / (n * (n - 1)) if unbiased else total / n**2

    x, y = x.flatten(1).tolist(), y.flatten(1).tolist()
    return two * np.mean([math.dist(a, b) for a in x for b in y]) - within(x) - within(y)


def test_energy_is_the_double_loop():
    x, y = draw(23, 1, 2, 2, seed=0), draw(31, 1, 2, 2, seed=1) + 0.5
    value = measure("energy", Made(x, y)).value
    assert value == pytest.approx(energy_by_loops(x, y), rel=ROUND_OFF)
    for wrong in (energy_by_loops(x, y, unbiased=False), energy_by_loops(x, y, two=1.0)):
        assert value != pytest.approx(wrong, rel=1000 * ROUND_OFF)


def energy_of_gaussians(shift, sigma=1.0):
    """The energy distance of N(0, s^2) and N(shift, s^2) on the line: from E|N(m, 2 s^2)|."""

    def mean_absolute(m):
        m = m / sigma
        return sigma * (2 / math.sqrt(math.pi) * math.exp(-(m**2) / 4) + m * math.erf(m / 2))

    return 2 * mean_absolute(shift) - 2 * mean_absolute(0)


def energies(shift, n=100, m=150):
    return [
        measure("energy", Made(draw(n, 1, seed=2 * s) + shift, draw(m, 1, seed=2 * s + 1)), s) for s in range(SEEDS)
    ]


def test_energy_and_its_standard_error_on_the_line():
    shift = 1.5
    made = energies(shift)
    values, errors = np.array([e.value for e in made]), np.array([e.stderr for e in made])
    off = abs(values.mean() - energy_of_gaussians(shift)) / (values.std(ddof=1) / math.sqrt(SEEDS))
    assert off < STANDARD_ERRORS
    standard_deviation_for_variance = energy_of_gaussians(shift, sigma=2)
    assert abs(values.mean() - standard_deviation_for_variance) / (values.std(ddof=1) / math.sqrt(SEEDS)) > 12
    assert abs(errors.mean() / values.std(ddof=1) - 1) < SPREAD


def test_energy_of_equal_laws_is_unbiased_and_its_error_errs_upwards():
    made = energies(0.0)
    values, errors = np.array([e.value for e in made]), np.array([e.stderr for e in made])
    assert abs(values.mean()) < STANDARD_ERRORS * values.std(ddof=1) / math.sqrt(SEEDS)
    assert (values < 0).any()
    assert 1 - SPREAD < errors.mean() / values.std(ddof=1) < math.sqrt(2) * (1 + SPREAD)
