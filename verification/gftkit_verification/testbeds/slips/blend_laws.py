"""Laws of blends between Gaussian flows: drifts, start and end laws, and the law of an Euler-Maruyama chain."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Tensor

from gftkit.theory import objective, predictions
from gftkit_verification.oracles.affine import Blend
from gftkit_verification.oracles.gaussian import AffineDrift, Diffusion
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, FineTune, rho_of
from gftkit_verification.testbeds.slips.objective import BLENDS, keep_share

G = 0.8
"""Noise scale of the SDEs."""

CONDITIONS = (
    "Gaussian problems of dimension 2 and 3; independent and optimal coupling; linear path; "
    f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}."
)
Law = tuple[Tensor, Tensor]
"""Mean and covariance."""

Bound = Callable[[float, Sequence[float], Sequence[float], Sequence[float]], float]
"""(rho, times, gaps, one-sided Lipschitz constants) -> bound on W2."""


@dataclass(frozen=True)
class BlendLaws:
    """The blend that the objective trains toward, and the predictions about its laws."""

    blend: Blend = objective.blend
    path_kl: Callable[[float, float], float] = predictions.path_kl
    wasserstein_bound: Bound = predictions.wasserstein_bound


SHIPPED = BlendLaws()

POWERS: Mapping[str, Callable[[float, float], float]] = {
    "rho for rho squared": lambda rho, whole: rho * whole,
    "rho^4": lambda rho, whole: rho**4 * whole,
}
"""Wrong powers of rho in the prediction of a path KL."""

TOO_CLOSE: Mapping[str, Blend] = {
    "1/(1 + beta) for rho": BLENDS["1/(1 + beta) for rho"],
    "root of rho": keep_share(lambda beta: math.sqrt(rho_of(beta))),
}
"""Blends that stay closer to the anchor than they should."""


def drifts_of(problem: FineTune, g: Diffusion) -> tuple[AffineDrift, AffineDrift]:
    """The drifts of target and pretrained flow at noise scale g."""
    return partial(problem.target.affine, diffusion=g), partial(problem.pretrained.affine, diffusion=g)


def start_of(problem: FineTune) -> Law:
    """p0."""
    return problem.target.mean0, problem.target.cov0


def end_of(problem: FineTune) -> Law:
    """q."""
    return problem.target.mean1, problem.target.cov1


def chain_law(drift: AffineDrift, diffusion: float, start: Law, steps: int = 5) -> Law:
    """The law of all states (x_0, ..., x_N) of the Euler-Maruyama chain of an affine drift, from a normal law."""
    mean, cov = start
    d, h = len(mean), 1 / steps
    noise = diffusion**2 * h * torch.eye(d * (steps + 1), dtype=torch.float64)
    noise[:d, :d] = cov
    slope, shift = drift(torch.arange(steps, dtype=torch.float64) * h)
    rows, means = [torch.eye(d, d * (steps + 1), dtype=torch.float64)], [mean]  # x_k as a map of start and noises
    for k in range(steps):
        step = torch.eye(d, dtype=torch.float64) + h * slope[k]
        row = step @ rows[-1]
        row[:, (k + 1) * d : (k + 2) * d] += torch.eye(d)
        rows.append(row)
        means.append(step @ means[-1] + h * shift[k])
    whole = torch.cat(rows)
    return torch.cat(means), whole @ noise @ whole.mT
