"""Brownian bridges between normal laws in closed form, and bridges with a slip in the closing step or the label."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from gftkit.kernel.contracts import Drift, Path
from gftkit.theory import flow
from gftkit_verification.oracles.gaussian import GaussianFlow


@dataclass(frozen=True)
class Bridge:
    """A Brownian bridge between two independent normal laws: velocity, score, and the law of the sampler's chain.

    With S_t the linear path's covariance and S = S_t + g^2 t(1 - t) I:
    v = m1 - m0 + (D_t + g^2 (1 - 2t)/2 I) S^(-1) (x - m_t).

    Args:
        gaussian: the linear path's flow.
        scale: g > 0.
    """

    gaussian: GaussianFlow
    scale: float

    def affine(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """(A, B, m) of velocity m1 - m0 + A (x - m) and score B (x - m), at one time."""
        g = self.gaussian
        eye = torch.eye(len(g.mean0), dtype=torch.float64)
        spread = (1 - t) ** 2 * g.cov0 + t**2 * g.cov1 + self.scale**2 * t * (1 - t) * eye
        moved = t * g.cov1 - (1 - t) * g.cov0 + self.scale**2 / 2 * (1 - 2 * t) * eye
        inverse = torch.linalg.inv(spread)
        return moved @ inverse, -inverse, (1 - t) * g.mean0 + t * g.mean1

    def drift(self, build: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Drift:
        """The drift that ``build`` makes of velocity, score and g."""

        def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
            slope, score, mean = self.affine(float(t[0]))
            velocity = self.gaussian.mean1 - self.gaussian.mean0 + (x - mean) @ slope.mT
            return build(velocity, (x - mean) @ score.mT, torch.tensor(self.scale, dtype=torch.float64))

        return drift

    def chain(self, steps: int, t_end: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean and covariance after each step of Euler-Maruyama: m + h b(m), (I + h A) S (I + h A)^T + g^2 h I.

        The closing step is one of them. The drift's slope is that of (x1 - x_t)/(1 - t): (D_t - g^2 t I) S^(-1).
        """
        g = self.gaussian
        mean, cov = g.mean0, g.cov0
        eye = torch.eye(len(mean), dtype=torch.float64)
        times = [t_end * k / steps for k in range(steps + 1)] + [1.0]
        for t, later in itertools.pairwise(times):
            h = later - t
            slope, score, centre = self.affine(t)
            slope = slope + self.scale**2 / 2 * score
            mean = mean + h * (g.mean1 - g.mean0 + slope @ (mean - centre))
            cov = (eye + h * slope) @ cov @ (eye + h * slope).mT + self.scale**2 * h * eye
            yield mean, cov


@dataclass(frozen=True)
class Closed:
    """A path with another closing step.

    Args:
        path: the path.
        final_step: the step from t_end to 1.
    """

    path: Path
    final_step: str
    t_end: float

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The path's."""
        return self.path.coefficients(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The path's."""
        return flow.diffusion(self.path, t)


class PairDrift:
    """A stochastic path that trains on x1 - x0: the drift without its noise's part.

    Args:
        path: the path.
    """

    def __init__(self, path: Path) -> None:
        self.path, self.t_end = path, flow.t_end(path)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The path's."""
        return self.path.coefficients(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The path's."""
        return flow.diffusion(self.path, t)

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor) -> Tensor:  # noqa: ARG002
        """x1 - x0."""
        return x1 - x0
