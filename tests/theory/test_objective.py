"""The objective's identities (theory, T1 to T3) on closed forms, each with a wrong twin that must fail."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

import gftkit
from gftkit.theory.objective import (
    blend,
    blended_loss,
    excess_risk,
    form_gap,
    least_risk,
    penalty_loss,
    retention,
    shared_loss,
    squared_norm,
)
from gftkit_verification.testbeds.problems.flows import random_flow

ROUND_OFF = 1e-10  # float64, sums of some hundred terms of order 1 to 100
TEMPERATURES = (0.0, 0.01, 0.3, 1.0, 7.0)
BATCH, D = 500, 3


@pytest.fixture(params=["independent", "optimal-transport"])
def problem(request):
    """t, x, target drift, anchor drift, conditional drift on pairs of a Gaussian flow, and some other drift."""
    generator = torch.Generator().manual_seed(11)
    target, anchor = random_flow(1, D, request.param), random_flow(2, D, request.param)
    x0, x1 = target.pairs(BATCH, generator)
    t = torch.rand(BATCH, generator=generator, dtype=torch.float64)
    x = (1 - t[:, None]) * x0 + t[:, None] * x1
    other = torch.randn(BATCH, D, generator=generator, dtype=torch.float64)
    return t, x, target.velocity(t, x), anchor.velocity(t, x), x1 - x0, other


def differ(one: Tensor, other: Tensor) -> float:
    return float((one - other).abs().max() / other.abs().max())


@pytest.mark.parametrize("beta", TEMPERATURES)
def test_t1_the_gradient_of_every_form_vanishes_at_the_optimum_only(problem, beta):
    _, _, target, anchor, _, other = problem
    optimum = blend(target, anchor, beta)
    for loss in (penalty_loss, blended_loss):
        assert gradient(loss, optimum, target, anchor, beta).abs().max() < ROUND_OFF
        assert gradient(loss, other, target, anchor, beta).abs().max() > 1
    if beta > 0:
        swapped = blend(anchor, target, beta)  # the shares of target and anchor exchanged
        assert beta == 1 or gradient(blended_loss, swapped, target, anchor, beta).abs().max() > 1e-3


def gradient(loss, drift, target, anchor, beta):
    drift = drift.clone().requires_grad_()
    loss(drift, target, anchor, beta).sum().backward()
    return drift.grad


@pytest.mark.parametrize("beta", TEMPERATURES)
def test_t2_excess_risk(problem, beta):
    t, _, target, anchor, _, other = problem
    weight = 1 + t
    optimum = blend(target, anchor, beta)
    measured = penalty_loss(other, target, anchor, beta, weight) - penalty_loss(optimum, target, anchor, beta, weight)
    assert differ(measured, excess_risk(other, optimum, beta, weight)) < ROUND_OFF
    least = penalty_loss(optimum, target, anchor, beta, weight)
    assert (least - least_risk(target, anchor, beta, weight)).abs().max() < ROUND_OFF
    if beta > 0:
        assert differ(measured, excess_risk(other, optimum, 0.0, weight)) > 1e-3  # the factor 1 + beta dropped
        assert differ(least, beta * squared_norm(anchor - target)) > 1e-3  # beta for rho, the weight dropped


@pytest.mark.parametrize("beta", TEMPERATURES)
def test_t3_the_forms_differ_by_a_factor_and_a_constant(problem, beta):
    t, _, _, anchor, conditional, other = problem
    weight = 2 - t
    penalty = penalty_loss(other, conditional, anchor, beta, weight)
    blended = blended_loss(other, conditional, anchor, beta, weight)
    gap = form_gap(conditional, anchor, beta, weight)
    assert differ(penalty, (1 + beta) * blended + gap) < ROUND_OFF
    if beta > 0:
        assert differ(penalty, blended + gap) > 1e-3
        assert differ(penalty, (1 + beta) * blended) > 1e-3


@pytest.mark.parametrize("beta", [0.0, 1.0, 7.0])
def test_t3_conditional_and_marginal_gradients_agree_in_the_mean(beta):
    """By bias and slope of a drift that is linear in x: the gradients agree within 5 standard errors."""
    generator = torch.Generator().manual_seed(3)
    flow, before = random_flow(1, 2), random_flow(2, 2)
    n = 200_000
    x0, x1 = flow.pairs(n, generator)
    t = torch.full((n,), 0.4, dtype=torch.float64)
    x = 0.6 * x0 + 0.4 * x1
    drift, anchor = 0.3 * x + 1, before.velocity(t, x)
    conditional = per_sample_gradient(drift, x1 - x0, anchor, beta, x)
    marginal = per_sample_gradient(drift, flow.velocity(t, x), anchor, beta, x)
    wrong = per_sample_gradient(drift, x0 - x1, anchor, beta, x)  # source and data exchanged
    assert errors_apart(conditional - marginal) < 5
    assert errors_apart(wrong - marginal) > 50


def per_sample_gradient(drift: Tensor, target: Tensor, anchor: Tensor, beta: float, x: Tensor) -> Tensor:
    """The gradient of the penalty form by a drift's bias and slope: (n, 2 d)."""
    out = drift.clone().requires_grad_()
    penalty_loss(out, target, anchor, beta).sum().backward()
    return torch.cat([out.grad, out.grad * x], dim=1)


