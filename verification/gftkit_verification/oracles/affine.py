"""Affine drifts A_t x + c_t: their blends, the Gaussians they carry, distances between laws, to solver precision."""

import math
from collections.abc import Callable
from functools import cache

import numpy as np
import torch
from torch import Tensor

from gftkit.theory import objective
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, Diffusion, check_law, scale_column, square_root

Marginal = Callable[[Tensor], tuple[Tensor, Tensor]]
"""t -> (mean, cov) of a law at each time: (batch,) -> (batch, d), (batch, d, d)."""
Blend = Callable[[Tensor, Tensor, float], Tensor]
"""(target, anchor, temperature) -> their blend."""

NODES = 80
"""Gauss-Legendre nodes of an integral over t."""

TOLERANCE = 1e-12
"""Relative tolerance of the moment equations' solver."""

_SERIES = 1e-2
"""Below it e - log(1 + e) is summed as a series: the difference would lose its digits."""


def blend_drifts(
    target: AffineDrift, anchor: AffineDrift, temperature: float, blend: Blend = objective.blend
) -> AffineDrift:
    """The optimum b_beta = (b_tgt + beta b_pre)/(1 + beta) of two affine drifts, which is affine (theory, T1).

    Args:
        target: b_tgt.
        anchor: b_pre.
        temperature: beta.
        blend: how slopes and shifts are blended; another one for a mutant.
    """

    def drift(t: Tensor) -> Affine:
        (slope, shift), (slope0, shift0) = target(t), anchor(t)
        return blend(slope, slope0, temperature), blend(shift, shift0, temperature)

    return drift


