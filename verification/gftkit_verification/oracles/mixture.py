"""Exact flows from a Gaussian to a Gaussian mixture, along any affine path, with independent coupling."""

import math

import torch
from torch import Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow
from gftkit_verification.oracles.gaussian import Diffusion, check_covariance, check_time, scale_column


class MixtureFlow:
    """The affine path x_t = sigma x0 + alpha x1 from N(mean0, cov0) to sum w_k N(m_k, S_k), x0 and x1 independent.

    Given component k, x_t ~ N(sigma m0 + alpha m_k, sigma^2 S0 + alpha^2 S_k) and v_k = sigma' m0 + alpha' m_k +
    (sigma sigma' S0 + alpha alpha' S_k) S_{t,k}^(-1) (x - m_{t,k}); the marginal velocity is the mean of v_k under the
    responsibilities. It is not affine.

    Args:
        path: an affine path: gamma = 0 and g = 0.
        mean0: (d,), the source's mean.
        cov0: (d, d), the source's covariance.
        weights: (k,), positive, of sum 1.
        means: (k, d).
        covs: (k, d, d).

    Raises:
        ValueError: for mismatched shapes, weights that are no probabilities, a covariance that is not symmetric
            positive definite, or a path with noise.

    Reference: theory, section 4.
    """

    def __init__(self, path: Path, mean0: Tensor, cov0: Tensor, weights: Tensor, means: Tensor, covs: Tensor) -> None:
        self.path = path
        self.mean0, self.cov0 = mean0.double(), check_covariance("cov0", cov0)
        self.weights, self.means = weights.double(), means.double()
        self.covs = torch.stack([check_covariance(f"covs[{k}]", cov) for k, cov in enumerate(covs)])
        k, d = len(weights), len(mean0)
        shapes = [tuple(value.shape) for value in (self.cov0, self.weights, self.means, self.covs)]
        if shapes != [(d, d), (k,), (k, d), (k, d, d)]:
            raise ValueError(f"wanted shapes {[(d, d), (k,), (k, d), (k, d, d)]}, got {shapes}.")
        if (self.weights <= 0).any() or not math.isclose(float(self.weights.sum()), 1, rel_tol=1e-9):
            raise ValueError(f"weights: wanted positive numbers of sum 1, got {weights.tolist()}.")
        if flow.is_noisy(path) or flow.is_stochastic(path):
            raise ValueError("path: wanted an affine path, with gamma = 0 and g = 0; this one has noise.")

    def _components(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x_t given each component: (batch, k, d), (batch, k, d, d)."""
        sigma, alpha, _ = (value[:, None, None] for value in self.path.coefficients(check_time(t)))
        covs = sigma[..., None] ** 2 * self.cov0 + alpha[..., None] ** 2 * self.covs
        return sigma * self.mean0 + alpha * self.means, covs

    def _parts(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Log weighted densities (batch, k), the components' scores (batch, k, d), and their means (batch, k, d)."""
        means, covs = self._components(t)
        centred = x.double()[:, None] - means
        scores = -torch.linalg.solve(covs, centred[..., None])[..., 0]
        d = centred.shape[-1]
        exponents = (centred * scores).sum(-1) / 2 - torch.logdet(covs) / 2 - d / 2 * math.log(2 * math.pi)
        return self.weights.log() + exponents, scores, means

    def log_density(self, t: Tensor, x: Tensor) -> Tensor:
        """log p_t(x): (batch,), (batch, d) -> (batch,)."""
        return self._parts(t, x)[0].logsumexp(1)

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """grad log p_t(x), (batch, d)."""
        logs, scores, _ = self._parts(t, x)
        return (logs.softmax(1)[..., None] * scores).sum(1)

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x), (batch, d)."""
        logs, scores, _ = self._parts(t, x)
        sigma, alpha, _ = (value[:, None, None] for value in self.path.coefficients(check_time(t)))
        sigma_rate, alpha_rate, _ = (value[:, None, None] for value in flow.rates(self.path, check_time(t)))
        spread = (sigma * sigma_rate)[..., None] * self.cov0 + (alpha * alpha_rate)[..., None] * self.covs
        moving = sigma_rate * self.mean0 + alpha_rate * self.means - (spread @ scores[..., None])[..., 0]
        return (logs.softmax(1)[..., None] * moving).sum(1)

    def drift(self, t: Tensor, x: Tensor, diffusion: Diffusion) -> Tensor:
        """v + (g^2/2) grad log p_t: the drift of the SDE of noise scale g with the same marginals (theory, T12)."""
        return self.velocity(t, x) + scale_column(diffusion, t) ** 2 / 2 * self.score(t, x)