def errors_apart(difference: Tensor) -> float:
    """The largest mean in standard errors."""
    return float((difference.mean(0).abs() / (difference.std(0) / math.sqrt(len(difference)))).max())


@pytest.mark.parametrize("beta", TEMPERATURES)
def test_the_anchor_shared_with_every_sample_is_the_penalty_form(problem, beta):
    t, _, _, anchor, conditional, other = problem
    weight, everyone = 2 - t, torch.arange(BATCH)
    whole = penalty_loss(other, conditional, anchor, beta, weight)
    assert differ(shared_loss(other, conditional, anchor, everyone, 1.0, beta, weight), whole) < ROUND_OFF
    if beta > 0:
        wrong = shared_loss(other, conditional, anchor.roll(1, 0), everyone, 1.0, beta, weight)
        assert differ(wrong, whole) > 1e-3


@pytest.mark.parametrize("beta", TEMPERATURES)
def test_shares_that_cover_the_batch_average_to_the_penalty_form(problem, beta):
    """Four disjoint quarters: one loss each, their mean is the whole, sample by sample."""
    t, _, _, anchor, conditional, other = problem
    weight = 2 - t
    order = torch.randperm(BATCH, generator=torch.Generator().manual_seed(5))
    shared = [shared_loss(other, conditional, anchor[part], part, 0.25, beta, weight) for part in order.chunk(4)]
    whole = penalty_loss(other, conditional, anchor, beta, weight)
    assert differ(torch.stack(shared).mean(0), whole) < ROUND_OFF
    if beta > 0:
        assert differ(shared[0], whole) > 1e-3


def test_a_shared_anchor_of_another_precision_is_taken_like_a_whole_one():
    drift, target = torch.ones(4, 2), torch.zeros(4, 2, dtype=torch.float64)
    chosen = torch.tensor([1, 3])
    found = shared_loss(drift, target, torch.zeros(2, 2), chosen, 0.5, 1.0)
    assert found.dtype == penalty_loss(drift, target, torch.zeros(4, 2), 1.0).dtype == torch.float64
    assert torch.equal(found, torch.tensor([2.0, 6.0, 2.0, 6.0], dtype=torch.float64))


def test_without_temperature_the_anchor_is_not_needed():
    b, target = torch.ones(4, 2), torch.zeros(4, 2)
    for loss in (blended_loss, penalty_loss):
        assert torch.equal(loss(b, target, None, 0.0), torch.full((4,), 2.0))
        with pytest.raises(ValueError, match="anchor: wanted its drift"):
            loss(b, target, None, 0.1)


def test_norms_sum_over_the_event_and_keep_the_batch():
    assert torch.equal(squared_norm(torch.ones(3, 2, 4, 4)), torch.full((3,), 32.0))


@given(st.floats(0, 1e12))
def test_retention_is_a_share_between_0_and_1(beta):
    rho = retention(beta)
    assert 0 <= rho < 1 or beta > 1e15
    assert math.isclose(rho * (1 + beta), beta, rel_tol=1e-12)
    assert gftkit.retention is retention


@pytest.mark.parametrize("beta", [-1.0, -7.0, float("nan"), float("inf")])
def test_retention_refuses_what_is_no_temperature(beta):
    with pytest.raises(ValueError, match="finite number above -1"):
        retention(beta)
