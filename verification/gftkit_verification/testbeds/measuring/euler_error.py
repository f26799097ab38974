"""The leading error of Euler's scheme in few steps: derivatives of velocities, the predicted and measured limit."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Drift, Solver
from gftkit.sampling import integrate
from gftkit.theory import objective, predictions
from gftkit.verify.claims import Line
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.problems.equations import Equation

FINE = 12
"""Runge-Kutta steps of a reference."""

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Derivatives:
    """A velocity at some states, and its derivatives.

    Attributes:
        value: v, (n, d).
        rate: d_t v, (n, d).
        slope: grad v, (n, d, d).
    """

    value: Tensor
    rate: Tensor
    slope: Tensor

    def along(self, direction: Tensor) -> Tensor:
        """(grad v) direction, (n, d)."""
        return (self.slope @ direction[..., None])[..., 0]

    @property
    def acceleration(self) -> Tensor:
        """a = d_t v + (grad v) v."""
        return self.rate + self.along(self.value)


def derivatives(velocity: Velocity, t: Tensor, x: Tensor) -> Derivatives:
    """The derivatives of a velocity at some states, by autograd: (n,), (n, d)."""
    with torch.enable_grad():
        t, x = t.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
        value = velocity(t, x)
        parts = [torch.autograd.grad(part.sum(), (t, x), retain_graph=True) for part in value.unbind(1)]
    rates, slopes = (torch.stack(gradients, 1) for gradients in zip(*parts, strict=True))
    return Derivatives(value.detach(), rates, slopes)


def acceleration(target: Derivatives, anchor: Derivatives, retention: float) -> Tensor:
    """a_beta of the blend, by gftkit's prediction."""
    return predict_acceleration(predictions.blend_acceleration, target, anchor, retention)


def predict_acceleration(
    predicted: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    target: Derivatives,
    anchor: Derivatives,
    retention: float,
) -> Tensor:
    """a_beta of the blend, by a prediction from the two accelerations and (grad Delta) Delta."""
    gap = anchor.value - target.value
    gap_along_gap = anchor.along(gap) - target.along(gap)
    return predicted(target.acceleration, anchor.acceleration, gap_along_gap, retention)


@dataclass(frozen=True)
class FewSteps:
    """The sampler's Euler scheme, and the theory of its error.

    Attributes:
        solver: takes the steps.
        acceleration: a_beta, of the two velocities' derivatives and the retention.
        share: 1/2, of h a.
        transport: True for errors that the flow's Jacobian carries on.
    """

    solver: Solver
    acceleration: Callable[[Derivatives, Derivatives, float], Tensor] = acceleration
    share: float = 0.5
    transport: bool = True


At = Callable[[int, Tensor], Derivatives]
"""Derivatives at a numbered time and states."""


class AffineGrid:
    """A Gaussian flow's velocity A x + c and its derivatives at times k/(2 FINE), computed once."""

    def __init__(self, gaussian: GaussianFlow) -> None:
        t = torch.linspace(0, 1, 2 * FINE + 1, dtype=torch.float64)
        self.slope, self.shift = gaussian.affine(t)
        # Each output depends on its own time only: the sum's derivatives are the outputs'.
        summed = torch.autograd.functional.jacobian(lambda t: tuple(part.sum(0) for part in gaussian.affine(t)), t)  # type: ignore[no-untyped-call]
        self.slope_rate, self.shift_rate = (part.movedim(-1, 0) for part in summed)

    def at(self, k: int, x: Tensor) -> Derivatives:
        """The derivatives at time k/(2 FINE)."""
        slope = self.slope[k]
        rate = x @ self.slope_rate[k].mT + self.shift_rate[k]
        return Derivatives(x @ slope.mT + self.shift[k], rate, slope.expand(len(x), -1, -1))


def leading_error(subject: FewSteps, one: At, other: At, beta: float, x0: Tensor, fine: int) -> tuple[Tensor, Tensor]:
    """x(1), and the integral of Phi(1, t) a_t/2: e(1) of e' = (grad v) e + a/2 along the blend's flow x' = v.

    By the classical Runge-Kutta scheme on the pair (x, e).

    Args:
        subject: the theory.
        one: the target's derivatives at time k/(2 fine) and states x.
        other: the anchor's.
        beta: the temperature.
        x0: the starts, (n, d).
        fine: steps.
    """
    rho, h = objective.retention(beta), 1 / fine

    def rates(k: int, state: Tensor) -> Tensor:
        x, e = state
        here, there = one(k, x), other(k, x)
        carried = (1 - rho) * here.along(e) + rho * there.along(e) if subject.transport else torch.zeros_like(e)
        pushed = subject.share * subject.acceleration(here, there, rho)
        return torch.stack([objective.blend(here.value, there.value, beta), carried + pushed])

    state = torch.stack([x0, torch.zeros_like(x0)])
    for k in range(0, 2 * fine, 2):
        k1 = rates(k, state)
        k2 = rates(k + 1, state + h / 2 * k1)
        k3 = rates(k + 1, state + h / 2 * k2)
        k4 = rates(k + 2, state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state[0], state[1]


def blended_drift(target: Velocity, anchor: Velocity, beta: float) -> Drift:
    """The blend as a drift that the sampler takes."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
        return objective.blend(target(t, x), anchor(t, x), beta)

    return drift


def end_state(drift: Drift, solver: Solver, steps: int, x0: Tensor) -> Tensor:
    """The sampler's state at 1 for a deterministic flow."""
    return integrate.generate(drift, Equation(drift), solver, steps, x0, Generator())


def extrapolate_error(
    drift: Drift, solver: Solver, counts: tuple[int, ...], x0: Tensor, *, exact_end: Tensor, predicted: Tensor
) -> tuple[float, dict[str, Line]]:
    """The relative distance of lim N (error in N steps) from its prediction, and the errors as lines.

    Args:
        drift: the flow that is sampled.
        solver: Euler's scheme.
        counts: numbers of steps; the last is twice the one before, and both give the limit up to O(h^2).
        x0: the starts.
        exact_end: the exact states at 1.
        predicted: the limit.
    """
    errors = [exact_end - end_state(drift, solver, n, x0) for n in counts]
    limit = 2 * counts[-1] * errors[-1] - counts[-2] * errors[-2]
    sizes = [float(error.square().sum(1).mean().sqrt()) for error in errors]
    constant = float(predicted.square().sum(1).mean().sqrt())
    lines: dict[str, Line] = {"measured": (counts, sizes), "theory": (counts, [constant / n for n in counts])}
    return float((limit - predicted).norm() / predicted.norm()), lines


def without_rate(derivatives: Derivatives) -> Derivatives:
    """The derivatives without d_t v, for a mutant."""
    return replace(derivatives, rate=torch.zeros_like(derivatives.rate))
