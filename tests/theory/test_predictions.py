"""T4 to T12 on closed forms: affine drifts, Gaussian moments, quadratic risks; each with a wrong twin."""

import itertools
import math
import statistics

import pytest
import torch

from gftkit.theory.objective import blend, retention, squared_norm
from gftkit.theory.predictions import (
    best_retention,
    best_temperature,
    blend_acceleration,
    drift_error,
    drift_error_by_time,
    drift_error_range,
    error_with_noise,
    label_noise,
    lag_of,
    path_kl,
    path_kl_by_time,
    profile_gain,
    sharing_noise,
    step_between_optima,
    stochastic_drift,
    wasserstein_bound,
)
from gftkit_verification.testbeds.problems.flows import random_flow

BETAS = (-0.3, -0.1, 0.01, 0.1, 1.0, 10.0)
ROUND_OFF = 1e-9


@pytest.fixture
def drifts():
    """t, states on the target path, target drift and anchor drift: (n, d), float64."""
    generator = torch.Generator().manual_seed(2)
    target, anchor = random_flow(1, 3), random_flow(2, 3)
    x0, x1 = target.pairs(300, generator)
    t = torch.rand(300, generator=generator, dtype=torch.float64)
    x = (1 - t[:, None]) * x0 + t[:, None] * x1
    return target.velocity(t, x), anchor.velocity(t, x)


def norm(x):
    return math.sqrt(float(squared_norm(x).mean()))


@pytest.mark.parametrize("beta", BETAS)
def test_t4_t5_t8_norms_of_blends(drifts, beta):
    target, anchor = drifts
    rho, gap = retention(beta), norm(anchor - target)
    optimum = blend(target, anchor, beta)
    assert math.isclose(norm(optimum - target), drift_error(rho, gap), rel_tol=ROUND_OFF)
    assert not math.isclose(norm(optimum - target), drift_error(beta, gap), rel_tol=1e-3)
    g = 0.7
    assert math.isclose((norm(optimum - target) / g) ** 2 / 2, path_kl(rho, (gap / g) ** 2 / 2), rel_tol=ROUND_OFF)
    assert not math.isclose((norm(optimum - target) / g) ** 2 / 2, rho * (gap / g) ** 2 / 2, rel_tol=1e-3)
    cooler = blend(target, anchor, beta / 3)
    step = step_between_optima(rho, retention(beta / 3), gap)
    assert math.isclose(norm(optimum - cooler), step, rel_tol=ROUND_OFF)
    assert math.isclose(norm(optimum - anchor), step_between_optima(1.0, rho, gap), rel_tol=ROUND_OFF)


def test_t4_the_capacity_floor_adds_in_squares(drifts):
    """A model class that moves only the first coordinate from the anchor."""
    target, anchor = drifts
    rho = retention(0.5)
    fitted = anchor.clone()
    fitted[:, 0] = blend(target, anchor, 0.5)[:, 0]
    inside, outside = norm((anchor - target)[:, :1]), norm((anchor - target)[:, 1:])
    assert math.isclose(norm(fitted - target), drift_error(rho, inside, outside), rel_tol=ROUND_OFF)
    assert norm(fitted - target) < 0.9 * (rho * inside + outside)


def test_t7_any_drift_lies_in_its_range(drifts):
    target, anchor = drifts
    generator = torch.Generator().manual_seed(0)
    rho, gap = retention(1.0), norm(anchor - target)
    for size in (0.01, 0.3, 3.0):
        shift = size * torch.randn(target.shape, generator=generator, dtype=torch.float64)
        b = blend(target, anchor, 1.0) + shift
        low, high = drift_error_range(rho, gap, norm(shift) ** 2)
        assert low <= norm(b - target) <= high
        assert not low <= norm(b - target) + 2.1 * norm(shift) + 2.1 * rho * gap <= high


