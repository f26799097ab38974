"""SGD on linear regressions: the second moment of the error, its rest, an exactly averaged step, and likely slips."""

import itertools
import math

import torch
from torch import Tensor

from gftkit.theory.objective import blend
from gftkit_verification.oracles.gaussian import square_root
from gftkit_verification.testbeds.loops.side_by_side import Regressions
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t, equalise_columns
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.losses import Loss

TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SIGMA = 0.7
"""Standard deviation of a label."""

LOOP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor shares the weights": slips.sharing_anchor,
    "rho for beta": slips.rho_for_beta,
}


def second_moment(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
    """T14: V+ = V - eta (HV + VH) + eta^2 (2 HVH + tr(HV) H) + eta^2 (1 - rho)^2 sigma^2 H."""
    pulled = features @ moment
    noise = (1 - rho) ** 2 * SIGMA**2
    return (
        moment
        - eta * (pulled + pulled.mT)
        + eta**2 * (2 * pulled @ features + pulled.trace() * features)
        + eta**2 * noise * features
    )


def stationary(features: Tensor, eta: float, rho: float) -> Tensor:
    """The rest of ``second_moment``. In H's eigenbasis, with k = sum_i eta lambda_i/(2 (1 - eta lambda_i)) < 1,

    V_i = eta (1 - rho)^2 sigma^2/(2 (1 - k) (1 - eta lambda_i)): set V+ = V and solve for tr(HV).
    """
    values, vectors = torch.linalg.eigh(features)
    damped = 1 / (2 * (1 - eta * values))
    share = eta * (1 - rho) ** 2 * SIGMA**2 * damped / (1 - float((eta * values * damped).sum()))
    return (vectors * share) @ vectors.mT


def averaged_step(loss: Loss, moment: Tensor, problem: Regressions, eta: float, temperature: float) -> Tensor:
    """The second moment of W - W_beta after one step of SGD on the loss, averaged exactly: no sampling.

    A step is quadratic in the features and linear in error and label: so the error's second moment needs features
    exact to fourth order, which three Gauss-Hermite nodes in each direction are, and sigma points for the rest.
    """
    p = len(problem.features)
    nodes, chances = [0.0, math.sqrt(3), -math.sqrt(3)], [2 / 3, 1 / 6, 1 / 6]
    phi = torch.tensor(list(itertools.product(nodes, repeat=p)), dtype=torch.float64) @ square_root(problem.features)
    chance = torch.tensor(list(itertools.product(chances, repeat=p)), dtype=torch.float64).prod(1)
    errors = math.sqrt(p) * torch.linalg.cholesky(moment).mT
    errors = torch.cat([errors, -errors])
    signs = torch.tensor([SIGMA, -SIGMA], dtype=torch.float64)
    count = len(phi), len(errors), len(signs)
    target, pretrained = problem.target[0], problem.pretrained[0]  # one output
    optimum = blend(target, pretrained, temperature)
    states = phi[:, None, None].expand(*count, p).reshape(-1, p)
    weights = (optimum + errors)[None, :, None].expand(*count, p).reshape(-1, p).clone().requires_grad_()
    label = (states @ target).reshape(count) + signs
    drift = (weights * states).sum(1, keepdim=True)
    each = loss(drift, label.reshape(-1, 1), (states @ pretrained)[:, None], temperature)
    (gradient,) = torch.autograd.grad(each.sum(), weights)
    errors = weights.detach() - eta / 2 * gradient - optimum
    chances_of = chance[:, None, None].expand(count).flatten() / (count[1] * count[2])
    return (chances_of[:, None] * errors).mT @ errors


DIVERGED = 1e3
"""Error, in units of what is expected, of a run that diverged: far beyond chance."""


def standardised_error(samples: Tensor) -> float:
    """The standardised error of samples (n, k) of mean 0; infinity where a run diverged, whose mean means nothing."""
    if not bool((samples.abs() < DIVERGED).all()):
        return math.inf
    return cross_fitted_t(equalise_columns(samples), torch.zeros(samples.shape[1]))
