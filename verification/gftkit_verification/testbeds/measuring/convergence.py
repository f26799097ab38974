"""Measured orders of convergence: errors of numerical solutions, and the slopes of their logarithms on the step."""

from collections.abc import Callable, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.verify.claims import Measurement
from gftkit_verification.testbeds.problems.equations import DIMENSION, Equation, Mixed, Scaled
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import cpu_generator

ODE_STEPS = (10, 20, 40)
SDE_STEPS = (8, 16, 32)
WEAK_STEPS = (10, 20, 40)
TOLERANCE = 0.15
"""Distance of a fitted slope from the declared order."""
STRONG_TOLERANCE = 0.2
"""The same for strong orders, which are measured on samples."""

Law = tuple[Tensor, Tensor]
"""Mean and covariance."""
Chain = Callable[[Equation, int, Law, Generator], Law]
"""(equation, steps, start, generator) -> means (steps + 1, d) and covariances (steps + 1, d, d) of the states."""

Errors = tuple[float, float]
"""Over the whole interval, and the largest of one step."""


def fit_orders(steps: Sequence[int], errors: Sequence[Errors], declared: float, local: float) -> Measurement:
    """The distance of two slopes from what is declared: of the error at t = 1, and of the largest error of one step.

    The error of one step sees what the end doesn't: an Euler scheme that leaves out its last step still has order 1.

    Args:
        steps: how many, increasing.
        errors: for each of them.
        declared: the order.
        local: the order of one step's error.
    """
    h = 1 / np.array(steps)
    logs = np.log(np.maximum(np.array(errors), 1e-300))
    whole, single = np.polyfit(np.log(h), logs, 1)[0]
    difference = max(whole - declared, single - local, key=abs)
    ends = [error for error, _ in errors]
    line = ends[-1] * (h / h[-1]) ** declared
    return Measurement(
        float(difference),
        {"measured": (h.tolist(), ends), "declared order": (h.tolist(), line.tolist())},
        f"slopes {whole:.3f} at t = 1 and {single:.3f} for one step",
    )


def solution_errors(problem: Mixed, states: Tensor) -> Errors:
    """Root mean squares over samples."""
    times = torch.linspace(0, 1, len(states), dtype=torch.float64)[:, None, None]
    whole = states[-1] - problem.exact(times[0], states[0], times[-1])
    single = states[1:] - problem.exact(times[:-1], states[:-1], times[1:])
    return float(whole.square().mean().sqrt()), float(single.square().mean((1, 2)).sqrt().max())


def fit_weak_order(declared: float, chain: Chain, generator: Generator) -> Measurement:
    """The distance of the weak order from the declared one, without sampling: on the moments of an affine equation.

    Args:
        declared: the order.
        chain: computes the moments of the sampler's states.
        generator: draws the equation and the start.
    """
    generator = cpu_generator(generator)
    problem = Scaled(generator)
    start = torch.randn(DIMENSION, generator=generator, dtype=torch.float64), random_covariance(DIMENSION, generator)
    errors = []
    for n in WEAK_STEPS:
        means, covs = chain(problem.equation, n, start, generator)
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None]
        whole = problem.exact_law(times[:1], start, times[-1:])
        single = problem.exact_law(times[:-1], (means[:-1], covs[:-1]), times[1:])
        ends, steps = law_distance((means[-1:], covs[-1:]), whole), law_distance((means[1:], covs[1:]), single)
        errors.append((float(ends), float(steps.max())))
    return fit_orders(WEAK_STEPS, errors, declared, declared + 1)


def law_distance(law: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The distance of means and covariances, (n,)."""
    return torch.sqrt((law[0] - other[0]).square().sum(1) + (law[1] - other[1]).square().sum((1, 2)))


def no_drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
    """No drift."""
    return torch.zeros_like(x)
