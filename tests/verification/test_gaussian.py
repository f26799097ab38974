"""The Gaussian oracle against regression on pairs, carried moments and finite differences; wrong twins must fail."""

import pytest
import torch
from torch import Tensor

from gftkit_verification.oracles.gaussian import GaussianFlow, bures_map
from gftkit_verification.testbeds.problems.flows import random_flow

PAIRS = 400_000
REGRESSION = 0.03  # standard errors of a coefficient are about 1/sqrt(PAIRS) = 0.0016 times the scale of the problem
EXACT = 1e-8


def regressed_velocity(flow: GaussianFlow, t: float) -> tuple[Tensor, Tensor]:
    """Slope and value at the mean of the regression of x1 - x0 on x_t: the definition of the velocity."""
    x0, x1 = flow.pairs(PAIRS, torch.Generator().manual_seed(5))
    xt, moved = (1 - t) * x0 + t * x1, x1 - x0
    centred = xt - xt.mean(0)
    slope = torch.linalg.lstsq(centred, moved - moved.mean(0)).solution.mT
    return slope, moved.mean(0)


def slope_of(flow: GaussianFlow, t: float) -> Tensor:
    at = torch.tensor([t], dtype=torch.float64)
    mean = flow.marginal(at)[0]
    d = mean.shape[1]
    return (flow.velocity(at.expand(d), mean + torch.eye(d, dtype=torch.float64)) - flow.velocity(at, mean)).mT


class SwappedCross(GaussianFlow):
    """C and C^T swapped in D_t: it changes no marginal, and falls only to the regression."""

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        twin = GaussianFlow(self.mean0, self.cov0, self.mean1, self.cov1)
        twin.cross = self.cross
        extra = self.cross - self.cross.mT
        return super().velocity(t, x) - (extra @ self.score(t, x)[..., None])[..., 0]


@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
def test_velocity_is_the_regression_of_the_displacement_on_the_state(coupling):
    flow = random_flow(seed=1, d=3, coupling=coupling)
    for t in (0.2, 0.7):
        slope, at_mean = regressed_velocity(flow, t)
        assert (slope - slope_of(flow, t)).abs().max() < REGRESSION * slope.abs().max()
        at = torch.tensor([t], dtype=torch.float64)
        value = flow.velocity(at, flow.marginal(at)[0])[0]
        assert (value - at_mean).abs().max() < REGRESSION * at_mean.abs().max()


def test_swapped_cross_covariance_is_caught():
    flow = random_flow(seed=1, d=3, coupling="independent")
    skewed = 0.3 * torch.randn(3, 3, generator=torch.Generator().manual_seed(2), dtype=torch.float64)
    right = GaussianFlow(flow.mean0, flow.cov0, flow.mean1, flow.cov1)
    wrong = SwappedCross(flow.mean0, flow.cov0, flow.mean1, flow.cov1)
    right.cross = wrong.cross = skewed
    assert (slope_of(right, 0.4) - slope_of(wrong, 0.4)).abs().max() > 10 * REGRESSION


@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
@pytest.mark.parametrize("g", [0.0, 0.8])
def test_marginals_solve_the_moment_equations(coupling, g):
    """m' = A m + c and S' = A S + S A^T + g^2 I along the drift, for ODE and SDE (theory, sections 1 and 4)."""
    flow = random_flow(seed=3, d=4, coupling=coupling)
    assert moment_residual(flow, g, g) < 1e-6
    assert moment_residual(flow, g, 1.3 * g + 0.5) > 1e-2  # a drift of another noise scale


def moment_residual(flow: GaussianFlow, g: float, drift_g: float) -> float:
    t, h = torch.tensor([0.35], dtype=torch.float64), 1e-5
    mean, cov = (value[0] for value in flow.marginal(t))
    d = len(mean)
    eye = torch.eye(d, dtype=torch.float64)
    slope = (flow.drift(t.expand(d), mean + eye, drift_g) - flow.drift(t, mean[None], drift_g)).mT
    (m_up, s_up), (m_down, s_down) = flow.marginal(t + h), flow.marginal(t - h)
    rate = (s_up - s_down)[0] / (2 * h)
    mean_residual = (m_up - m_down)[0] / (2 * h) - flow.drift(t, mean[None], drift_g)[0]
    residual = rate - (slope @ cov + cov @ slope.mT + g**2 * eye)
    return float(max(residual.abs().max(), mean_residual.abs().max()))


def test_bures_map_carries_the_source_to_the_target():
    flow = random_flow(seed=4, d=5, coupling="optimal-transport")
    carried = bures_map(flow.cov0, flow.cov1)
    assert torch.allclose(carried @ flow.cov0 @ carried.mT, flow.cov1, rtol=EXACT)
    assert torch.allclose(carried, carried.mT, rtol=EXACT, atol=EXACT)


def test_ends_are_source_and_target():
    flow = random_flow(seed=6, d=3, coupling="optimal-transport")
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    mean, cov = flow.marginal(ends)
    assert torch.equal(mean, torch.stack([flow.mean0, flow.mean1]))
    assert torch.allclose(cov, torch.stack([flow.cov0, flow.cov1]))


EYE = torch.eye(2)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ((torch.zeros(3), EYE, torch.zeros(2), EYE), "of one d"),
        ((torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), torch.zeros(2), EYE), "symmetric"),
        ((torch.zeros(2), torch.zeros(2, 2), torch.zeros(2), EYE), "positive definite"),
        ((torch.zeros(2), torch.zeros(2), torch.zeros(2), EYE), "square"),
        ((torch.zeros(2), EYE, torch.zeros(2), EYE, "optimal"), "wanted 'independent'"),
    ],
)
def test_bad_input_is_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        GaussianFlow(*arguments)


def test_time_and_diffusion_are_checked():
    flow = random_flow(seed=7, d=2)
    with pytest.raises(ValueError, match=r"values in \[0, 1\]"):
        flow.velocity(torch.tensor([1.5]), torch.zeros(1, 2))
    with pytest.raises(ValueError, match=">= 0"):
        flow.drift(torch.tensor([0.5]), torch.zeros(1, 2), -1.0)
