"""Laws of pairs (x0, x1) with known moments, costs and labels, on which couplings are measured."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Batch, Path
from gftkit_verification.oracles.gaussian import GaussianFlow, bures_map, square_root
from gftkit_verification.testbeds.problems.flows import draw_flow

Function = Callable[[Path, Tensor, Tensor, Tensor, Tensor | None], Tensor]
"""A function of gftkit.theory.flow: (path, t, x0, x1, noise) -> a value for each pair."""


@dataclass(frozen=True)
class Joint:
    """A normal law of pairs: mean (2d,) and covariance (2d, 2d) of (x0, x1)."""

    mean: Tensor
    cov: Tensor

    def points(self) -> tuple[Tensor, Tensor]:
        """4d pairs with exactly this mean and covariance, (4d, d) each."""
        root = math.sqrt(len(self.mean)) * square_root(self.cov)
        x0, x1 = (self.mean + torch.cat([root, -root])).chunk(2, dim=1)
        return x0, x1

    def at(self, function: Function, path: Path, t: Tensor) -> Tensor:
        """A function of gftkit.theory.flow at every time and pair: (k,) -> (k, 4d, d)."""
        return self._of(function, path, self._times(t)).reshape(len(t), *self.points()[0].shape)

    def rate(self, function: Function, path: Path, t: Tensor) -> Tensor:
        """The derivative of ``at`` in t, (k, 4d, d), by autograd."""
        with torch.enable_grad():
            times = self._times(t).requires_grad_()
            (rates,) = torch.autograd.grad(self._of(function, path, times).sum(), times)
        return rates.reshape(len(t), *self.points()[0].shape)

    def _times(self, t: Tensor) -> Tensor:
        """Each time once for every number: each is an event by itself, so that autograd gives each its derivative."""
        return t.repeat_interleave(self.points()[0].numel())

    def _of(self, function: Function, path: Path, times: Tensor) -> Tensor:
        x0, x1 = (x.reshape(-1, 1).repeat(len(times) // x.numel(), 1) for x in self.points())
        return function(path, times, x0, x1, None)


def covariance(x: Tensor, y: Tensor) -> Tensor:
    """Cov(x, y) over pairs: (k, n, d), (k, n, d) -> (k, d, d)."""
    return (x - x.mean(1, keepdim=True)).mT @ (y - y.mean(1, keepdim=True)) / x.shape[1]


def affine_regression(x: Tensor, y: Tensor) -> tuple[Tensor, Tensor]:
    """(A, c) of the affine regression A x + c of y on x: (k, n, d), (k, n, d) -> (k, d, d), (k, d)."""
    slope = torch.linalg.solve(covariance(x, x), covariance(y, x), left=False)
    return slope, y.mean(1) - (slope @ x.mean(1)[..., None])[..., 0]


def draw_joints(d: int, generator: Generator, optimal: Callable[[Tensor, Tensor], Tensor]) -> dict[str, Joint]:
    """Three couplings of two random normal laws: independent, optimal, and a random one."""
    gaussian = draw_flow(d, generator)
    noise = torch.randn(d, d, generator=generator, dtype=torch.float64)
    contraction = 0.9 * noise / torch.linalg.matrix_norm(noise, 2)
    crosses = {
        "independent": torch.zeros(d, d, dtype=torch.float64),
        "optimal-transport": gaussian.cov0 @ optimal(gaussian.cov0, gaussian.cov1).mT,
        "random": square_root(gaussian.cov0) @ contraction @ square_root(gaussian.cov1),
    }
    mean = torch.cat([gaussian.mean0, gaussian.mean1])
    return {
        name: Joint(
            mean,
            torch.cat([torch.cat([gaussian.cov0, cross], 1), torch.cat([cross.mT, gaussian.cov1], 1)]),
        )
        for name, cross in crosses.items()
    }


def lower_bound(gaussian: GaussianFlow, x0: Tensor, x1: Tensor) -> Tensor:
    """phi(x0) + psi(x1) <= |x0 - x1|^2 for all points, with equality on the optimal pairs: mean W2^2 (Kantorovich).

    With the Bures map A, f(x) = m1.x + (x - m0).A(x - m0)/2 and its conjugate f*: x0.x1 <= f(x0) + f*(x1).
    """
    slope = bures_map(gaussian.cov0, gaussian.cov1)
    u, v = x0 - gaussian.mean0, x1 - gaussian.mean1
    f = x0 @ gaussian.mean1 + ((u @ slope) * u).sum(-1) / 2
    conjugate = v @ gaussian.mean0 + (torch.linalg.solve(slope, v.mT).mT * v).sum(-1) / 2
    return x0.square().sum(-1) + x1.square().sum(-1) - 2 * (f + conjugate)


def independent_cost(gaussian: GaussianFlow) -> float:
    """E|x0 - x1|^2 = |m0 - m1|^2 + tr S0 + tr S1 of independent pairs."""
    return float((gaussian.mean0 - gaussian.mean1).square().sum() + gaussian.cov0.trace() + gaussian.cov1.trace())


class TwoClasses:
    """Two normal classes in the plane, alternating, far apart: a data set with labels."""

    event_shape: tuple[int, ...] = (2,)
    range: tuple[float, float] | None = None

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples, of class 0 around (-2, 0) and of class 1 around (2, 0)."""
        label = torch.arange(n) % 2
        x1 = torch.randn(n, 2, generator=generator)
        x1[:, 0] += 4.0 * label - 2
        return Batch(x1, label)
