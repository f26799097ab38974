"""Quantities derived from a path: sample, velocity, conditional score, drift, diffusion.

For x_t = sigma x0 + alpha x1 + gamma eps (theory, section 1): velocity = d/dt at fixed eps, conditional score =
-eps/gamma, and drift = velocity + (g^2/2) conditional score.
"""

import torch
from torch import Tensor

from gftkit.kernel.contracts import Coupling, Path
from gftkit.kernel.errors import ConfigError


def expand(value: Tensor, x: Tensor) -> Tensor:
    """(batch,) -> (batch, 1, ..., 1), to multiply a batch of events."""
    return value.reshape(-1, *[1] * (x.ndim - 1))


def t_end(path: Path) -> float:
    """The largest time that is trained on: 1, or below 1 where the drift is singular there."""
    return float(getattr(path, "t_end", 1.0))


def diffusion(path: Path, t: Tensor) -> Tensor:
    """g(t) >= 0, of t's shape; 0 for a deterministic flow."""
    own = getattr(path, "diffusion", None)
    return torch.zeros_like(t) if own is None else own(t)


def is_stochastic(path: Path) -> bool:
    """True where g > 0 at some time: the flow is an SDE."""
    # Up to t_end only: beyond it coefficients may be infinite.
    return bool((diffusion(path, torch.linspace(0, t_end(path), 65, dtype=torch.float64)) > 0).any())


def rates(path: Path, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """(sigma', alpha', gamma') at t, each of t's shape: the path's own, or by autograd of its coefficients."""
    own = getattr(path, "rates", None)
    if own is not None:
        return own(t)
    with torch.enable_grad():  # sampling runs without gradients
        at = t.detach().requires_grad_()
        sigma, alpha, gamma = (_derivative(values, at) for values in path.coefficients(at))
    return sigma, alpha, gamma


def _derivative(values: Tensor, t: Tensor) -> Tensor:
    """The elementwise derivative; 0 for a constant."""
    if not values.requires_grad:
        return torch.zeros_like(t)
    # Coefficients are elementwise in t, so the gradient of their sum is every element's own derivative.
    (derivative,) = torch.autograd.grad(values.sum(), t, retain_graph=True, materialize_grads=True)
    return derivative


def is_noisy(path: Path) -> bool:
    """True where gamma > 0 at some time: a sample needs noise beside the pair."""
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
    own = getattr(path, "drift", None)
    if own is not None:
        return own(t, x0, x1, noise)
    moving = velocity(path, t, x0, x1, noise)
    if noise is None or getattr(path, "diffusion", None) is None:  # spares a score that 0 would multiply, 0/0 at an end
        return moving
    scale = diffusion(path, t)
    return moving + expand(scale**2 / 2, noise) * conditional_score(path, t, noise)


def score(path: Path, t: Tensor, x: Tensor, velocity: Tensor, coupling: Coupling) -> Tensor:
    """grad log p_t(x) from the marginal velocity, for a source N(0, I) independent of the data: -E[x0|x_t]/sigma.

    E[x0|x_t = x] = (alpha v - alpha' x)/(alpha sigma' - alpha' sigma); for the linear path the score is
    -(x - t v)/(1 - t). Under optimal transport x0 given x_t is another law, and this is false (theory, section 1).

    Args:
        path: an affine path: gamma = 0 and g = 0.
        t: (batch,), in [0, 1), where sigma > 0.
        x: states, (batch, *event).
        velocity: v(t, x), of x's shape.
        coupling: what pairs x0 with x1.

    Raises:
        ConfigError: for a coupling that isn't independent, or a path with noise, whose score isn't known so.

    Reference: Albergo, Boffi, Vanden-Eijnden (2023), Stochastic Interpolants, arXiv:2303.08797, section 2.
    """
    check_affine(path, coupling)
    return affine_score(path, t, x, velocity)


def check_affine(path: Path, coupling: Coupling) -> None:
    """Refuse a flow whose score isn't known from its velocity.

    Raises:
        ConfigError: see ``score``.
    """
    if not getattr(coupling, "independent", False):
        raise ConfigError(
            f"coupling {type(coupling).__name__}: the velocity gives the score only if x0 is independent of x1. Train "
            f"with the independent coupling, or use an ODE solver."
        )
    if is_noisy(path) or is_stochastic(path):
        raise ConfigError(
            "path: the velocity gives the score only on paths without noise, and this one has noise. Sample this flow "
            "as it is."
        )


def affine_score(path: Path, t: Tensor, x: Tensor, velocity: Tensor) -> Tensor:
    """``score``, of a flow that was checked before."""
    sigma, alpha, _ = (expand(value, x) for value in path.coefficients(t))
    sigma_rate, alpha_rate, _ = (expand(value, x) for value in rates(path, t))
    start = (alpha * velocity - alpha_rate * x) / (alpha * sigma_rate - alpha_rate * sigma)
    return -start / sigma


def _combine(weights: tuple[Tensor, Tensor, Tensor], x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
    sigma, alpha, gamma = (expand(weight, x0) for weight in weights)
    pair = sigma * x0 + alpha * x1
    return pair if noise is None else pair + gamma * noise