def carry(drift: AffineDrift, diffusion: Diffusion, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance at t = 1 of dX = (A_t X + c_t) dt + g dW from N(mean, cov).

    Solves m' = A m + c and S' = A S + S A^T + g^2 I (theory, section 4).

    Args:
        drift: t -> (A, c), (1,) -> (1, d, d), (1, d).
        diffusion: g, a number or a function of t.
        mean: (d,), at t = 0.
        cov: (d, d), at t = 0.

    Raises:
        ValueError: for a start that is no normal law of the drift's dimension, or where the solver fails.
    """
    from scipy.integrate import solve_ivp  # slow to load

    mean, cov = check_law("the start", mean, cov)
    d = len(mean)
    slope = drift(torch.zeros(1, dtype=torch.float64))[0]
    if slope.shape != (1, d, d):
        raise ValueError(
            f"drift: wanted slopes (1, {d}, {d}), as the start has dimension {d}, got {tuple(slope.shape)}."
        )
    eye = np.eye(d)

    def rate(t: float, state: np.ndarray) -> np.ndarray:
        at = torch.tensor([t], dtype=torch.float64)
        slope, shift = (value[0].numpy() for value in drift(at))
        g = float(diffusion(at)) if callable(diffusion) else diffusion
        moment, spread = state[:d], state[d:].reshape(d, d)
        moved = slope @ spread
        return np.concatenate([slope @ moment + shift, (moved + moved.T + g**2 * eye).ravel()])

    start = torch.cat([mean, cov.flatten()]).numpy()
    solution = solve_ivp(rate, (0.0, 1.0), start, method="DOP853", rtol=TOLERANCE, atol=TOLERANCE * 1e-3)
    if not solution.success:
        raise ValueError(f"the moment equations could not be solved: {solution.message}")
    end = torch.from_numpy(solution.y[:, -1].copy())
    spread = end[d:].reshape(d, d)
    return end[:d], (spread + spread.mT) / 2


def collocate(
    drift: AffineDrift, diffusion: Diffusion, mean: Tensor, cov: Tensor, nodes: int = 40
) -> tuple[Tensor, Tensor]:
    """Mean and covariance at t = 1 as by ``carry``, some hundred times faster, for a drift that is smooth on [0, 1].

    Collocation at Gauss-Legendre nodes: the propagator of (x, 1) obeys F(t_i) = I + sum_j Q_ij A(t_j) F(t_j), with Q_ij
    the integral over [0, t_i] of the polynomial that is 1 at t_j and 0 at the other nodes. Its error falls
    exponentially with the number of nodes.

    Args:
        drift: t -> (A, c), (batch,) -> (batch, d, d), (batch, d).
        diffusion: g, a number or a function of t.
        mean: (d,), at t = 0.
        cov: (d, d), at t = 0.
        nodes: of the quadrature.
    """
    d = len(mean)
    t, weights, integrals = _collocation(nodes)
    slope, shift = drift(t)
    whole = torch.zeros(nodes, d + 1, d + 1, dtype=torch.float64)  # acts on (x, 1)
    whole[:, :d, :d], whole[:, :d, d] = slope, shift
    size, eye = nodes * (d + 1), torch.eye(d + 1, dtype=torch.float64)
    system = torch.eye(size) - torch.einsum("ij,jab->iajb", integrals, whole).reshape(size, size)
    flow = torch.linalg.solve(system, eye.repeat(nodes, 1)).reshape(nodes, d + 1, d + 1)  # from 0 to t
    end = eye + torch.einsum("j,jab,jbc->ac", weights, whole, flow)
    onward = torch.linalg.solve(flow, end.expand_as(flow), left=False)[:, :d, :d]  # from t to 1
    noise = weights * scale_column(diffusion, t)[:, 0] ** 2
    spread = end[:d, :d] @ cov.double() @ end[:d, :d].mT + torch.einsum("j,jab,jcb->ac", noise, onward, onward)
    return end[:d, :d] @ mean.double() + end[:d, d], (spread + spread.mT) / 2


@cache
def _collocation(nodes: int) -> tuple[Tensor, Tensor, Tensor]:
    """Gauss-Legendre nodes and weights on [0, 1], and the integrals of the nodes' Lagrange polynomials up to each."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    values = np.polynomial.legendre.legvander(at, nodes)  # P_k(t_i), k = 0, ..., nodes
    degrees = np.arange(1, nodes)
    primitives = np.empty((nodes, nodes))  # the integral of P_k from -1 to t_i
    primitives[:, 0] = at + 1
    primitives[:, 1:] = (values[:, 2:] - values[:, :-2]) / (2 * degrees + 1)
    coefficients = (np.arange(nodes) + 0.5)[:, None] * values[:, :nodes].T * weights  # of the Lagrange polynomials
    arrays = (at + 1) / 2, weights / 2, primitives @ coefficients / 2
    return tuple(map(torch.from_numpy, arrays))  # type: ignore[return-value]


def gaussian_kl(mean: Tensor, cov: Tensor, mean_q: Tensor, cov_q: Tensor) -> float:
    """KL(N(mean, cov) || N(mean_q, cov_q)), without cancellation where the two are close.

    Half the sum of e - log(1 + e) over the eigenvalues e of L^-1 (S - S_q) L^-T with S_q = L L^T, and of the squared
    mean difference in S_q's metric.

    Raises:
        ValueError: for arguments that aren't two normal laws of the same dimension.
    """
    mean, cov, mean_q, cov_q = _check_pair(mean, cov, mean_q, cov_q)
    root = torch.linalg.cholesky(cov_q)
    inner = torch.linalg.solve_triangular(root, cov - cov_q, upper=False)
    inner = torch.linalg.solve_triangular(root, inner.mT, upper=False)
    excess = torch.linalg.eigvalsh((inner + inner.mT) / 2)
    series = sum((-1) ** k * excess**k / k for k in range(2, 10))
    terms = torch.where(excess.abs() < _SERIES, series, excess - torch.log1p(excess))
    shift = torch.linalg.solve_triangular(root, (mean - mean_q)[:, None], upper=False)
    return float((terms.sum() + shift.square().sum()) / 2)


def bures_wasserstein(mean: Tensor, cov: Tensor, mean_q: Tensor, cov_q: Tensor) -> float:
    """W2(N(mean, cov), N(mean_q, cov_q)), without cancellation where the two are close.

    W2^2 = |m - m_q|^2 + the least |S^(1/2) - S_q^(1/2) U|^2 over rotations U, by a singular value decomposition.

    Raises:
        ValueError: for arguments that aren't two normal laws of the same dimension.

    Reference: Bhatia, Jain, Lim (2019), On the Bures-Wasserstein distance between positive definite matrices.
    """
    mean, cov, mean_q, cov_q = _check_pair(mean, cov, mean_q, cov_q)
    root, root_q = square_root(cov), square_root(cov_q)
    left, _, right = torch.linalg.svd(root_q @ root)
    return math.sqrt(float((mean - mean_q).square().sum() + (root - root_q @ (left @ right)).square().sum()))


def _check_pair(mean: Tensor, cov: Tensor, mean_q: Tensor, cov_q: Tensor) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    law, law_q = check_law("the first law", mean, cov), check_law("the second law", mean_q, cov_q)
    if law[0].shape != law_q[0].shape:
        raise ValueError(f"wanted two laws of the same dimension, got {len(law[0])} and {len(law_q[0])}.")
    return *law, *law_q


def squared_gap(drift: AffineDrift, other: AffineDrift, t: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """E|(A x + c) - (A' x + c')|^2 for x ~ N(mean, cov), at each t: |D m + e|^2 + tr(D S D^T), (batch,)."""
    (slope, shift), (slope0, shift0) = drift(t), other(t)
    slope_gap, shift_gap = slope - slope0, shift - shift0
    at_mean = (slope_gap @ mean[..., None])[..., 0] + shift_gap
    return at_mean.square().sum(-1) + ((slope_gap @ cov) * slope_gap).sum((-1, -2))


def integrate(values: Callable[[Tensor], Tensor], end: float = 1.0) -> float:
    """The integral of a smooth function of t over [0, end], by Gauss-Legendre quadrature."""
    nodes, weights = np.polynomial.legendre.leggauss(NODES)
    t = torch.from_numpy(end * (nodes + 1) / 2)
    return float(torch.from_numpy(weights) @ values(t)) * end / 2


def drift_gap(drift: AffineDrift, other: AffineDrift, marginal: Marginal) -> float:
    """|b - b'|_w with w = 1: the root of ``int E_{x ~ p_t} |b - b'|^2 dt``."""
    return math.sqrt(integrate(lambda t: squared_gap(drift, other, t, *marginal(t))))


def path_kl(drift: AffineDrift, other: AffineDrift, diffusion: float, marginal: Marginal) -> float:
    """KL(P_b || P_b') = 1/2 E int |b - b'|^2/g^2 dt of two SDEs of one g > 0 and one start law (Girsanov; theory, T5).

    Args:
        drift: b, whose marginals ``marginal`` are.
        other: b'.
        diffusion: g > 0.
        marginal: of the first SDE.

    Raises:
        ValueError: for g <= 0, where the laws are singular to each other.
    """
    if diffusion <= 0:
        raise ValueError(f"diffusion: wanted g > 0, got {diffusion}: the laws of two ODEs have no finite KL.")
    return drift_gap(drift, other, marginal) ** 2 / (2 * diffusion**2)
