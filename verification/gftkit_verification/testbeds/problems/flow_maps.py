"""The flow map of a Gaussian flow in closed form, a family around it, and solvers that jump wrongly."""

from collections.abc import Callable

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Diffusion, Jump
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.problems.flows import random_covariance

DIMENSION = 3


class ExactFlowMap:
    """The flow map of the linear path from N(m0, I) to N(m1, S), independent: X(t, s, x) = m_s + R_s R_t^-1 (x - m_t).

    R_t is the root of S_t = (1 - t)^2 I + t^2 S. All of them commute, so that d/dt R_t = D_t S_t^-1 R_t.

    Args:
        generator: draws the laws.
    """

    jumps = True

    def __init__(self, generator: Generator) -> None:
        cov = random_covariance(DIMENSION, generator)
        means = torch.randn(2, DIMENSION, generator=generator, dtype=torch.float64)
        self.flow = GaussianFlow(means[0], torch.eye(DIMENSION, dtype=torch.float64), means[1], cov)
        self._values, self._vectors = torch.linalg.eigh(cov)
        self._means = means

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """u(t, end, x), with the end by its name."""
        end = conditions["end"]
        return (self.landing(t, end, x) - x) / (end - t)[:, None]

    def landing(self, t: Tensor, end: Tensor, x: Tensor) -> Tensor:
        """X(t, end, x), where the flow brings x."""
        inner = (x - self._mean(t)) @ self._vectors * (self._scale(end) / self._scale(t))
        return self._mean(end) + inner @ self._vectors.mT

    def teacher(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x)."""
        return self.flow.velocity(t, x)

    def _mean(self, t: Tensor) -> Tensor:
        return (1 - t)[:, None] * self._means[0] + t[:, None] * self._means[1]

    def _scale(self, t: Tensor) -> Tensor:
        return ((1 - t)[:, None] ** 2 + t[:, None] ** 2 * self._values).sqrt()


class FlowMapFamily:
    """The flow map's average velocity in a family: (1 + a) u + b k + c (s - t) k + d x, at a = b = c = d = 0 itself.

    Args:
        truth: u.
        direction: k, (d,).
        parameters: (a, b, c, d).
    """

    jumps = True

    def __init__(self, truth: ExactFlowMap, direction: Tensor, parameters: Tensor) -> None:
        self.truth, self.direction, self.parameters = truth, direction, parameters

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """The family's average velocity."""
        end = conditions["end"]
        a, b, c, d = self.parameters
        return (1 + a) * self.truth(t, x, end=end) + (b + c * (end - t)[:, None]) * self.direction + d * x


class BareLinearPath:
    """The linear path without rates: all that the sampler reads of a path."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1 - t, t, 0)."""
        return 1 - t, t, torch.zeros_like(t)


class Jumper:
    """The solver with another step.

    Args:
        step: (drift, t, h, x) -> the state at t + h.
    """

    ode_order, strong_order, weak_order = 1.0, None, None
    jumps = True

    def __init__(self, step: Callable[[Jump, float, float, Tensor], Tensor]) -> None:
        self._step = step

    def step(self, drift: Jump, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG002
        """The state at t + h."""
        return self._step(drift, t, h, x)
