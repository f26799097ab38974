"""Every registered path: it starts and ends where it should, and its drift transports its marginals."""

import math
from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow
from gftkit.verify.claims import exact
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow
from gftkit_verification.testbeds.problems.moments import DIMENSIONS, cpu_generator
from gftkit_verification.testbeds.slips.paths import Flow, Settings, path_settings, swap_ends

STEP = 5e-4
"""Of the differences in t: their error is STEP^6/140 times a seventh derivative."""

STENCIL = {-3: -1 / 60, -2: 3 / 20, -1: -3 / 4, 1: 3 / 4, 2: -3 / 20, 3: 1 / 60}
"""Central differences of order 6: weights of f(t + k h)/h."""


class _Bare:
    """A path without its own ``drift``: gftkit's sum in its place."""

    def __init__(self, path: Path) -> None:
        self._path = path

    def __getattr__(self, name: str) -> Any:
        if name == "drift":
            raise AttributeError(name)
        return getattr(self._path, name)


def _each(paths: tuple[Path, ...]) -> Iterator[Path]:
    """The paths; also without their own drift, where they have one."""
    for path in paths:
        yield path
        if getattr(path, "drift", None) is not None:
            yield _Bare(path)


def _draw_pairs(path: Path, shape: tuple[int, ...], generator: Generator) -> tuple[Tensor, Tensor, Tensor | None]:
    """x0, x1 and noise; no noise where the path has none, as in the loop."""
    x0, x1, noise = torch.randn(3, *shape, generator=generator, dtype=torch.float64)
    return x0, x1, noise if flow.is_noisy(path) else None


def _inside(path: Path, count: int, generator: Generator) -> Tensor:
    """Times between 10 % and 90 % of t_end: a bridge's rates are infinite at the ends."""
    return flow.t_end(path) * (0.1 + 0.8 * torch.rand(count, generator=generator, dtype=torch.float64))


