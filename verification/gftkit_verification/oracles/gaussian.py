"""Exact Gaussian flows: velocity, drift, score and marginals of the linear path between two normal laws."""

from collections.abc import Callable
from functools import cached_property
from typing import Literal

import torch
from torch import Tensor

CouplingName = Literal["independent", "optimal-transport"]
Diffusion = float | Callable[[Tensor], Tensor]
Affine = tuple[Tensor, Tensor]
"""(A, c) of an affine drift A x + c: (batch, d, d) and (batch, d)."""
AffineDrift = Callable[[Tensor], Affine]

SYMMETRIC = 1e-10
"""Largest asymmetry of a covariance, relative to its largest entry."""


def square_root(matrix: Tensor) -> Tensor:
    """The symmetric square root of a symmetric positive semi-definite matrix, (d, d)."""
    values, vectors = torch.linalg.eigh(matrix)
    return (vectors * values.clamp(min=0).sqrt()) @ vectors.mT


def bures_map(cov0: Tensor, cov1: Tensor) -> Tensor:
    """A = S0^(-1/2) (S0^(1/2) S1 S0^(1/2))^(1/2) S0^(-1/2): the optimal map x -> A x from N(0, S0) to N(0, S1)."""
    root = square_root(cov0)
    inverse = torch.linalg.inv(root)
    return inverse @ square_root(root @ cov1 @ root) @ inverse


