"""Equations of exact solution, and the sampler's states for them: what a solver's orders are measured on."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit import integrate
from gftkit.contracts import Drift, Solver
from gftkit_verification.beds.problems import random_covariance

DIMENSION = 3


@dataclass(frozen=True)
class Equation:
    """What the sampler is asked to solve: a drift, and a path of the given noise scale.

    Attributes:
        drift: b(t, x).
        scale: g(t), or None for an ODE.
        t_end: where the closing step starts.
    """

    drift: Drift
    scale: Callable[[Tensor], Tensor] | None = None
    t_end: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Of a path; sampling doesn't ask for them."""
        return 1 - t, t, torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""
        return torch.zeros_like(t) if self.scale is None else self.scale(t)

    def states(self, solver: Solver, steps: int, x0: Tensor, generator: Generator) -> Tensor:
        """The sampler's states at times 0, 1/steps, ..., 1: (steps + 1, n, d).

        What comes last is what a user gets as the state at 1: where the sampler stops early, it is repeated.
        """
        found = integrate.generate(self.drift, self, solver, steps, x0, generator, batch_size=len(x0), whole=True)
        return found[torch.arange(steps + 1).clamp(max=len(found) - 1)]


class Mixed:
    """x = M sinh(y) with y' = a + c cos(t + p), of exact flow; its drift is neither affine nor autonomous."""

    def __init__(self, generator: Generator) -> None:
        def normal(*shape: int) -> Tensor:
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        self.mix = torch.linalg.cholesky(random_covariance(DIMENSION, generator))
        self.inverse = torch.linalg.inv(self.mix)
        self.speed, self.swing, self.phase = (
            0.3 * normal(DIMENSION),
            0.4 + 0.2 * normal(DIMENSION).abs(),
            2 * normal(DIMENSION),
        )
        self.equation = Equation(self._drift)

    def _drift(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG002
        rate = self.speed + self.swing * torch.cos(t[:, None] + self.phase)
        return (rate * torch.sqrt(1 + (x @ self.inverse.mT) ** 2)) @ self.mix.mT

    def exact(self, t: Tensor, x: Tensor, later: Tensor, dw: Tensor) -> Tensor:  # noqa: ARG002
        """The state at ``later`` from x at t; times broadcast against x."""
        moved = self.speed * (later - t)
        moved = moved + self.swing * (torch.sin(later + self.phase) - torch.sin(t + self.phase))
        return torch.sinh(torch.asinh(x @ self.inverse.mT) + moved) @ self.mix.mT


class Scaled:
    """X = f + g Z with dZ = dW, f = m + a sin(t + p) and g = exp(c t): dX = (f' + c (X - f)) dt + g dW."""

    def __init__(self, generator: Generator) -> None:
        draws = torch.randn(4, DIMENSION, generator=generator, dtype=torch.float64)
        self.mean, self.swing, self.phase = draws[0], 0.3 * draws[1], draws[2]
        growth = float(draws[3, 0])
        self.growth = math.copysign(0.5 + 0.2 * math.tanh(abs(growth)), growth)
        self.equation = Equation(self._drift, self.scale)

    def scale(self, t: Tensor) -> Tensor:
        """g(t) > 0."""
        return torch.exp(self.growth * t)

    def centre(self, t: Tensor) -> Tensor:
        """f(t)."""
        return self.mean + self.swing * torch.sin(t + self.phase)

    def _drift(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG002
        t = t[:, None]
        return self.swing * torch.cos(t + self.phase) + self.growth * (x - self.centre(t))

    def exact(self, t: Tensor, x: Tensor, later: Tensor, dw: Tensor) -> Tensor:
        """The state at ``later`` from x at t, of a Brownian path that moves by dw; times broadcast against x."""
        return self.centre(later) + self.scale(later) * ((x - self.centre(t)) / self.scale(t) + dw)

    def exact_law(self, t: Tensor, law: tuple[Tensor, Tensor], later: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance at ``later`` from those at t; times (n, 1)."""
        mean, cov = law
        growth = (self.scale(later) / self.scale(t))[..., None]
        spread = (self.scale(later) ** 2 * (later - t))[..., None] * torch.eye(DIMENSION, dtype=torch.float64)
        return self.exact(t, mean, later, torch.zeros(1)), growth**2 * cov + spread