def _relative_error(value: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest value and to 1; infinite for what is not finite."""
    error = float((value - expected).abs().max() / (1 + expected.abs().max()))
    return error if math.isfinite(error) else math.inf


def _end_slips(settings: Settings) -> dict[str, Flow]:
    shipped = Flow(settings.paths)
    return {
        "pair swapped": replace(shipped, sample=swap_ends(flow.sample)),
        "stops early": replace(shipped, sample=lambda path, t, *pair: flow.sample(path, 0.999 * t, *pair)),
        "noise left": replace(shipped, sample=lambda path, t, *pair: flow.sample(path, t, *pair) + t[:, None] / 99),
        "g < 0": replace(shipped, diffusion=lambda path, t: -torch.ones_like(t) - flow.diffusion(path, t)),
    }


@claim_for_each(
    path_settings,
    "path-ends-{name}",
    statement="Path {name} has x_0 = x0 and x_1 = x1, gamma >= 0, g >= 0 and t_end in (0, 1].",
    reference="theory, section 1",
    subject=lambda settings: Flow(settings.paths),
    bound=exact(1e-12),
    mutants=_end_slips,
    conditions=lambda settings: settings.text,
    component="path:{name}",
)
def ends(shipped: Flow, generator: Generator) -> float:
    """The largest error of the ends, and of the signs of gamma and g; infinite for a t_end outside (0, 1]."""
    generator, worst = cpu_generator(generator), []
    for path in shipped.paths:
        x0, x1, noise = _draw_pairs(path, (8, 3), generator)
        for t, end in ((torch.zeros(8, dtype=torch.float64), x0), (torch.ones(8, dtype=torch.float64), x1)):
            worst.append(_relative_error(shipped.sample(path, t, x0, x1, noise), end))
        times = torch.linspace(0, 1, 257, dtype=torch.float64)
        for scale in (path.coefficients(times)[2], shipped.diffusion(path, times * flow.t_end(path))):
            worst.append(_relative_error(scale, scale.clamp(min=0)))
        if not 0 < flow.t_end(path) <= 1:
            worst.append(math.inf)
    return max(worst)


@claim_for_each(
    path_settings,
    "path-drift-{name}",
    statement="The drift of path {name} is the derivative of its sample at fixed pair and noise, plus (g^2/2) times "
    "-epsilon/gamma.",
    reference="theory, section 1",
    subject=lambda settings: Flow(settings.paths),
    bound=exact(),
    mutants=lambda settings: Flow(settings.paths).slips(),
    conditions=lambda settings: (
        f"{settings.text} Derivatives by autograd; a path's own drift and the kernel's sum; t from 10 % to 90 % of "
        f"t_end."
    ),
    component="path:{name}",
)
def drift_as_derivative(shipped: Flow, generator: Generator) -> float:
    """The largest relative error of the drift against the sample's derivative by autograd."""
    generator, worst = cpu_generator(generator), []
    for path in _each(shipped.paths):
        x0, x1, noise = _draw_pairs(path, (64, 3), generator)
        t = _inside(path, 64, generator).requires_grad_()
        x = shipped.sample(path, t, x0, x1, noise)
        columns = [torch.autograd.grad(x[:, i].sum(), t, retain_graph=True)[0] for i in range(3)]
        t, derivative = t.detach(), torch.stack(columns, 1)
        g = shipped.diffusion(path, t)[:, None]
        if (g > 0).any():
            gamma = path.coefficients(t)[2][:, None]
            derivative = derivative - g**2 / 2 * (torch.zeros_like(x0) if noise is None else noise) / gamma
        worst.append(_relative_error(shipped.drift(path, t, x0, x1, noise), derivative))
    return max(worst)


Shares = tuple[Tensor, Tensor, Tensor]
"""The weights of x0, x1 and noise in what is linear in them, (n, 1, 1) each."""


def _shares(function: Callable[..., Tensor], path: Path, t: Tensor) -> Shares:
    """The weights of a function of a path: its values at (x0, x1, noise) = (1, 0, 0), (0, 1, 0) and (0, 0, 1)."""
    units = torch.eye(3, dtype=torch.float64).repeat_interleave(len(t), 1)[..., None]  # (3, 3 n, 1)
    x0, x1, noise = units
    values = function(path, t.repeat(3), x0, x1, noise if flow.is_noisy(path) else None)
    first, second, third = values.reshape(3, len(t), 1, 1)
    return first, second, third


def _moments(law: GaussianFlow, shares: Shares) -> Tensor:
    """Mean and covariance of x_t in one tensor, (n, d, 1 + d)."""
    sigma, alpha, gamma = shares
    mean = sigma * law.mean0[:, None] + alpha * law.mean1[:, None]
    cross = sigma * alpha * (law.cross + law.cross.mT)
    eye = torch.eye(len(law.mean0), dtype=torch.float64)
    return torch.cat([mean, sigma**2 * law.cov0 + alpha**2 * law.cov1 + cross + gamma**2 * eye], 2)


def _moved(law: GaussianFlow, state: Shares, drift: Shares, g: Tensor) -> Tensor:
    """A m + c and A S + S A^T + g^2 I of the marginal drift E[b|x_t] = A x_t + c, in one tensor, (n, d, 1 + d).

    They need no inverse: A S = Cov(b, x_t) and A m + c = E b.
    """
    (sigma, alpha, gamma), (b0, b1, b2) = state, drift
    eye = torch.eye(len(law.mean0), dtype=torch.float64)
    mean = b0 * law.mean0[:, None] + b1 * law.mean1[:, None]
    with_x0 = b0 * law.cov0 + b1 * law.cross.mT  # Cov(b, x0)
    with_x1 = b0 * law.cross + b1 * law.cov1
    spread = sigma * with_x0 + alpha * with_x1 + b2 * gamma * eye
    return torch.cat([mean, spread + spread.mT + g**2 * eye], 2)


@claim_for_each(
    path_settings,
    "path-transport-{name}",
    statement="The marginal drift E[b|x_t] = A x + c of path {name} carries the source to the data by its marginals: "
    "m' = A m + c and S' = A S + S A^T + g^2 I.",
    reference="theory, sections 1 and 4",
    subject=lambda settings: Flow(settings.paths),
    bound=exact(),
    mutants=lambda settings: Flow(settings.paths).slips(),
    conditions=lambda settings: (
        f"{settings.text} Gaussian pairs of dimension {', '.join(map(str, DIMENSIONS))}; independent and optimal "
        f"coupling; derivatives by differences of order 6."
    ),
    component="path:{name}",
)
def transport(shipped: Flow, generator: Generator) -> float:
    """The largest relative error of the moments' rates against differences of the marginals."""
    generator, worst = cpu_generator(generator), []
    weights = torch.tensor(list(STENCIL.values()), dtype=torch.float64) / STEP
    laws = [draw_flow(d, generator, coupling) for d in DIMENSIONS for coupling in COUPLINGS]
    for path in _each(shipped.paths):
        t = _inside(path, 9, generator)
        x0, x1, noise = _draw_pairs(path, (9, 3), generator)
        drift = _shares(shipped.drift, path, t)
        b0, b1, b2 = (share[..., 0] for share in drift)
        linear = b0 * x0 + b1 * x1 + (0 if noise is None else b2 * noise)
        worst.append(_relative_error(shipped.drift(path, t, x0, x1, noise), linear))
        g = shipped.diffusion(path, t)[:, None, None]
        state = _shares(shipped.sample, path, t)
        near = _shares(shipped.sample, path, torch.cat([t + k * STEP for k in STENCIL]))
        ends = _shares(shipped.sample, path, torch.tensor([0.0, 1.0], dtype=torch.float64))
        for law in laws:
            first, last = (
                torch.cat([mean[:, None], cov], 1) for mean, cov in ((law.mean0, law.cov0), (law.mean1, law.cov1))
            )
            worst.append(_relative_error(_moments(law, ends), torch.stack([first, last])))
            # d/dt by differences: independent of autograd and of the path's own rates.
            moved = _moved(law, state, drift, g)
            slope = torch.einsum("k,k...->...", weights, _moments(law, near).reshape(-1, *moved.shape))
            worst.append(_relative_error(moved, slope))
    return max(worst)