def test_t6_the_bound_of_an_affine_flow():
    """b_tgt = -a x and b_pre = b_tgt + c: the ends are apart by rho c (1 - exp(-a))/a, and the bound is sharp."""
    a, c, rho = 1.7, 2.0, retention(0.4)
    times = [k / 2000 for k in range(2001)]
    bound = wasserstein_bound(rho, times, [c] * 2001, [-a] * 2001)
    exact = rho * c * (1 - math.exp(-a)) / a
    assert math.isclose(bound, exact, rel_tol=1e-5)
    assert not math.isclose(wasserstein_bound(rho, times, [c] * 2001, [a] * 2001), exact, rel_tol=0.1)
    with pytest.raises(ValueError, match="increase from 0 to 1"):
        wasserstein_bound(rho, [0.0, 0.5], [1.0, 1.0], [0.0, 0.0])


def test_t9_label_noise_of_the_blend():
    """Gradients of |b - y|^2 by b are 2 (b - y): given the state, only the label varies, by the factor 1 - rho."""
    generator = torch.Generator().manual_seed(1)
    labels = torch.randn(400, 3, generator=generator, dtype=torch.float64)
    anchor = torch.ones(3, dtype=torch.float64)
    for beta in BETAS:
        noise = (2 * blend(labels, anchor.expand_as(labels), beta)).var(0).sum()
        plain = (2 * labels).var(0).sum()
        assert math.isclose(float(noise), label_noise(retention(beta), float(plain)), rel_tol=ROUND_OFF)
        assert not math.isclose(float(noise), float(plain), rel_tol=1e-3)


def test_t11_acceleration_of_a_blend():
    """v = A x + c with constant A and c: a = A v, so everything is exact."""
    generator = torch.Generator().manual_seed(3)
    (a_tgt, a_pre), (c_tgt, c_pre) = (
        torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, 3, 3), (2, 3))
    )
    x = torch.randn(50, 3, generator=generator, dtype=torch.float64)

    def velocity(a, c):
        return x @ a.mT + c

    rho = 0.3
    mixed = (1 - rho) * a_tgt + rho * a_pre, (1 - rho) * c_tgt + rho * c_pre
    measured = velocity(*mixed) @ mixed[0].mT
    accelerations = velocity(a_tgt, c_tgt) @ a_tgt.mT, velocity(a_pre, c_pre) @ a_pre.mT
    along = velocity(a_pre - a_tgt, c_pre - c_tgt) @ (a_pre - a_tgt).mT
    assert torch.allclose(measured, blend_acceleration(*accelerations, along, rho))
    assert not torch.allclose(measured, blend_acceleration(*accelerations, 0 * along, rho), rtol=1e-2)


def test_t15_the_best_temperature_is_where_the_error_is_least():
    gap, noise = 3.0, 2.0
    best = retention(best_temperature(gap, noise))
    least = error_with_noise(best, gap, noise)
    assert math.isclose(least, noise * gap**2 / (noise + gap**2))
    assert all(error_with_noise(best + apart, gap, noise) > least for apart in (-0.05, 0.05))
    assert error_with_noise(retention(noise / gap), gap, noise) > least * 1.01  # the gap not squared
    with pytest.raises(ValueError, match="Without a gap the pretrained drift is the optimum"):
        best_temperature(0.0, 1.0)


