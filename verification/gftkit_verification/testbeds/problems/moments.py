"""Gaussian fine-tunes on states that carry the pairs' first two moments: means of squared affine drifts are exact."""

import math
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow
from gftkit.theory.objective import squared_norm
from gftkit_verification.oracles.gaussian import GaussianFlow, square_root
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget

DIMENSIONS = (2, 3, 5)

TEMPERATURES = (0.01, 0.05, 0.3, 1.5, 7.0, 30.0)

NODES = 4
"""Gauss-Legendre nodes in t. An identity between integrals holds for any quadrature: it is a weight w(t)."""


@dataclass(frozen=True)
class SigmaPoints:
    """Pairs, noise and times whose weighted sums are the integral over t of expectations, for quadratic functions.

    Attributes:
        t: (n,).
        weight: (n,), of sum 1 where the times' weights have sum 1.
        x0: (n, d).
        x1: (n, d).
        noise: (n, d).
    """

    t: Tensor
    weight: Tensor
    x0: Tensor
    x1: Tensor
    noise: Tensor


def gauss_legendre(nodes: int, end: float = 1.0) -> tuple[Tensor, Tensor]:
    """Times in (0, end) and weights of Gauss-Legendre quadrature over [0, end]."""
    at, weights = np.polynomial.legendre.leggauss(nodes)
    return torch.from_numpy(end * (at + 1) / 2), torch.from_numpy(end * weights / 2)


def sigma_points(gaussian: GaussianFlow, times: Tensor, weights: Tensor) -> SigmaPoints:
    """The 6 d points m +- sqrt(3 d) L_k at every time, with m the mean of (x0, x1, noise) and L L^T its covariance.

    Their mean and covariance are exactly those of the law, so the mean of every polynomial of degree two is exact.

    Args:
        gaussian: gives the law of (x0, x1); the noise is standard normal and independent.
        times: (n,).
        weights: (n,).
    """
    d = len(gaussian.mean0)
    cov = torch.eye(3 * d, dtype=torch.float64)
    cov[:d, :d], cov[d : 2 * d, d : 2 * d] = gaussian.cov0, gaussian.cov1
    cov[:d, d : 2 * d], cov[d : 2 * d, :d] = gaussian.cross, gaussian.cross.mT
    root = math.sqrt(3 * d) * square_root(cov)
    mean = torch.cat([gaussian.mean0, gaussian.mean1, torch.zeros(d, dtype=torch.float64)])
    points = (mean + torch.cat([root, -root])).repeat(len(times), 1)
    x0, x1, noise = points[:, :d], points[:, d : 2 * d], points[:, 2 * d :]
    return SigmaPoints(times.repeat_interleave(6 * d), weights.repeat_interleave(6 * d) / (6 * d), x0, x1, noise)


@dataclass(frozen=True)
class FineTune:
    """A target's flow and a pretrained one of the same source and coupling, and their drifts on common states.

    Args:
        path: gives the states and the conditional drifts; ``b_tgt`` and ``b_pre`` are those of the linear path.
        target: the target's flow.
        pretrained: the pretrained one.
        seed: of ``other``.
    """

    path: Path
    target: GaussianFlow
    pretrained: GaussianFlow
    seed: int = 0

    @cached_property
    def states(self) -> SigmaPoints:
        """States at the nodes of a quadrature in t over [0, t_end], where the path's training ends."""
        return sigma_points(self.target, *gauss_legendre(NODES, flow.t_end(self.path)))

    @property
    def weight(self) -> Tensor:
        """(n,)."""
        return self.states.weight

    @cached_property
    def x(self) -> Tensor:
        """x_t, (n, d)."""
        at = self.states
        return flow.sample(self.path, at.t, at.x0, at.x1, at.noise)

    @cached_property
    def conditional(self) -> Tensor:
        """b_t(x|z), (n, d)."""
        at = self.states
        return flow.drift(self.path, at.t, at.x0, at.x1, at.noise)

    @cached_property
    def b_tgt(self) -> Tensor:
        """The target flow's drift, (n, d)."""
        return self.target.velocity(self.states.t, self.x)

    @cached_property
    def b_pre(self) -> Tensor:
        """The pretrained drift, (n, d)."""
        return self.pretrained.velocity(self.states.t, self.x)

    @cached_property
    def gap(self) -> float:
        """|b_pre - b_tgt|_w."""
        return self.norm(self.b_pre - self.b_tgt)

    def mean(self, values: Tensor) -> float:
        """The integral over t of the mean over states of (n,) values."""
        return float(self.weight @ values)

    def norm(self, drift: Tensor) -> float:
        """|b|_w of a drift on the states, (n, d)."""
        return math.sqrt(self.mean(squared_norm(drift)))

    @cached_property
    def other(self) -> Tensor:
        """Any affine drift A x + c + t (B x + e), with random A, B, c, e, scaled to |Delta|_w: (n, d)."""
        d = self.x.shape[1]
        generator = torch.Generator().manual_seed(self.seed)
        slopes, shifts = (torch.randn(shape, generator=generator, dtype=torch.float64) for shape in ((2, d, d), (2, d)))
        constant, linear = self.x @ slopes.mT + shifts[:, None]
        drift = constant + self.states.t[:, None] * linear
        return drift * (self.gap / self.norm(drift))


def draw_fine_tunes(path: Path, generator: Generator, dimensions: tuple[int, ...] = DIMENSIONS) -> Iterator[FineTune]:
    """A random one of each dimension and coupling, on the CPU."""
    generator = cpu_generator(generator)
    for d in dimensions:
        for coupling in COUPLINGS:
            target = draw_flow(d, generator, coupling)
            yield FineTune(path, target, retarget(target, generator), draw_seed(generator))


def cpu_generator(generator: Generator) -> Generator:
    """A generator on the CPU, seeded by the given one: closed forms are measured there."""
    return torch.Generator().manual_seed(draw_seed(generator))


def rho_of(beta: float) -> float:
    """beta/(1 + beta): not gftkit's ``retention``, which is part of what is measured."""
    return beta / (1 + beta)


def draw_seed(generator: Generator) -> int:
    """A seed, drawn."""
    return int(torch.randint(2**31, (), generator=generator, device=generator.device))
