"""The retention that fits pairs best, in each part of flow time and overall (theory, T20 and T21).

A drift b mixed with its anchor, b + r (b_pre - b), has the mean squared distance from conditional drifts
``E w |b - b_t|^2 - 2 r E w <b - b_t, b - b_pre> + r^2 E w |b - b_pre|^2``, least at
``r* = E w <b - b_t, b - b_pre>/E w |b - b_pre|^2``. Label noise adds to the first term alone. With pairs of the
training data r* is about -c/(1 - c) where the run lags by c and has no noise; with held-out pairs it is the retention
that the run should end at. What it gains is measured on other pairs than those that chose it.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gftkit.kernel.contracts import Estimate
from gftkit.theory.gap import mean_estimate, ratio_estimate


@dataclass(frozen=True)
class RetentionFit:
    """Inner products of independent batches in each part of flow time, and what follows from them.

    Every standard error is over batches.

    Attributes:
        edges: of the parts, (parts + 1,), increasing: a part holds its left edge, and the last one both.
        along: ``w <b - b_t, b - b_pre>``, summed over a part and divided by the batch's size, (batches, parts).
        moved: w |b - b_pre|^2, likewise.
    """

    edges: Tensor
    along: Tensor
    moved: Tensor

    @property
    def by_time(self) -> list[Estimate]:
        """r* of each part; nan where the drift hasn't left its anchor, or no state fell."""
        return [ratio_estimate(*columns) for columns in zip(self.along.T, self.moved.T, strict=True)]

    @property
    def constant(self) -> Estimate:
        """The best retention of all parts together: the mean of r* with ``weights``."""
        return ratio_estimate(self.along.sum(1), self.moved.sum(1))

    @property
    def weights(self) -> Tensor:
        """E w |b - b_pre|^2 within each part, (parts,): a retention r costs (r - r*)^2 times it."""
        return self.moved.mean(0)

    def loss_change(self, retention: Sequence[float] | float) -> Estimate:
        """The change of E w |b - b_t|^2 by mixing with the anchor: by one retention, or one for each part.

        The value and its error are honest for retentions that these batches didn't choose.
        """
        rho = torch.as_tensor(retention, dtype=torch.float64)
        return mean_estimate((rho**2 * self.moved - 2 * rho * self.along).sum(1))

    def batches(self, chosen: Sequence[int] | slice) -> "RetentionFit":
        """The fit to some of the batches alone, such as for cross-fitting."""
        return RetentionFit(self.edges, self.along[chosen], self.moved[chosen])


def fit_retention(
    drift: Tensor,
    target: Tensor,
    anchor: Tensor,
    t: Tensor,
    *,
    batches: int,
    edges: Sequence[float] | Tensor = (0.0, 1.0),
    weight: Tensor | None = None,
) -> RetentionFit:
    """Fit r* to pairs in each part of flow time.

    Args:
        drift: b(t, x), (n, *event): fixed before the pairs were drawn.
        target: b_t(x|z), (n, *event), or the target drift itself where it is known.
        anchor: b_pre(t, x), (n, *event).
        t: flow times, (n,), within the edges.
        batches: independent batches of equal size, which follow each other in n; at least 2.
        edges: of the parts of flow time, increasing.
        weight: w(t), (n,), or None for 1.

    Raises:
        ValueError: for fewer than 2 batches, an n that isn't a multiple of them, edges that don't increase, or times
            outside them.

    Example:
        >>> t = torch.tensor([0.1, 0.9, 0.2, 0.8])
        >>> target, anchor = torch.zeros(4, 1), torch.ones(4, 1)
        >>> drift = torch.where(t < 0.5, 0.2, 0.5)[:, None]  # a fifth, and a half, of the way is left
        >>> fit = fit_retention(drift, target, anchor, t, batches=2, edges=[0.0, 0.5, 1.0])
        >>> [round(estimate.value, 6) for estimate in fit.by_time]
        [-0.25, -1.0]
        >>> round(fit.constant.value, 6), round(fit.loss_change([-0.25, -1.0]).value, 6)
        (-0.460674, -0.145)
    """
    bounds = torch.as_tensor(edges, dtype=torch.float64)
    times = t.double().cpu()
    if batches < 2 or len(t) % batches:
        raise ValueError(f"wanted at least 2 batches of equal size, got {batches} in {len(t)} states.")
    if len(bounds) < 2 or not bool((bounds.diff() > 0).all()):
        raise ValueError(f"edges: wanted at least 2 flow times that increase, got {bounds.tolist()}.")
    if not bool(((times >= bounds[0]) & (times <= bounds[-1])).all()):
        raise ValueError(f"t: wanted flow times in [{bounds[0]:g}, {bounds[-1]:g}], the edges. Widen them.")
    parts = len(bounds) - 1
    part = (torch.searchsorted(bounds, times, right=True) - 1).clamp(max=parts - 1)
    distance = drift - anchor
    # In float64: the products of a part have both signs and nearly cancel.
    products = [(left * distance).flatten(1).double().sum(1).cpu() for left in (drift - target, distance)]
    if weight is not None:
        products = [weight.double().cpu() * values for values in products]
    chosen = torch.arange(len(t)) // (len(t) // batches) * parts + part
    along, moved = (
        torch.zeros(batches * parts, dtype=torch.float64).index_add(0, chosen, values).view(batches, parts)
        / (len(t) // batches)
        for values in products
    )
    return RetentionFit(bounds, along, moved)


def shrink(estimate: Estimate, bound: float) -> float:
    """A retention to act on: the estimate, nearer to 0 the larger its error, and 0 where it isn't significant.

    The factor 1 - stderr^2/value^2 is the empirical Bayes one of a normal law around 0 (Efron and Morris, 1973).

    Args:
        estimate: of r*.
        bound: standard errors from which it is significant.

    Example:
        >>> shrink(Estimate(-0.25, 0.05), bound=3.0), shrink(Estimate(-0.1, 0.05), bound=3.0)
        (-0.24, 0.0)
    """
    value, stderr = estimate.value, estimate.stderr
    if not (math.isfinite(value) and math.isfinite(stderr)) or abs(value) <= bound * stderr or value == 0:
        return 0.0
    return value * max(1 - (stderr / value) ** 2, 0.0)
