"""Discrepancies between two samples that are means over pairs."""

import torch
from torch import Generator, Tensor

from gftkit.estimation import bootstrap_weights, jackknife_estimate, percentiles
from gftkit.kernel import Estimate

REPLICATES = 400
"""Of the bootstrap: the ends of an interval are then known to about a tenth of its length."""


def discrepancy(xx: Tensor, yy: Tensor, xy: Tensor, generator: Generator) -> Estimate:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased: equal pairs i = j are left out.

    Standard error by the jackknife, interval by the Bayesian bootstrap (``gftkit.estimation.bootstrap_weights``).

    Args:
        xx: (n, n), the kernel within the samples.
        yy: (m, m), within the data.
        xy: (n, m), between them.
        generator: on the CPU.

    Raises:
        ValueError: for fewer than 20 samples or data.

    Reference: Gretton et al. (2012), A kernel two-sample test, JMLR 13, 723-773, Lemma 6.
    """
    xx, yy = (within.clone().fill_diagonal_(0) for within in (xx, yy))
    n, m = xy.shape

    def of(kept_x: Tensor, kept_y: Tensor) -> float:
        u, v = (torch.zeros(1, size, dtype=xy.dtype) for size in (n, m))
        u[0, kept_x], v[0, kept_y] = 1, 1
        return float(_weighted(xx, yy, xy, u, v))

    estimate = jackknife_estimate(of, [torch.arange(n), torch.arange(m)], generator)
    drawn = [bootstrap_weights(size, REPLICATES, generator).float() for size in (n, m)]
    # In float32, with half of the memory: an interval's ends need few digits.
    replicates = _weighted(xx.float(), yy.float(), xy.float(), *drawn)
    return Estimate(estimate.value, estimate.stderr, percentiles(replicates))


def _weighted(xx: Tensor, yy: Tensor, xy: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(replicates,): the discrepancy for weights u, (replicates, n), of samples and v, (replicates, m), of data."""
    within = [
        ((w @ k) * w).sum(1) / (w.sum(1).square() - w.square().sum(1)) for w, k in ((u, xx), (v, yy))
    ]  # sum over i != j of w_i w_j k_ij, as the diagonal is 0
    across = ((u @ xy) * v).sum(1) / (u.sum(1) * v.sum(1))
    return within[0] + within[1] - 2 * across
