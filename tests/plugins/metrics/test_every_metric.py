"""Metrics against closed forms; standard errors against the spread over seeds; each check has a wrong twin."""

import math
from dataclasses import replace

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy import linalg
from support.evaluations import REGISTRY, Made, draw, measure

from gftkit.estimation.jackknife import jackknife
from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Batch
from gftkit.sampling.scheme import Scheme
from gftkit_plugins.metrics.frechet import covariance, frechet_distance

ROUND_OFF = 1e-8  # relative; float64 through two eigendecompositions
STANDARD_ERRORS = 4.0  # two-sided false-alarm rate 6e-5
SEEDS = 50
SPREAD = 0.35  # a spread over 50 seeds is known to 10 %, a mean of 50 standard errors to 2 %; the rest is bias


# The jackknife.


def mean_of(x):
    return float(x.mean())


def without_the_factor(statistic, samples, generator, groups):
    """Wrong: the (G - 1)/G is missing."""
    error = jackknife(statistic, samples, generator, groups).stderr
    return error * math.sqrt(groups / (groups - 1))


def spread_of_left_out(statistic, samples, generator, groups):
    """Wrong: the standard deviation of the left-out values, as of a bootstrap."""
    return jackknife(statistic, samples, generator, groups).stderr / (groups - 1) * math.sqrt(groups)


def right(statistic, samples, generator, groups):
    return jackknife(statistic, samples, generator, groups).stderr


def exact_error(method):
    """How far the delete-one standard error of a mean is from s/sqrt(n), which it equals."""
    x = draw(12, seed=0)
    exact = float(x.std()) / math.sqrt(12)
    return abs(method(mean_of, [x], torch.Generator().manual_seed(1), 12) / exact - 1)


def test_jackknife_of_a_mean_is_exact_with_single_draws_as_groups():
    assert exact_error(right) < ROUND_OFF


@pytest.mark.parametrize("wrong", [without_the_factor, spread_of_left_out])
def test_wrong_jackknives_are_rejected(wrong):
    assert exact_error(wrong) > 1000 * ROUND_OFF


def test_jackknife_of_a_mean_is_sigma_over_root_n():
    sigma, n, groups = 3.0, 200, 20
    squares = [
        right(mean_of, [sigma * draw(n, seed=seed)], torch.Generator().manual_seed(seed), groups) ** 2
        for seed in range(SEEDS)
    ]
    relative_error = math.sqrt(2 / (groups - 1) / SEEDS)  # of a mean of 50 chi-squares with 19 degrees of freedom
    assert abs(np.mean(squares) / (sigma**2 / n) - 1) < STANDARD_ERRORS * relative_error


def test_jackknife_adds_the_variances_of_independent_samples():
    x, y = draw(40, seed=1), draw(80, seed=2)
    difference = [
        jackknife(lambda a, b: float(a.mean() - b.mean()), [x, y], torch.Generator().manual_seed(seed)).stderr ** 2
        for seed in range(SEEDS)
    ]
    expected = float(x.var() / 40 + y.var() / 80)
    assert abs(np.mean(difference) / expected - 1) < STANDARD_ERRORS * math.sqrt(2 / 19 / SEEDS)


def test_jackknife_follows_its_generator():
    x = draw(40, seed=1)
    first, again, other = (jackknife(mean_of, [x], torch.Generator().manual_seed(seed)) for seed in (1, 1, 2))
    assert first == again
    assert first.value == other.value
    assert first.stderr != other.stderr


@pytest.mark.parametrize(("count", "groups"), [(10, 1), (10, 11)])
def test_jackknife_refuses_too_few(count, groups):
    with pytest.raises(ValueError, match="Make more samples"):
        jackknife(mean_of, [draw(count, seed=0)], torch.Generator(), groups)


# Energy distance.


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


# Frechet distance.


def random_covariance(d, seed, rank=None):
    factor = draw(d, rank or d, seed=seed)
    return factor @ factor.T / d


def by_scipy(mean1, cov1, mean2, cov2):
    root = linalg.sqrtm(cov1.numpy() @ cov2.numpy())
    return float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * np.trace(root).real)


def by_commuting(mean1, cov1, mean2, cov2):
    """Wrong unless the covariances commute: |S1^(1/2) - S2^(1/2)|^2."""
    roots = [torch.from_numpy(linalg.sqrtm(cov.numpy()).real) for cov in (cov1, cov2)]
    return float((mean1 - mean2).square().sum() + (roots[0] - roots[1]).square().sum())


