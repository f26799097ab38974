"""Gradient descent and flow on a linear model whose modes don't mix, and the solution that T13 predicts."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Schedule
from gftkit.theory.objective import retention
from gftkit_verification.testbeds.slips.losses import Loss

MODES = 4


@dataclass(frozen=True)
class Modes:
    """A model linear in its parameters, b = W phi, whose features have covariance diag(rates): they don't mix.

    Attributes:
        rates: lambda_i per unit of progress, (p,).
        target: W_tgt, (d, p).
        pretrained: W_pre, (d, p).
    """

    rates: Tensor
    target: Tensor
    pretrained: Tensor

    def descend(self, loss: Loss, schedule: Schedule, steps: int) -> Tensor:
        """Gradient descent on the loss's mean from W_pre, over all of progress: W - W_tgt after each step.

        A step is half the gradient over ``steps``, so that progress is the time of gradient flow.

        Returns:
            (steps + 1, d, p).
        """
        return self._descend(
            loss, [schedule.temperature(k / steps) for k in range(steps)], torch.full_like(self.rates, 0.5 / steps)
        )

    def flow(self, loss: Loss, schedule: Schedule, steps: int) -> Tensor:
        """Gradient flow, with the temperature of each step's middle: as ``descend``, and exact for any step.

        The gradient of mode i is 2 lambda_i (W - W_beta), so that (1 - e^(-lambda_i h))/(2 lambda_i) times it is the
        flow over h.
        """
        share = (1 - torch.exp(-self.rates / steps)) / (2 * self.rates)
        return self._descend(loss, [schedule.temperature((k + 0.5) / steps) for k in range(steps)], share)

    def _descend(self, loss: Loss, temperatures: Sequence[float], share: Tensor) -> Tensor:
        """Steps of ``share`` times the gradient.

        The population has p states; in state i only feature i is on: E phi phi^T = diag(rates), without labels' noise.
        """
        count = len(self.rates)
        phi = torch.diag((count * self.rates).sqrt())
        target, anchor = phi @ self.target.mT, phi @ self.pretrained.mT
        weight = self.pretrained.clone()
        weights = [weight]
        for beta in temperatures:
            at = weight.detach().requires_grad_()
            (gradient,) = torch.autograd.grad(loss(phi @ at.mT, target, anchor, beta).mean(), at)
            weight = weight - share * gradient
            weights.append(weight)
        return torch.stack(weights) - self.target

    def share_left(self, distance: Tensor) -> Tensor:
        """c_i: the share of each mode's gap that is left, (steps + 1, d, p) -> (steps + 1, p)."""
        gap = self.pretrained - self.target
        return (distance * gap).sum(1) / gap.square().sum(0)


def draw_modes(rates: Sequence[float], generator: Generator) -> Modes:
    """Random weights with these rates; the gap of each mode is 1."""
    target, gap = torch.randn(2, 3, len(rates), generator=generator, dtype=torch.float64)
    return Modes(torch.tensor(rates, dtype=torch.float64), target, target + gap / gap.norm(dim=0))


def draw_rates(generator: Generator, least: float, most: float) -> list[float]:
    """Rates spread over a range, evenly in their logarithm but for chance."""
    exponents = (torch.arange(MODES) + torch.rand(MODES, generator=generator)) / MODES
    return [least * (most / least) ** float(exponent) for exponent in exponents]


def predicted_share(rates: Tensor, schedule: Schedule, steps: int) -> Tensor:
    """The solution of c' = -lambda (c - rho(s)), c(0) = 1, rho that of each interval's middle: (steps + 1, p).

    c(s) = e^(-lambda s) + int_0^s lambda e^(-lambda (s - u)) rho(u) du, summed over the intervals before s.
    """
    ends = torch.arange(steps + 1, dtype=torch.float64) / steps
    rho = [retention(schedule.temperature((k + 0.5) / steps)) for k in range(steps)]
    since = (ends[:, None] - ends).clamp(min=0)[..., None] * rates  # lambda (s - u), at each u
    weight = torch.exp(-since[:, 1:]) - torch.exp(-since[:, :-1])  # 0 for what is after s
    return torch.exp(-ends[:, None] * rates) + torch.einsum("skp,k->sp", weight, torch.tensor(rho, dtype=torch.float64))


class RisingSchedule:
    """A temperature that rises, which Gradual Fine-Tuning's never does: 4 s."""

    def temperature(self, progress: float) -> float:
        """beta at this progress."""
        return 4 * progress


class SlowSchedule:
    """rho falls linearly from almost 1 to 0."""

    def temperature(self, progress: float) -> float:
        """beta at this progress."""
        rho = 0.999 * (1 - progress)
        return rho / (1 - rho)


def curve_length(distance: Tensor) -> float:
    """The length of a curve of weights, (steps + 1, d, p)."""
    return float((distance[1:] - distance[:-1]).flatten(1).norm(dim=1).sum())
