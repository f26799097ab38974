"""Carried Gaussians, distances and path KL: against targets, formulas and high precision; wrong twins must fail."""

import math
from functools import partial

import mpmath
import pytest
import torch

from gftkit.theory.objective import retention
from gftkit.theory.predictions import drift_error
from gftkit.theory.predictions import path_kl as predicted_path_kl
from gftkit_verification.oracles.affine import (
    blend_drifts,
    bures_wasserstein,
    carry,
    collocate,
    drift_gap,
    gaussian_kl,
    path_kl,
)
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.problems.flows import random_covariance, random_flow

RELATIVE = 1e-8  # what the oracles promise
BETAS = (0.01, 0.1, 1.0, 10.0)


def ill_conditioned(d: int, seed: int) -> GaussianFlow:
    """Covariances of condition number 1e4 that don't commute."""
    generator = torch.Generator().manual_seed(seed)
    spectra = torch.logspace(-2, 2, d, dtype=torch.float64)

    def covariance():
        basis = torch.linalg.qr(torch.randn(d, d, generator=generator, dtype=torch.float64))[0]
        cov = (basis * spectra) @ basis.mT
        return (cov + cov.mT) / 2

    mean0, mean1 = torch.randn(2, d, generator=generator, dtype=torch.float64)
    return GaussianFlow(mean0, covariance(), mean1, covariance())


def relative_error(value, expected):
    return float((value - expected).norm() / expected.norm())


@pytest.mark.parametrize("d", [1, 4, 16])
@pytest.mark.parametrize("g", [0.0, 0.7])
def test_the_drift_carries_the_source_to_the_target(d, g):
    flow = ill_conditioned(d, seed=d) if d > 1 else random_flow(0, 1)
    mean, cov = carry(partial(flow.affine, diffusion=g), g, flow.mean0, flow.cov0)
    assert relative_error(mean, flow.mean1) < RELATIVE
    assert relative_error(cov, flow.cov1) < RELATIVE
    if g > 0:
        assert relative_error(carry(flow.affine, g, flow.mean0, flow.cov0)[1], flow.cov1) > 1e-4  # the ODE's drift


@pytest.mark.parametrize("g", [0.0, 0.7, lambda t: 1.5 - t])
def test_collocation_carries_as_the_solver_does(g):
    for seed in range(4):
        flow, before = random_flow(seed, 3), random_flow(seed + 10, 3)
        drift = blend_drifts(partial(flow.affine, diffusion=g), partial(before.affine, diffusion=g), 0.7)
        fast, precise_law = (by(drift, g, flow.mean0, flow.cov0) for by in (collocate, carry))
        assert all(relative_error(one, other) < RELATIVE for one, other in zip(fast, precise_law, strict=True))
        rough = collocate(drift, g, flow.mean0, flow.cov0, nodes=4)
        assert relative_error(rough[1], precise_law[1]) > 1e-6


