"""Couplings: which source sample goes with which data sample."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

import gftkit
from gftkit_plugins.semidiscrete import Semidiscrete

FEW = 64
"""Below so many pairs an assignment takes less time than to take off its columns' means."""


class Independent:
    """The independent coupling p0 x q: the source batch as it was drawn.

    Example:
        >>> import gftkit, torch
        >>> coupling = gftkit.load().create("coupling", "independent")
        >>> coupling.pair(torch.zeros(3, 2), torch.ones(3, 2), torch.Generator())
        tensor([0, 1, 2])
    """

    independent = True

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The identity: draws from the source are independent of the data already."""
        return torch.arange(len(x0))


class OptimalTransport:
    """Minibatch optimal transport: the permutation with the least sum of |x0 - x1|^2, by exact assignment.

    Since the batch is paired by a permutation every point is kept once, unlike draws from a transport plan, which
    miss about 37 % of each side (theory, T10). The cost is O(n^3) at worst.

    Reference: Tong et al. (2024), Improving and generalizing flow-based generative models with minibatch optimal
    transport, section 3.2.3, arXiv:2302.00482; Pooladian et al. (2023), arXiv:2304.14772.

    Example:
        >>> import gftkit, torch
        >>> coupling = gftkit.load().create("coupling", "optimal-transport")
        >>> x0, x1 = torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]])
        >>> coupling.pair(x0, x1, torch.Generator())
        tensor([1, 0])
    """

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:  # noqa: ARG002
        """The order in which x0 goes with x1 at the least cost."""
        # |x0 - x1|^2 summed over a permutation differs from -2 x1.x0 by a constant.
        cost = -(x1.flatten(1) @ x0.flatten(1).T)
        return _assignment(cost)


class ConditionalOptimalTransport:
    """Minibatch optimal transport that hardly lets x0 depend on the conditions: their distance is part of the cost.

    Optimal transport by x alone gives each condition the source samples near its data, while sampling starts from the
    whole source under every condition: the conditional model is then biased (theory, T10). Here every source sample
    carries a condition too. x0_j, drawn independently, takes that of the j-th data sample, so that (x0, c0) has the law
    p0 x p(c), and the pairs are those of the permutation with the least sum of

        |x0 - x1|^2 / mean + weight |c0 - c1|^2 / mean,

    each divided by its mean over all pairs of the batch, so that ``weight`` has no units; several conditions share it
    equally. As ``weight`` grows pairs have equal conditions and x0 given the condition is exactly the source's law. At
    any finite weight that holds **only approximately**. Where no two samples have nearly equal conditions (many
    dimensions, small batches) it comes down to the coupling ``independent``: exact, without gain. A larger
    ``train.pairing_batch`` helps. Without conditions it is ``optimal-transport``; labels are kept apart by gftkit.

    Args:
        weight: of the conditions' distance. On two-dimensional samples whose mean is twice their condition, a number,
            in batches of 128, 10 left about 1 % of the dependence and half of the saving in cost; 1 left 30 %.

    Reference: Kerrigan et al. (2024), section 4, arXiv:2404.04240; Cheng, Schwing (2025), arXiv:2503.10636.

    Example:
        >>> import gftkit, torch
        >>> coupling = gftkit.load().create("coupling", "conditional-optimal-transport", weight=100.0)
        >>> x0, x1, c = torch.tensor([[0.0], [5.0]]), torch.tensor([[6.0], [1.0]]), torch.tensor([[0.0], [1.0]])
        >>> coupling.pair(x0, x1, torch.Generator(), conditions={"c": c}), coupling.pair(x0, x1, torch.Generator())
        (tensor([0, 1]), tensor([1, 0]))
    """

    conditional = True

    def __init__(self, weight: Annotated[float, Field(gt=0)] = 10.0) -> None:
        self.weight = weight

    def pair(
        self,
        x0: Tensor,
        x1: Tensor,
        generator: Generator,  # noqa: ARG002
        label: Tensor | None = None,  # noqa: ARG002
        conditions: Mapping[str, Tensor] | None = None,
    ) -> Tensor:
        """The order in which x0 goes with x1, given the conditions of x1, (n, *shape) each."""
        cost = _relative(x1, x0)
        for values in (conditions or {}).values():
            cost += self.weight / len(conditions or {}) * _relative(values, values)
        return _assignment(cost)


def _assignment(cost: Tensor) -> Tensor:
    """The permutation with the least sum of cost[i, permutation[i]].

    What all entries of a row or column have in common changes no permutation's rank. Taken off first, as in Kuhn's
    Hungarian method (1955, doi:10.1002/nav.3800020109), it leaves half of the work or less in many dimensions. The
    columns' means go before the rows' minima, since else a few columns that are cheap for every row have most of them.
    """
    from scipy.optimize import linear_sum_assignment

    cost = cost.double()  # in which scipy computes anyway
    if len(cost) >= FEW:
        cost -= cost.mean(0)
    cost -= cost.min(1, keepdim=True).values
    cost -= cost.min(0, keepdim=True).values
    return torch.from_numpy(linear_sum_assignment(cost.numpy())[1])


def _relative(one: Tensor, other: Tensor) -> Tensor:
    """Squared distances of all pairs over their mean, (n, n); 0 where all are equal."""
    one, other = (values.double()[:, None].flatten(1) for values in (one, other))  # (n, d)
    # Centred, because |a|^2 + |b|^2 - 2 a.b cancels badly for points far from the origin.
    centre = other.mean(0)
    one, other = one - centre, other - centre
    squares = one.square().sum(1)[:, None] + other.square().sum(1) - 2 * one @ other.T
    mean = squares.mean()
    return squares / mean if mean > 0 else torch.zeros_like(squares)


@gftkit.hookimpl
def gftkit_couplings() -> dict[str, type]:
    """The built-in couplings."""
    return {
        "conditional-optimal-transport": ConditionalOptimalTransport,
        "independent": Independent,
        "optimal-transport": OptimalTransport,
        "semidiscrete": Semidiscrete,
    }