def test_t12_the_drift_of_the_oracle():
    flow, t = random_flow(4, 3), torch.linspace(0.1, 0.9, 20, dtype=torch.float64)
    x = torch.randn(20, 3, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    g = (1 - t)[:, None]
    wanted = flow.drift(t, x, lambda t: 1 - t)
    assert torch.allclose(stochastic_drift(flow.velocity(t, x), flow.score(t, x), g), wanted)
    assert not torch.allclose(stochastic_drift(flow.velocity(t, x), -flow.score(t, x), g), wanted, rtol=1e-2)


def test_the_noise_of_sharing_is_that_of_every_choice():
    """The variance of the mean of k of n numbers, over all subsets."""
    numbers = [0.5, -2.0, 3.0, 7.0, 1.5]
    for k in range(1, len(numbers) + 1):
        means = [sum(chosen) / k for chosen in itertools.combinations(numbers, k)]
        expected = statistics.pvariance(means)
        found = sharing_noise(3.0, k, len(numbers), statistics.variance(numbers))
        assert math.isclose(found, 9 * expected, rel_tol=ROUND_OFF, abs_tol=ROUND_OFF)
        wrong = sharing_noise(3.0, k, len(numbers), statistics.pvariance(numbers))
        assert k == len(numbers) or not math.isclose(wrong, 9 * expected, rel_tol=1e-3)


@pytest.mark.parametrize("count", [0, 9])
def test_the_noise_of_sharing_needs_a_part_of_the_batch(count):
    with pytest.raises(ValueError, match=f"wanted 1 to 8 samples of 8, got {count}"):
        sharing_noise(1.0, count, 8, 1.0)


@pytest.mark.parametrize("lag", [-0.2, 0.0, 0.3])
@pytest.mark.parametrize("noise", [0.0, 0.8])
def test_t20_the_error_of_a_blend_and_where_it_is_least(drifts, lag, noise):
    target, anchor = drifts
    gap = anchor - target
    zeta = torch.stack([-gap[:, 1], gap[:, 0], 0 * gap[:, 2]], 1)  # orthogonal to the gap, at every state
    zeta = zeta * (noise / norm(zeta))
    fitted = target + lag * gap + zeta

    def error(rho):
        return norm(fitted + rho * (anchor - fitted) - target) ** 2

    for rho in (-0.5, 0.0, 0.4):
        assert math.isclose(error(rho), error_with_noise(rho, norm(gap), noise**2, lag), rel_tol=ROUND_OFF)
    best = best_retention(norm(gap), noise**2, lag)
    assert all(error(best + apart) > error(best) for apart in (-0.01, 0.01))
    if noise:
        assert math.isclose(lag_of(best), lag - noise**2 / ((1 - lag) * norm(gap) ** 2), rel_tol=1e-6, abs_tol=1e-9)
    else:
        assert math.isclose(lag_of(best), lag, rel_tol=1e-6, abs_tol=1e-9)
        assert error(best) < ROUND_OFF
        assert lag == 0 or error(lag / (1 - lag)) > 0.01  # the sign
        assert lag == 0 or error(-lag) > 1e-4  # c for c/(1 - c)


def test_t20_needs_a_drift_that_has_left_its_anchor():
    assert math.isclose(best_retention(2.0, 4.0), retention(best_temperature(2.0, 4.0)))
    for refused in ({"gap": 0.0, "noise": 0.0}, {"gap": 1.0, "noise": 0.0, "lag": 1.0}):
        with pytest.raises(ValueError, match="wanted a lag below 1"):
            best_retention(**refused)


def test_t19_and_t21_sum_over_parts_of_flow_time(drifts):
    target, anchor = drifts
    rho = torch.tensor([-0.4, 0.2, 0.7], dtype=torch.float64).repeat_interleave(100)
    optimum = target + rho[:, None] * (anchor - target)
    gaps = [norm(part) * math.sqrt(1 / 3) for part in (anchor - target).chunk(3)]
    retentions = [-0.4, 0.2, 0.7]
    assert math.isclose(norm(optimum - target), drift_error_by_time(retentions, gaps), rel_tol=ROUND_OFF)
    mean = sum(retentions) / 3 * norm(anchor - target)  # rho outside the norm
    assert not math.isclose(norm(optimum - target), mean, rel_tol=0.05)
    kl = path_kl_by_time(retentions, [gap**2 / 2 for gap in gaps])
    assert math.isclose(norm(optimum - target) ** 2 / 2, kl, rel_tol=ROUND_OFF)

    def error(shares):
        shares = torch.as_tensor(shares, dtype=torch.float64).expand(3).repeat_interleave(100)
        return norm(optimum - target + shares[:, None] * (anchor - optimum)) ** 2

    best = [-rho / (1 - rho) for rho in retentions]  # here the lag is rho
    weights = [((1 - rho) * gap) ** 2 for rho, gap in zip(retentions, gaps, strict=True)]
    assert error(best) < ROUND_OFF
    constant = sum(b * w for b, w in zip(best, weights, strict=True)) / sum(weights)
    assert math.isclose(error(constant), profile_gain(best, weights), rel_tol=ROUND_OFF)
    assert math.isclose(error([0.1, 0.0, -0.2]), profile_gain(best, weights, [0.1, 0.0, -0.2]), rel_tol=ROUND_OFF)
    assert error(constant + 0.05) > error(constant) < error(constant - 0.05)
