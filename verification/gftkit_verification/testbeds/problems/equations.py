"""Equations of known solution, on which the orders of solvers are measured through the sampler."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Drift, Integrator, Solver
from gftkit.sampling import integrate
from gftkit_verification.testbeds.problems.flows import random_covariance

DIMENSION = 3


@dataclass(frozen=True)
class Equation:
    """An equation for the sampler: a drift, and a path of the given noise scale.

    Attributes:
        drift: b(t, x).
        scale: g(t), or None for an ODE.
        t_end: where the closing step starts.
    """

    drift: Drift
    scale: Callable[[Tensor], Tensor] | None = None
    t_end: float = 1.0

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Coefficients of the linear path; sampling doesn't use them."""
        return 1 - t, t, torch.zeros_like(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""
        return torch.zeros_like(t) if self.scale is None else self.scale(t)

    def states(self, solver: Solver | Integrator, steps: int, x0: Tensor, generator: Generator) -> Tensor:
        """The sampler's states at times 0, 1/steps, ..., 1: (steps + 1, n, d).

        The last is what a user gets as the state at 1: where the sampler stops early, it is repeated.
        """
        states = integrate.generate(self.drift, self, solver, steps, x0, generator, batch_size=len(x0), whole=True)
        return states[torch.arange(steps + 1).clamp(max=len(states) - 1)]


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

    def exact(self, t: Tensor, x: Tensor, later: Tensor) -> Tensor:
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

    def exact_law(self, t: Tensor, law: tuple[Tensor, Tensor], later: Tensor) -> tuple[Tensor, Tensor]:
        """Mean and covariance at ``later`` from those at t; times (n, 1)."""
        mean, cov = law
        growth = (self.scale(later) / self.scale(t))[..., None]
        moved = self.centre(later) + growth[..., 0] * (mean - self.centre(t))
        spread = (self.scale(later) ** 2 * (later - t))[..., None] * torch.eye(DIMENSION, dtype=torch.float64)
        return moved, growth**2 * cov + spread


@dataclass(frozen=True)
class StepIntegrals:
    """Integrals along a Brownian path over equal steps, as far as it is known: (steps, n, ...).

    Attributes:
        added: E[int exp(A (t_k+1 - s)) g(s) dW_s | path], the effect of the noise on a linear equation.
        first: int (W_s - W_t_k) ds, of the last component but one.
        second: int (W_s - W_t_k)^2 ds, of the same.
    """

    added: Tensor
    first: Tensor
    second: Tensor


class Forced:
    """dX = (f' + A (X - f)) dt + g dW, one more component with dP = c P dt + g dW, and dQ = k (P/g)^2 dt + g dW.

    With f = m + a sin(t + p) and g = exp(c t), so P = g (P_0 + W). A Brownian path's increments don't determine X and
    Q, not even with the integrals U = int (W_u - W_s) du over their intervals: strong orders up to 1.5 show. The
    conditional means of X and Q given them are known. Q's drift isn't linear: without it a scheme of strong order 1.5
    has order 2.
    """

    DIMENSION = DIMENSION + 2

    def __init__(self, generator: Generator) -> None:
        draws = torch.randn(4, DIMENSION, generator=generator, dtype=torch.float64)
        self.mean, self.swing, self.phase = draws[0], 0.3 * draws[1], draws[2]
        self.growth = 0.5 + 0.2 * math.tanh(float(draws[3, 0]))
        self.bend = 8.0
        slope = 0.4 * torch.randn(DIMENSION, DIMENSION, generator=generator, dtype=torch.float64)
        self.slope = torch.zeros(self.DIMENSION, self.DIMENSION, dtype=torch.float64)
        self.slope[:DIMENSION, :DIMENSION] = slope - 0.7 * torch.eye(DIMENSION, dtype=torch.float64)
        self.slope[-2, -2] = self.growth
        self.equation = Equation(self._drift, self.scale)

    def scale(self, t: Tensor) -> Tensor:
        """g(t) > 0."""
        return torch.exp(self.growth * t)

    def _centre(self, t: Tensor) -> Tensor:
        return torch.nn.functional.pad(self.mean + self.swing * torch.sin(t + self.phase), (0, 2))

    def _drift(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG002
        t = t[:, None]
        moved = torch.nn.functional.pad(self.swing * torch.cos(t + self.phase), (0, 2))
        moved = moved + (x - self._centre(t)) @ self.slope.mT
        moved[:, -1:] += self.bend * (x[:, -2:-1] / self.scale(t)) ** 2
        return moved

    def known(self, steps: int, increments: Tensor, integrals: Tensor | None = None) -> StepIntegrals:
        """The path's integrals over each of ``steps`` steps, as far as increments and integrals determine them.

        Args:
            steps: how many, a divisor of the number of increments.
            increments: of the path over equal intervals, (fine, n, d).
            integrals: the path's U on each of them.
        """
        fine, parts = len(increments), len(increments) // steps
        length = 1 / fine
        tilt = torch.zeros_like(increments) if integrals is None else integrals / length - increments / 2
        nodes, node_weights = np.polynomial.legendre.leggauss(6)  # on one interval; the integrand is smooth
        shares, weights = torch.from_numpy((nodes + 1) / 2), torch.from_numpy(node_weights / 2)
        kernels = torch.linalg.matrix_exp(self.slope * (length * (1 - shares))[:, None, None]) * weights[:, None, None]
        starts = torch.arange(fine, dtype=torch.float64)[:, None] * length
        scaled = self.scale(starts + length * shares)[..., None, None] * kernels
        # dW/ds given W and U: W/h + 12 (U/h - W/2) (1/2 - u)/h, with u the share of the interval that is past.
        added = increments @ scaled.sum(1).mT + tilt @ (scaled * (12 * (0.5 - shares))[:, None, None]).sum(1).mT
        w, bent = increments[..., -2], tilt[..., -2]
        first = length * (w / 2 + bent)
        spread = 1 / 6 if integrals is None else 1 / 15
        second = length * (w**2 / 3 + w * bent + 1.2 * bent**2) + length**2 * spread
        one = torch.linalg.matrix_exp(self.slope * length)
        into = (steps, parts, *increments.shape[1:])
        total, path = torch.zeros_like(added.reshape(into)[:, 0]), torch.zeros(into[0], into[2], dtype=torch.float64)
        whole_first, whole_second = torch.zeros_like(path), torch.zeros_like(path)
        for k in range(parts):
            total = total @ one.mT + added.reshape(into)[:, k]
            here, square = first.reshape(into[:3])[:, k], second.reshape(into[:3])[:, k]
            whole_second = whole_second + length * path**2 + 2 * path * here + square
            whole_first = whole_first + length * path + here
            path = path + w.reshape(into[:3])[:, k]
        return StepIntegrals(total, whole_first, whole_second)

    def errors(self, states: Tensor, path: StepIntegrals) -> tuple[float, float]:
        """Root mean squares over samples of the error at t = 1, and of the largest of one step."""
        steps = len(path.added)
        times = torch.linspace(0, 1, steps + 1, dtype=torch.float64)[:, None, None]
        one = torch.linalg.matrix_exp(self.slope / steps)
        y = states - self._centre(times)
        single = y[1:] - self._step(y[:-1], times[:-1, :, 0], path, one, steps)
        whole = y[0]
        for k in range(steps):
            part = StepIntegrals(path.added[k], path.first[k], path.second[k])
            whole = self._step(whole, times[k, :, 0], part, one, steps)
        return float((y[-1] - whole).square().mean().sqrt()), float(single.square().mean((1, 2)).sqrt().max())

    def _step(self, y: Tensor, t: Tensor, path: StepIntegrals, one: Tensor, steps: int) -> Tensor:
        """X - f after a step from y at t; ``one`` is exp(A/steps)."""
        moved = y @ one.mT + path.added
        p = y[..., -2] / self.scale(t)
        moved[..., -1] += self.bend * (p**2 / steps + 2 * p * path.first + path.second)
        return moved