class GaussianFlow:
    """The linear path from N(mean0, cov0) to N(mean1, cov1), in closed form and float64.

    With C = Cov(x0, x1): m_t = (1-t) m0 + t m1, S_t = (1-t)^2 S0 + t^2 S1 + t(1-t)(C + C^T),
    D_t = Cov(x1 - x0, x_t) = t S1 - (1-t) S0 + (1-t) C^T - t C, and v(t, x) = m1 - m0 + D_t S_t^(-1) (x - m_t).

    Args:
        mean0: (d,), the source's mean.
        cov0: (d, d), the source's covariance.
        mean1: (d,), the target's mean.
        cov1: (d, d), the target's covariance.
        coupling: "independent" (C = 0) or "optimal-transport" (C = S0 A^T with the Bures map A).

    Raises:
        ValueError: for mismatched dimensions, a covariance that is not symmetric or not positive definite, or an
            unknown coupling.

    Reference: theory, section 4; Peyre, Cuturi (2019), Computational Optimal Transport, remark 2.31.

    Example:
        >>> import torch
        >>> flow = GaussianFlow(torch.zeros(1), torch.eye(1), torch.ones(1), 4 * torch.eye(1), "optimal-transport")
        >>> flow.velocity(torch.tensor([0.5]), torch.tensor([[0.5]]))
        tensor([[1.]], dtype=torch.float64)
    """

    def __init__(
        self, mean0: Tensor, cov0: Tensor, mean1: Tensor, cov1: Tensor, coupling: CouplingName = "independent"
    ) -> None:
        self.mean0, self.mean1 = mean0.double(), mean1.double()
        self.cov0, self.cov1 = check_covariance("cov0", cov0), check_covariance("cov1", cov1)
        d = len(self.mean0)
        shapes = {self.mean0.shape, self.mean1.shape}, {self.cov0.shape, self.cov1.shape}
        if shapes != ({(d,)}, {(d, d)}):
            raise ValueError(
                f"wanted means (d,) and covariances (d, d) of one d, got {tuple(mean0.shape)}, {tuple(cov0.shape)}, "
                f"{tuple(mean1.shape)}, {tuple(cov1.shape)}."
            )
        if coupling == "independent":
            self.cross = torch.zeros_like(self.cov0)
        elif coupling == "optimal-transport":
            self.cross = self.cov0 @ self._map.mT
        else:
            raise ValueError(f"coupling: wanted 'independent' or 'optimal-transport', got '{coupling}'.")
        self.coupling = coupling

    def marginal(self, t: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance of x_t: (batch,) -> (batch, d), (batch, d, d)."""
        u, v = _column(1 - t), _column(t)
        cross = self.cross + self.cross.mT
        cov = u[..., None] ** 2 * self.cov0 + v[..., None] ** 2 * self.cov1 + (u * v)[..., None] * cross
        return u * self.mean0 + v * self.mean1, cov

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x): (batch,), (batch, d) -> (batch, d)."""
        return self.mean1 - self.mean0 - (self._displacement(t) @ self.score(t, x)[..., None])[..., 0]

    def affine(self, t: Tensor, diffusion: Diffusion = 0.0) -> Affine:
        """(A, c) with drift(t, x, diffusion) = A x + c: (batch,) -> (batch, d, d), (batch, d)."""
        mean, cov = self.marginal(t)
        noise = scale_column(diffusion, t)[..., None] ** 2 / 2
        slope = torch.linalg.solve(cov, self._displacement(t) - noise * torch.eye(len(self.mean0)), left=False)
        return slope, self.mean1 - self.mean0 - (slope @ mean[..., None])[..., 0]

    def _displacement(self, t: Tensor) -> Tensor:
        """D_t = Cov(x1 - x0, x_t), (batch, d, d)."""
        u, v = _column(1 - t)[..., None], _column(t)[..., None]
        return v * self.cov1 - u * self.cov0 + u * self.cross.mT - v * self.cross

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """grad log p_t(x) = -S_t^(-1) (x - m_t)."""
        mean, cov = self.marginal(t)
        return -torch.linalg.solve(cov, (x.double() - mean)[..., None])[..., 0]

    def drift(self, t: Tensor, x: Tensor, diffusion: Diffusion) -> Tensor:
        """v + (g^2/2) grad log p_t: the drift of the SDE of noise scale g with the same marginals (theory, T12).

        Raises:
            ValueError: for a diffusion that is negative.
        """
        return self.velocity(t, x) + scale_column(diffusion, t) ** 2 / 2 * self.score(t, x)

    def pairs(self, n: int, generator: torch.Generator) -> tuple[Tensor, Tensor]:
        """n pairs (x0, x1) of the coupling, (n, d) each."""
        x0 = self.starts(n, generator)
        if self.coupling == "independent":
            return x0, self.mean1 + _normal(n, self.mean1, generator) @ self._root1
        return x0, self.mean1 + (x0 - self.mean0) @ self._map.mT

    def starts(self, n: int, generator: torch.Generator) -> Tensor:
        """n samples of the source, (n, d)."""
        return self.mean0 + _normal(n, self.mean0, generator) @ self._root0

    @cached_property
    def _root0(self) -> Tensor:
        return square_root(self.cov0)

    @cached_property
    def _root1(self) -> Tensor:
        return square_root(self.cov1)

    @cached_property
    def _map(self) -> Tensor:
        return bures_map(self.cov0, self.cov1)


def _normal(n: int, like: Tensor, generator: torch.Generator) -> Tensor:
    return torch.randn(n, len(like), generator=generator, dtype=torch.float64, device=like.device)


def check_time(t: Tensor) -> Tensor:
    """t in float64, checked.

    Raises:
        ValueError: outside [0, 1].
    """
    if ((t < 0) | (t > 1)).any():
        raise ValueError(f"t: wanted values in [0, 1], got {float(t.min())} to {float(t.max())}.")
    return t.double()


def _column(t: Tensor) -> Tensor:
    return check_time(t)[..., None]


def scale_column(diffusion: Diffusion, t: Tensor) -> Tensor:
    """g(t) in a column, (batch, 1)."""
    g = diffusion(t) if callable(diffusion) else torch.full_like(t, diffusion, dtype=torch.float64)
    if (g < 0).any():
        raise ValueError(f"a diffusion is >= 0, got {float(g.min())}.")
    return g.double()[..., None]


def check_law(name: str, mean: Tensor, cov: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and covariance of a normal law in float64, of one dimension.

    Raises:
        ValueError: for mismatched dimensions, or a covariance that ``check_covariance`` refuses.
    """
    cov = check_covariance(f"the covariance of {name}", cov)
    if mean.shape != cov.shape[:1]:
        raise ValueError(
            f"{name}: wanted a mean (d,) and a covariance (d, d), got {tuple(mean.shape)} and {tuple(cov.shape)}."
        )
    return mean.double(), cov


def check_covariance(name: str, matrix: Tensor) -> Tensor:
    """A covariance in float64, made exactly symmetric.

    Raises:
        ValueError: where it is not a symmetric positive definite matrix.
    """
    matrix = matrix.double()
    if matrix.ndim != 2 or matrix.shape[0] != matrix.shape[1]:
        raise ValueError(f"{name}: wanted a square matrix (d, d), got {tuple(matrix.shape)}.")
    if (matrix - matrix.mT).abs().max() > SYMMETRIC * matrix.abs().max():
        raise ValueError(f"{name}: wanted a symmetric matrix.")
    if torch.linalg.eigvalsh(matrix).min() <= 0:
        raise ValueError(f"{name}: wanted a positive definite matrix, its least eigenvalue is not > 0.")
    return (matrix + matrix.mT) / 2
