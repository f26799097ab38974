"""The states of Gaussian fine-tunes: their weighted moments are the law's; a wrong scale must fail."""

import pytest
import torch

import gftkit
from gftkit_verification.oracles import affine
from gftkit_verification.testbeds.problems.flows import COUPLINGS, random_flow
from gftkit_verification.testbeds.problems.moments import draw_fine_tunes, gauss_legendre, sigma_points

ROUND_OFF = 1e-12


@pytest.mark.parametrize("coupling", COUPLINGS)
def test_states_carry_the_first_two_moments(coupling):
    flow = random_flow(3, 3, coupling)
    at = sigma_points(flow, *gauss_legendre(5))
    assert float(at.weight.sum()) == pytest.approx(1, abs=ROUND_OFF)
    x = (1 - at.t[:, None]) * at.x0 + at.t[:, None] * at.x1
    for t in at.t.unique():
        here = at.t == t
        mean, cov = (value[0] for value in flow.marginal(t[None]))
        assert torch.allclose(x[here].mean(0), mean, atol=ROUND_OFF)
        assert torch.allclose(x[here].T.cov(correction=0), cov, atol=ROUND_OFF)
        assert not torch.allclose(x[here].T.cov(), cov, rtol=1e-2)
        assert torch.allclose(at.noise[here].T.cov(correction=0), torch.eye(3, dtype=torch.float64), atol=ROUND_OFF)


def test_norms_are_those_of_the_closed_form():
    path = gftkit.load().create("path", "linear")
    for problem in draw_fine_tunes(path, torch.Generator().manual_seed(0), (2,)):
        t, weights = gauss_legendre(4)
        gap = affine.squared_gap(problem.pretrained.affine, problem.target.affine, t, *problem.target.marginal(t))
        assert problem.gap**2 == pytest.approx(float(weights @ gap), rel=ROUND_OFF)
        assert problem.norm(problem.other) == pytest.approx(problem.gap, rel=ROUND_OFF)