def without_factor_two(mean1, cov1, mean2, cov2):
    right = by_scipy(mean1, cov1, mean2, cov2)
    plain = float((mean1 - mean2).square().sum() + cov1.trace() + cov2.trace())
    return (plain + right) / 2


def standard_deviation_for_variance(mean1, cov1, mean2, cov2):
    roots = [torch.from_numpy(linalg.sqrtm(cov.numpy()).real) for cov in (cov1, cov2)]
    return by_scipy(mean1, roots[0], mean2, roots[1])


@settings(max_examples=20, deadline=None)
@given(d=st.integers(2, 12), seed=st.integers(0, 10_000))
def test_frechet_is_scipys_for_covariances_that_do_not_commute(d, seed):
    given = (
        draw(d, seed=seed),
        random_covariance(d, seed + 1, 2 * d),
        draw(d, seed=seed + 2),
        random_covariance(d, seed + 3),
    )
    scale = float(given[1].trace() + given[3].trace())
    assert frechet_distance(*given) == pytest.approx(by_scipy(*given), abs=ROUND_OFF * scale)


@pytest.mark.parametrize("wrong", [by_commuting, without_factor_two, standard_deviation_for_variance])
def test_wrong_frechets_are_rejected(wrong):
    given = draw(4, seed=0), random_covariance(4, 1), draw(4, seed=2), random_covariance(4, 3)
    assert frechet_distance(*given) != pytest.approx(wrong(*given), rel=1000 * ROUND_OFF)


def test_frechet_of_two_dimensional_covariances_by_hand():
    """tr (S1 S2)^(1/2) = sqrt(tr S1 S2 + 2 sqrt(det S1 S2)) in two dimensions."""
    first = torch.tensor([[2.0, 0.6], [0.6, 1.0]], dtype=torch.float64)
    second = torch.tensor([[1.0, -0.9], [-0.9, 3.0]], dtype=torch.float64)
    assert not torch.allclose(first @ second, second @ first)
    cross = torch.sqrt((first @ second).trace() + 2 * torch.sqrt(first.det() * second.det()))
    mean = torch.tensor([1.0, -2.0], dtype=torch.float64)
    expected = float(5 + first.trace() + second.trace() - 2 * cross)
    assert frechet_distance(mean, first, 0 * mean, second) == pytest.approx(expected, rel=ROUND_OFF)


def test_frechet_is_symmetric_zero_on_equals_and_takes_singular_covariances():
    mean, full, singular = draw(6, seed=0), random_covariance(6, 1), random_covariance(6, 2, rank=2)
    there, back = frechet_distance(mean, full, -mean, singular), frechet_distance(-mean, singular, mean, full)
    assert there == pytest.approx(back, abs=1e-6)  # square roots of round-off: 1e-8 for each singular direction
    assert frechet_distance(mean, full, mean, full) == pytest.approx(0, abs=ROUND_OFF)
    assert frechet_distance(mean, singular, mean, singular) == pytest.approx(0, abs=1e-6)
    assert frechet_distance(mean, 0 * full, -mean, 0 * full) == pytest.approx(4 * float(mean @ mean), rel=ROUND_OFF)


def test_covariance_is_numpys():
    x = draw(9, 3, seed=0)
    np.testing.assert_allclose(covariance(x).numpy(), np.cov(x.numpy(), rowvar=False), rtol=1e-12)


def test_frechet_metric_uses_events_features_and_steps():
    made = Made(draw(40, 1, 2, 2, seed=0), 1 + draw(50, 1, 2, 2, seed=1))
    x, y = made.x.flatten(1), made.y.flatten(1)
    expected = frechet_distance(x.mean(0), covariance(x), y.mean(0), covariance(y))
    assert measure("frechet", made, feature={"name": "identity"}).value == pytest.approx(expected, rel=ROUND_OFF)
    assert measure("frechet", made, feature=lambda z: 2 * z.flatten(1)).value == pytest.approx(4 * expected)
    assert measure("frechet", made, steps=4).value == pytest.approx(expected, rel=ROUND_OFF)
    assert made.steps_asked == 4


def test_reference_features_are_computed_once_for_each_reference():
    seen = []

    def feature(x):
        seen.append(x)
        return x

    metric = REGISTRY.create("metric", "frechet", feature=feature)
    made, other = Made(draw(30, 2, seed=0), draw(30, 2, seed=1)), Made(draw(30, 2, seed=0), draw(30, 2, seed=2))
    values = [metric.measure(each, torch.Generator().manual_seed(0))["frechet"].value for each in (made, made, other)]
    assert [sum(x is each.y for x in seen) for each in (made, other)] == [1, 1]
    assert len(seen) == 5
    assert values[0] == values[1] != values[2]


