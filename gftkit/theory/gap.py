"""Gap statistics T, G and R: checks of the theory where the target drift can't be computed (theory, section 5).

All three are means over pairs of the weighted inner products below, with one conditional drift b_t(x|z), one anchor
and one drift b at the same states. Their errors are over independent batches: the pairs of one batch are dependent
under minibatch-optimal transport, and a naive error over pairs is then too small.
"""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from typing import NamedTuple

import torch
from torch import Tensor

from gftkit.kernel.contracts import Estimate
from gftkit.theory.objective import Temperature, blend, retention, squared_norm


class Statistics(NamedTuple):
    """T, G and R of one batch.

    Attributes:
        t: mean ``w <b - y_beta, b - b_pre>``, unbiased for ``<b - b_beta, b - b_pre>_w``; 0 in expectation at
            b = b_beta.
        g: mean w (|b_pre - b_t(x|z)|^2 - |b - b_t(x|z)|^2), unbiased for |b_pre - b_tgt|_w^2 - |b - b_tgt|_w^2.
        r: mean w |b - b_pre|^2.
        by_distance: mean w |b - b_pre|^2/(1 - rho)^2: |Delta|_w^2 if b = b_beta.
        by_loss: that of g with 1/(1 - rho^2): |Delta|_w^2 in expectation if b = b_beta. nan where some retention is -1
            or below.
        due: that of (g + r)/2 with (1 - rho): r in expectation if b = b_beta.
    """

    t: float
    g: float
    r: float
    by_distance: float
    by_loss: float
    due: float


def statistics(
    drift: Tensor, target: Tensor, anchor: Tensor, temperature: Temperature, weight: Tensor | None = None
) -> Statistics:
    """T, G and R of one batch of pairs.

    At one temperature they are tied: T = (1 - rho)^2 (1 + rho)/2 (R/(1 - rho)^2 - G/(1 - rho^2)), so T is 0 where the
    two estimates of |Delta|^2 agree.

    Args:
        drift: b(t, x), (batch, *event): raw weights, fixed before the pairs were drawn.
        target: b_t(x|z), (batch, *event), or the target drift itself where it is known.
        anchor: b_pre(t, x), (batch, *event).
        temperature: beta.
        weight: w(t), (batch,), or None for 1.

    Example:
        >>> b, target, anchor = torch.tensor([[1.0]]), torch.tensor([[0.0]]), torch.tensor([[2.0]])
        >>> at = statistics(b, target, anchor, temperature=1.0)  # b is the optimum, half-way
        >>> at.t, at.g, at.r, at.by_distance, at.by_loss
        (0.0, 3.0, 1.0, 4.0, 4.0)
    """
    return Statistics(*statistics_tensor(drift, target, anchor, temperature, weight).tolist())


def statistics_tensor(
    drift: Tensor, target: Tensor, anchor: Tensor, temperature: Temperature, weight: Tensor | None = None
) -> Tensor:
    """The values of ``statistics``, (6,) of float64, on the device: nothing waits for it."""
    goal = blend(target, anchor, temperature)
    moved = drift - anchor

    def mean(values: Tensor) -> Tensor:
        # In float64: in T and G terms of both signs nearly cancel.
        return (values if weight is None else weight * values).double().mean()

    gained = squared_norm(anchor - target) - squared_norm(drift - target)
    distance = squared_norm(moved)
    t, g, r = mean(((drift - goal) * moved).flatten(1).sum(1)), mean(gained), mean(distance)
    rho = retention(temperature)
    if not isinstance(rho, Tensor):
        by_loss = g / (1 - rho**2) if rho > -1 else torch.full_like(g, math.nan)
        return torch.stack([t, g, r, r / (1 - rho) ** 2, by_loss, (1 - rho) * (g + r) / 2])
    by_loss = torch.where((rho > -1).all(), mean(gained / (1 - rho**2)), math.nan)
    due = mean((1 - rho) * (gained + distance) / 2)
    return torch.stack([t, g, r, mean(distance / (1 - rho) ** 2), by_loss, due])


@dataclass(frozen=True)
class Summary:
    """T, G and R over independent batches, and what follows from them. Made by ``summary``.

    Attributes:
        t: T.
        g: G.
        r: R.
        p: P = (G + R)/2, an estimate of ``<b_pre - b_tgt, b_pre - b>_w``: the way made towards the target drift, times
            |Delta|. (1 - rho) |Delta|^2 at the optimum, and unlike R and T not raised by noise in b.
        by_distance: R/(1 - rho)^2: |Delta|^2, if b is the optimum.
        by_loss: G/(1 - rho^2): |Delta|^2, if b is the optimum; the two are not independent.
        ratio: by_distance/by_loss. 1 at the optimum: necessary, not sufficient. nan where G is not above 0.
        reached: R/((1 - rho) P) = 1 + T/((1 - rho) P): how far b has come from the
            pretrained drift to its temperature's optimum. On the segment between them it is the share s of the way,
            below 1 where b lags behind (T13); noise (T14) and overfitting raise it. 1 exactly where T is 0. nan where
            P is not above 0: at the start, or where the drift moves away from its target.

    Where the temperature depends on flow time, 1 - rho is inside the means.
    """

    t: Estimate
    g: Estimate
    r: Estimate
    p: Estimate
    by_distance: Estimate
    by_loss: Estimate
    ratio: Estimate
    reached: Estimate


def summary(batches: Sequence[Statistics]) -> Summary:
    """The statistics of independent batches as estimates; every standard error is over batches.

    Args:
        batches: at least two, each with pairs of its own.

    Raises:
        ValueError: for fewer than two batches.

    Example:
        >>> found = summary([Statistics(-0.1, 3.1, 1.0, 4.0, 4.13, 1.025), Statistics(0.1, 2.9, 1.0, 4.0, 3.87, 0.975)])
        >>> found.t.value, round(found.t.stderr, 6), found.by_distance.value, found.by_loss.value
        (0.0, 0.1, 4.0, 4.0)
        >>> round(found.reached.value, 6)
        1.0
    """
    if len(batches) < 2:
        raise ValueError(f"wanted at least 2 batches, for a standard error, got {len(batches)}.")
    t, g, r, by_distance, by_loss, due = torch.tensor(batches, dtype=torch.float64).T
    return Summary(
        t=mean_estimate(t),
        g=mean_estimate(g),
        r=mean_estimate(r),
        p=mean_estimate((g + r) / 2),
        by_distance=mean_estimate(by_distance),
        by_loss=mean_estimate(by_loss),
        ratio=ratio_estimate(by_distance, by_loss),
        reached=ratio_estimate(r, due),
    )


def mean_estimate(values: Tensor) -> Estimate:
    """The mean over independent batches, (batches,), and its standard error std/sqrt(batches)."""
    return Estimate(float(values.mean()), float(values.std()) / math.sqrt(len(values)))


def root_estimate(square: Estimate) -> Estimate:
    """The square root of an estimate, its error to first order; 0 and nan where the estimate is not above 0."""
    if not square.value > 0:
        return Estimate(0.0, math.nan)
    value = math.sqrt(square.value)
    return Estimate(value, square.stderr / (2 * value))


def ratio_estimate(numerator: Tensor, denominator: Tensor) -> Estimate:
    """The ratio of two means over the same batches, its error to first order; nan where the lower isn't above 0."""
    below = float(denominator.mean())
    if not below > 0:
        return Estimate(math.nan, math.nan)
    value = float(numerator.mean()) / below
    return Estimate(value, mean_estimate((numerator - value * denominator) / below).stderr)