@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
def test_affine_form_is_the_drift(coupling):
    flow = random_flow(3, 4, coupling)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    x = torch.randn(9, 4, generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    slope, shift = flow.affine(t, 0.6)
    assert torch.allclose((slope @ x[..., None])[..., 0] + shift, flow.drift(t, x, 0.6))
    assert not torch.allclose((slope @ x[..., None])[..., 0] - shift, flow.drift(t, x, 0.6), rtol=1e-2)


def precise(cov, cov_q, of):
    """A distance of centred Gaussians in 60 digits."""
    with mpmath.workdps(60):
        return of(mpmath.matrix(cov.tolist()), mpmath.matrix(cov_q.tolist()))


def precise_kl(cov, cov_q):
    n = cov.rows
    trace = sum((mpmath.inverse(cov_q) * cov)[i, i] for i in range(n))
    return (trace - n - mpmath.log(mpmath.det(cov) / mpmath.det(cov_q))) / 2


def precise_w2(cov, cov_q):
    root = mpmath.sqrtm(cov)
    middle = mpmath.sqrtm(root * cov_q * root)
    return mpmath.sqrt(sum(cov[i, i] + cov_q[i, i] - 2 * middle[i, i] for i in range(cov.rows)))


@pytest.mark.parametrize("apart", [1.0, 1e-3, 1e-5])
def test_distances_keep_their_digits_also_between_close_laws(apart):
    generator = torch.Generator().manual_seed(1)
    cov, mean = random_covariance(3, generator), torch.zeros(3, dtype=torch.float64)
    change = random_covariance(3, generator)
    cov_q = cov + apart * change
    kl, w2 = gaussian_kl(mean, cov, mean, cov_q), bures_wasserstein(mean, cov, mean, cov_q)
    assert math.isclose(kl, float(precise(cov, cov_q, precise_kl)), rel_tol=1e-6 if apart < 1e-3 else RELATIVE)
    assert math.isclose(w2, float(precise(cov, cov_q, precise_w2)), rel_tol=1e-6 if apart < 1e-3 else RELATIVE)
    assert not math.isclose(gaussian_kl(mean, cov_q, mean, cov), kl, rel_tol=1e-7)  # the other way round
    shift = torch.tensor([0.3, -0.4, 0.0], dtype=torch.float64)
    assert math.isclose(bures_wasserstein(shift, cov, mean, cov), 0.5, rel_tol=RELATIVE)
    expected = float(shift @ torch.linalg.solve(cov, shift)) / 2
    assert math.isclose(gaussian_kl(shift, cov, mean, cov), expected, rel_tol=RELATIVE)


@pytest.mark.parametrize("beta", BETAS)
@pytest.mark.parametrize("coupling", ["independent", "optimal-transport"])
def test_blends_obey_t4_to_t6(beta, coupling):
    target, before = random_flow(1, 3, coupling), random_flow(2, 3, coupling)
    anchor = GaussianFlow(target.mean0, target.cov0, before.mean1, before.cov1, coupling)
    g, rho = 0.8, retention(beta)
    b_tgt, b_pre = partial(target.affine, diffusion=g), partial(anchor.affine, diffusion=g)
    b_beta = blend_drifts(b_tgt, b_pre, beta)
    gap = drift_gap(b_pre, b_tgt, target.marginal)
    assert math.isclose(drift_gap(b_beta, b_tgt, target.marginal), drift_error(rho, gap), rel_tol=RELATIVE)
    whole = path_kl(b_tgt, b_pre, g, target.marginal)
    assert math.isclose(path_kl(b_tgt, b_beta, g, target.marginal), predicted_path_kl(rho, whole), rel_tol=RELATIVE)
    end = carry(b_beta, g, target.mean0, target.cov0)
    terminal = gaussian_kl(target.mean1, target.cov1, *end)
    assert 0 < terminal <= predicted_path_kl(rho, whole)
    swapped = carry(blend_drifts(b_pre, b_tgt, beta), g, target.mean0, target.cov0)
    if beta < 1:
        assert gaussian_kl(target.mean1, target.cov1, *swapped) > predicted_path_kl(rho, whole)


def test_a_rotation_has_a_gap_and_no_terminal_error():
    """The counterexample of T6: q = q_pre = N(0, I), b_tgt = 0, b_pre a rotation."""
    eye, zero = torch.eye(2, dtype=torch.float64), torch.zeros(2, dtype=torch.float64)
    turn = torch.tensor([[0.0, -2.0], [2.0, 0.0]], dtype=torch.float64)

    def still(t):
        return torch.zeros(len(t), 2, 2, dtype=torch.float64), zero.expand(len(t), 2)

    def rotation(t):
        return turn.expand(len(t), 2, 2), zero.expand(len(t), 2)

    def marginal(t):
        return zero.expand(len(t), 2), eye.expand(len(t), 2, 2)

    assert math.isclose(drift_gap(still, rotation, marginal), math.sqrt(8), rel_tol=RELATIVE)
    assert bures_wasserstein(zero, eye, *carry(blend_drifts(still, rotation, 1.0), 0.0, zero, eye)) < 1e-9


def test_odes_have_no_path_kl():
    flow = random_flow(0, 2)
    with pytest.raises(ValueError, match="wanted g > 0"):
        path_kl(flow.affine, flow.affine, 0.0, flow.marginal)


@pytest.mark.parametrize(
    ("mean", "cov", "message"),
    [
        (torch.zeros(2), torch.tensor([[1.0, 0.5], [0.0, 1.0]]), "wanted a symmetric matrix"),
        (torch.zeros(2), torch.tensor([[1.0, 1.0], [1.0, 1.0]]), "least eigenvalue is not > 0"),
        (torch.zeros(3), torch.eye(2), r"got \(3,\) and \(2, 2\)"),
        (torch.zeros(3), torch.eye(3), "3"),
    ],
)
def test_laws_that_are_invalid_or_do_not_match_are_refused(mean, cov, message):
    law = torch.zeros(2), torch.eye(2)
    for distance in (gaussian_kl, bures_wasserstein):
        with pytest.raises(ValueError, match=message):
            distance(*law, mean, cov)
    with pytest.raises(ValueError, match=message):
        carry(random_flow(0, 2).affine, 0.0, mean, cov)
