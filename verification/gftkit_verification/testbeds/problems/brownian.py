"""Brownian paths of known increments for the solvers of libraries, and wrong ones."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.contracts import BrownianPath


@dataclass(frozen=True)
class TabulatedPath:
    """A Brownian path on [0, 1] of which increments and integrals over equal intervals are given.

    Attributes:
        increments: W, (intervals, n, d).
        integrals: U, the integrals of the path less its value at the interval's start.
    """

    increments: Tensor
    integrals: Tensor

    def __call__(self, s: float, t: float, return_U: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The increment from s to t, both between intervals, and the integral with it."""
        count = len(self.increments)
        first, last = round(s * count), round(t * count)
        if max(abs(s * count - first), abs(t * count - last)) > 1e-6:
            raise ValueError(f"this path is known at multiples of 1/{count} only, got {s:g} to {t:g}.")
        parts = self.increments[first:last]
        increment = parts.sum(0)
        if not return_U:
            return increment
        before = parts.cumsum(0) - parts
        return increment, (self.integrals[first:last] + before / count).sum(0)


@dataclass(frozen=True)
class ScaledPath:
    """A path whose increments and integrals over [s, t] are multiplied by ``scale(s, t)``.

    Attributes:
        path: the path.
        scale: the factor.
    """

    path: BrownianPath
    scale: Callable[[float, float], float]

    def __call__(self, s: float, t: float, return_U: bool = False) -> Any:  # noqa: FBT001, FBT002
        """The path's, multiplied."""
        values = self.path(s, t, return_U=return_U)
        factor = self.scale(s, t)
        return tuple(factor * part for part in values) if return_U else factor * values


def unit_paths(steps: int, d: int) -> TabulatedPath:
    """Unit vectors for the two independent normal numbers that make W and U of each step: (steps, 2 steps d, d).

    A state that is affine in the path has a covariance: the sum of its rows' outer products.
    """
    h = 1 / steps
    increments = torch.zeros(steps, 2, steps, d, d, dtype=torch.float64)
    integrals = torch.zeros_like(increments)
    for k in range(steps):
        # W = sqrt(h) a and U = h/2 W + sqrt(h^3/12) b.
        increments[k, 0, k] = h**0.5 * torch.eye(d, dtype=torch.float64)
        integrals[k, 0, k] = h / 2 * increments[k, 0, k]
        integrals[k, 1, k] = (h**3 / 12) ** 0.5 * torch.eye(d, dtype=torch.float64)
    return TabulatedPath(increments.reshape(steps, -1, d), integrals.reshape(steps, -1, d))