def test_frechet_standard_error_and_the_stated_bias():
    def spread(shift, d=3, n=200, m=300):
        made = [
            measure("frechet", Made(draw(n, d, seed=2 * s) + shift, draw(m, d, seed=2 * s + 1)), s)
            for s in range(SEEDS)
        ]
        return np.array([e.value for e in made]), np.array([e.stderr for e in made])

    bias = (1 / 200 + 1 / 300) * (3 + 3 * 4 / 4)
    values, errors = spread(1.0)
    off = abs(values.mean() - (3 + bias)) / (values.std(ddof=1) / math.sqrt(SEEDS))
    assert off < STANDARD_ERRORS
    assert abs(errors.mean() / values.std(ddof=1) - 1) < SPREAD
    values, _ = spread(0.0)
    assert abs(values.mean() / bias - 1) < 0.15  # 4 standard errors and the next order in 1/n
    assert abs(values.mean() / (bias / 2) - 1) > 0.45  # a wrong twin


# Path length.


class Straight:
    """x_t = (1 - t) x0 + t x1."""

    def coefficients(self, t):
        return 1 - t, t, torch.zeros_like(t)


class Constant(torch.nn.Module):
    """The drift v everywhere: straight lines of length |v|."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, t, x):
        return self.v.expand_as(x)


def evaluation_of(drift, count=30, event=(1, 2, 2), steps=7):
    def source(n, generator):
        return torch.randn(n, *event, generator=generator, dtype=torch.float64)

    scheme = Scheme(REGISTRY.create("solver", "euler"), steps)
    reference = Batch(draw(40, *event, seed=5))
    return Evaluation(drift, Straight(), scheme, source, reference, count, seed=0, batch_size=8)


def test_path_length_of_a_straight_flow_is_exact():
    v = draw(1, 2, 2, seed=3)
    evaluation = evaluation_of(Constant(v))
    found = measure("path-length", evaluation)
    assert found.value == pytest.approx(float(v.norm()), rel=ROUND_OFF)
    assert found.stderr == pytest.approx(0, abs=ROUND_OFF)
    per_pixel = float(v.square().mean().sqrt())
    sum_of_sides = float(v.abs().sum())
    for wrong in (per_pixel, sum_of_sides):
        assert found.value != pytest.approx(wrong, rel=1000 * ROUND_OFF)


class Rotation(torch.nn.Module):
    """One turn about the origin: circles of length 2 pi |x_0|, polygons 2 K sin(pi/K) |x_0| at exact vertices."""

    def forward(self, t, x):
        return 2 * math.pi * torch.stack([-x[:, 1], x[:, 0]], dim=1)


def test_path_length_is_a_polygon_and_has_a_standard_error():
    steps, count = 8, 30
    evaluation = evaluation_of(Rotation(), count, event=(2,), steps=99)
    found = measure("path-length", evaluation, steps=steps)
    start = evaluation.trajectory(1)[0].norm(dim=1)
    growth = math.sqrt(1 + (2 * math.pi / steps) ** 2)  # of the radius in an Euler step
    lengths = start * (2 * math.pi / steps) * sum(growth**k for k in range(steps))
    assert found.value == pytest.approx(float(lengths.mean()), rel=ROUND_OFF)
    assert found.stderr == pytest.approx(float(lengths.std()) / math.sqrt(count), rel=ROUND_OFF)
    straight = (evaluation.trajectory(steps)[-1] - evaluation.trajectory(steps)[0]).norm(dim=1).mean()
    assert found.value != pytest.approx(float(straight), rel=1000 * ROUND_OFF)


def test_a_straight_flow_has_straightness_0_and_energy_v_squared():
    v = draw(1, 2, 2, seed=3)
    evaluation = evaluation_of(Constant(v))
    assert measure("straightness", evaluation).value == pytest.approx(0, abs=ROUND_OFF)
    energy = measure("kinetic-energy", evaluation)
    assert energy.value == pytest.approx(float(v.square().sum()), rel=ROUND_OFF)
    assert energy.value != pytest.approx(float(v.norm()), rel=0.01)


def test_a_turning_flow_is_not_straight_and_its_energy_is_that_of_its_polygon():
    steps, count = 8, 30
    evaluation = evaluation_of(Rotation(), count, event=(2,), steps=99)
    start = evaluation.trajectory(1)[0].square().sum(1)
    growth = 1 + (2 * math.pi / steps) ** 2  # of the squared radius in an Euler step
    energies = start * (2 * math.pi) ** 2 / steps * sum(growth**k for k in range(steps))
    found = measure("kinetic-energy", evaluation, steps=steps)
    assert found.value == pytest.approx(float(energies.mean()), rel=ROUND_OFF)
    assert found.stderr == pytest.approx(float(energies.std()) / math.sqrt(count), rel=ROUND_OFF)
    states = evaluation.trajectory(steps)
    moved = (states[-1] - states[0]).square().sum(1)
    found = measure("straightness", evaluation, steps=steps)
    assert found.value == pytest.approx(float((energies - moved).mean()), rel=1e3 * ROUND_OFF)
    assert found.stderr == pytest.approx(float((energies - moved).std()) / math.sqrt(count), rel=1e3 * ROUND_OFF)


def test_times_of_an_uneven_grid_are_minded():
    even, uneven = evaluation_of(Constant(draw(1, 2, seed=3)), event=(2,)), evaluation_of(Rotation(), event=(2,))
    for evaluation in (even, uneven):
        evaluation.scheme = replace(evaluation.scheme, spacing=REGISTRY.create("grid", "cosine"))
    v = even.drift.v
    assert measure("kinetic-energy", even).value == pytest.approx(float(v.square().sum()), rel=ROUND_OFF)
    assert measure("straightness", even).value == pytest.approx(0, abs=ROUND_OFF)
    states, times = uneven.trajectory(), torch.tensor(uneven.times(), dtype=torch.float64)
    velocity = 2 * math.pi * torch.stack([-states[:-1, :, 1], states[:-1, :, 0]], 2)
    wanted = (velocity.square().sum(2) * times.diff()[:, None]).sum(0).mean()
    assert measure("kinetic-energy", uneven).value == pytest.approx(float(wanted), rel=1e3 * ROUND_OFF)


@pytest.mark.parametrize("name", ["straightness", "kinetic-energy"])
def test_flows_with_noise_and_single_samples_and_steps_are_refused(name):
    drift = Constant(torch.ones(1, 2, 2, dtype=torch.float64))
    noisy = evaluation_of(drift)
    noisy._equation = (drift, REGISTRY.create("path", "brownian-bridge"))
    with pytest.raises(ValueError, match="without noise"):
        measure(name, noisy)
    with pytest.raises(ValueError, match="at least 2 samples"):
        measure(name, evaluation_of(drift, count=1))
    if name == "straightness":
        with pytest.raises(ValueError, match="at least 2 steps"):
            measure(name, evaluation_of(drift), steps=1)


# Every metric.


@pytest.mark.parametrize("name", ["energy", "frechet", "kinetic-energy", "path-length", "straightness"])
def test_built_in_metrics_measure_a_real_evaluation(name):
    evaluation = evaluation_of(Constant(torch.zeros(1, 2, 2, dtype=torch.float64)))
    metric = REGISTRY.create("metric", name)
    made = metric.measure(evaluation, torch.Generator().manual_seed(0))
    assert list(made) == [name.replace("-", "_")]
    assert all(math.isfinite(e.value) and e.stderr >= 0 for e in made.values())


@pytest.mark.parametrize(("name", "key"), [("energy", "energy_4_steps"), ("frechet", "frechet_4_steps")])
def test_chosen_steps_are_in_the_name(name, key):
    evaluation = evaluation_of(Constant(torch.ones(1, 2, 2, dtype=torch.float64)))
    assert list(REGISTRY.create("metric", name, steps=4).measure(evaluation, torch.Generator())) == [key]


@pytest.mark.parametrize("name", ["energy", "frechet"])
@pytest.mark.parametrize(("n", "m"), [(19, 40), (40, 19), (1, 40)])
def test_too_few_samples_are_refused(name, n, m):
    with pytest.raises(ValueError, match=f"got {min(n, m)} samples"):
        measure(name, Made(draw(n, 2, seed=0), draw(m, 2, seed=1)))


def test_path_length_refuses_a_single_sample():
    with pytest.raises(ValueError, match="at least 2 samples"):
        measure("path-length", evaluation_of(Constant(torch.ones(1, 2, 2, dtype=torch.float64)), count=1))
