"""What the kernel derives from a path: sample, velocity, conditional score, drift, diffusion.

For x_t = sigma x0 + alpha x1 + gamma eps (theory, section 1): velocity = d/dt at fixed eps, conditional score =
-eps/gamma, and drift = velocity + (g^2/2) conditional score.
"""

import torch
from torch import Tensor

from gftkit.contracts import Path


def expand(value: Tensor, x: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ..., 1), to multiply a batch of events."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def t_end(path: Path) -> float:
    """The largest time that is trained on: 1, or below 1 where the drift is singular there."""
    return float(getattr(path, "t_end", 1.0))


def diffusion(path: Path, t: Tensor) -> Tensor:
    """g(t) >= 0, of t's shape; 0 for a deterministic flow."""
    given = getattr(path, "diffusion", None)
    return torch.zeros_like(t) if given is None else given(t)


def is_stochastic(path: Path) -> bool:
    """Whether g > 0 somewhere: whether the flow is an SDE."""
    return bool((diffusion(path, torch.linspace(0, t_end(path), 65, dtype=torch.float64)) > 0).any())


def rates(path: Path, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sigma', alpha', gamma') at t, each of t's shape: the path's own, or by autograd of its coefficients."""
    given = getattr(path, "rates", None)
    if given is not None:
        return given(t)
    with torch.enable_grad():
        at = t.detach().requires_grad_()
        sigma, alpha, gamma = (_derivative(values, at) for values in path.coefficients(at))
    return sigma, alpha, gamma


def _derivative(values: Tensor, t: Tensor) -> Tensor:
    """The elementwise derivative; 0 for a constant."""
    if not values.requires_grad:
        return torch.zeros_like(t)
    (found,) = torch.autograd.grad(values.sum(), t, retain_graph=True, materialize_grads=True)
    return found


def is_noisy(path: Path) -> bool:
    """Whether gamma > 0 somewhere: whether a sample needs noise beside the pair."""
    t = torch.linspace(0, t_end(path), 65, dtype=torch.float64)
    return bool((path.coefficients(t)[2] != 0).any())


def sample(path: Path, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
    """x_t = sigma x0 + alpha x1 + gamma eps. t: (batch,); x0, x1, noise: (batch, *event).

    The noise may be None where the path isn't noisy, here and below.
    """
    return _combine(path.coefficients(t), x0, x1, noise)


def velocity(path: Path, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
    """d x_t/dt at fixed pair and noise: sigma' x0 + alpha' x1 + gamma' eps."""
    return _combine(rates(path, t), x0, x1, noise)


def conditional_score(path: Path, t: Tensor, noise: Tensor) -> Tensor:
    """grad log p_t(x_t | x0, x1) = -eps/gamma, where gamma(t) > 0."""
    return -noise / expand(path.coefficients(t)[2], noise)


def drift(path: Path, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
    """The conditional drift b_t(x_t | x0, x1): velocity + (g^2/2) conditional score.

    The path's own ``drift`` is used where it has one: where that sum cancels badly.
    """
    given = getattr(path, "drift", None)
    if given is not None:
        return given(t, x0, x1, noise)
    moving = velocity(path, t, x0, x1, noise)
    if noise is None or getattr(path, "diffusion", None) is None:
        return moving
    scale = diffusion(path, t)
    return moving + expand(scale**2 / 2, noise) * conditional_score(path, t, noise)


def _combine(weights: tuple[Tensor, Tensor, Tensor], x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
    sigma, alpha, gamma = (expand(weight, x0) for weight in weights)
    pair = sigma * x0 + alpha * x1
    return pair if noise is None else pair + gamma * noise
