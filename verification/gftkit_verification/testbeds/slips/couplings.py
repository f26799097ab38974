"""Couplings that pair by a rule, or whose order is changed afterwards: wrong ones, for claims to reject."""

import math
from collections.abc import Callable
from dataclasses import dataclass

import torch
from scipy.optimize import linear_sum_assignment
from torch import Generator, Tensor

from gftkit.kernel.contracts import Coupling


@dataclass(frozen=True)
class Reordered:
    """A coupling whose order is changed afterwards.

    Args:
        coupling: the coupling.
        change: (order, generator) -> another one.
    """

    coupling: Coupling
    change: Callable[[Tensor, Generator], Tensor]

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:
        """The changed order."""
        return self.change(self.coupling.pair(x0, x1, generator, label), generator)


@dataclass(frozen=True)
class Assigned:
    """A coupling by a rule: (x0, x1) -> order."""

    rule: Callable[[Tensor, Tensor], Tensor]

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The rule's order."""
        return self.rule(x0.flatten(1), x1.flatten(1))


def with_replacement(order: Tensor, generator: Generator) -> Tensor:
    """As many draws from the order as it has."""
    return order[torch.randint(len(order), order.shape, generator=generator)]


def one_twice(order: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    """The order with its first twice and without its last."""
    return torch.cat([order[:1], order[:-1]])


def least_assignment(cost: Tensor) -> Tensor:
    """The permutation of the least sum of a cost, (n, n): row i is paired with column order[i]."""
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def least_distance(x0: Tensor, x1: Tensor) -> Tensor:
    """The permutation of the least sum of |x0 - x1|, not squared."""
    return least_assignment(torch.cdist(x1, x0))


def largest_cost(x0: Tensor, x1: Tensor) -> Tensor:
    """The permutation of the largest sum of |x0 - x1|^2."""
    return least_assignment(x1 @ x0.mT)


def greedy(x0: Tensor, x1: Tensor) -> Tensor:
    """The nearest source sample that is left, datum by datum."""
    cost, order = torch.cdist(x1, x0), []
    for row in cost:
        order.append(int(row.argmin()))
        cost[:, order[-1]] = math.inf
    return torch.tensor(order)


def by_rank(x0: Tensor, x1: Tensor, key: Callable[[Tensor], Tensor]) -> Tensor:
    """The permutation that keeps the order of a number of each sample."""
    order = torch.empty(len(x0), dtype=torch.int64)
    order[key(x1).argsort()] = key(x0).argsort()
    return order


def by_norm(x0: Tensor, x1: Tensor) -> Tensor:
    """Pairs in the order of |x|."""
    return by_rank(x0, x1, lambda x: x.norm(dim=1))


def by_first_coordinate(x0: Tensor, x1: Tensor) -> Tensor:
    """Pairs in the order of the first coordinate."""
    return by_rank(x0, x1, lambda x: x[:, 0])
