"""Discrepancies between samples that are means over pairs: MMD, and the energy distance of several models at once."""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from gftkit.estimation.intervals import bootstrap_weights, percentiles
from gftkit.estimation.jackknife import GROUPS, Replicates, jackknife_estimate, jackknife_replicates
from gftkit.kernel.contracts import Estimate

REPLICATES = 400
"""Of the bootstrap: the ends of an interval are then known to about a tenth of its length."""


def discrepancy(xx: Tensor, yy: Tensor, xy: Tensor, generator: Generator) -> Estimate:
    """MMD^2 = E k(x, x') + E k(y, y') - 2 E k(x, y), unbiased: equal pairs i = j are left out.

    Standard error by the jackknife, interval by the Bayesian bootstrap (``gftkit.estimation.bootstrap_weights``).

    Args:
        xx: (n, n), the kernel within the samples; -|x - x'| gives the energy distance.
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
        u, v = _indicator(kept_x, n), _indicator(kept_y, m)
        return float(_weighted(xx, yy, xy, u.to(xy.dtype), v.to(xy.dtype)))

    estimate = jackknife_estimate(of, [torch.arange(n), torch.arange(m)], generator)
    drawn = [bootstrap_weights(size, REPLICATES, generator).float() for size in (n, m)]
    # In float32, with half of the memory: an interval's ends need few digits.
    replicates = _weighted(xx.float(), yy.float(), xy.float(), *drawn)
    return Estimate(estimate.value, estimate.stderr, percentiles(replicates))


def energy_distances(
    samples: Sequence[Tensor],
    data: Tensor,
    generator: Generator,
    *,
    groups: int = GROUPS,
    leave_nearest: bool = False,
) -> Replicates:
    """Unbiased energy distances 2 E|x - y| - E|x - x'| - E|y - y'| of k models to the same data, jackknifed together.

    Sample i of every model is made from the same source sample and noise. A group of i is left out of all of them
    with a group of the data, so that ``Replicates.estimate`` gives any smooth function of the k distances, such as a
    difference or the minimum of a parabola, the error of samples and data together, common random numbers counted
    in. Calls with as many samples, the same data and equally seeded generators belong together likewise, for example
    those of a run's evaluations.

    Where the data are those that a model was trained on, its distance falls as it comes to copy them, down to
    -2 E|y - y'|/m. With ``leave_nearest`` the datum that lies nearest to a sample is left out of the sample's
    distances: then copies of the data gain nothing, and the law's own samples are (2/m) E(|x - y| - |x - y_nearest|)
    above 0, nearly.

    Args:
        samples: k tensors, (n, d) each.
        data: (m, d).
        generator: assigns the groups; on the CPU.
        groups: from 2 to the smaller of n and m, with ``leave_nearest`` to half of m.
        leave_nearest: leave out the nearest datum of every sample.

    Raises:
        ValueError: for too few samples or data, and samples of several sizes.

    Reference: Szekely and Rizzo (2013), Energy statistics: a class of statistics based on distances, Eq. 2.5. The
        nearest datum's part is gftkit's own.

    Example:
        >>> x = torch.randn(200, 2, generator=torch.Generator().manual_seed(0))
        >>> shifted, data = x + 1, torch.randn(100, 2, generator=torch.Generator().manual_seed(1))
        >>> distances = energy_distances([x, shifted], data, torch.Generator().manual_seed(2))
        >>> farther = distances.estimate(lambda values: values[1] - values[0])
        >>> farther.value > 5 * farther.stderr > 0
        True
    """
    shapes = [tuple(x.shape) for x in samples]
    if len(set(shapes)) != 1 or data.ndim != 2 or shapes[0][1:] != data.shape[1:]:
        raise ValueError(f"wanted samples of one shape (n, d) and data (m, d), got {shapes} and {tuple(data.shape)}.")
    if leave_nearest and len(data) < 2 * groups:
        raise ValueError(f"wanted at least {2 * groups} data for {groups} groups, got {len(data)}. Take fewer groups.")
    data = data.double()
    within_data = _within(data)
    matrices = [(_within(x.double()), torch.cdist(x.double(), data)) for x in samples]

    def distances(kept: Tensor, kept_data: Tensor) -> list[float]:
        u, v = _indicator(kept, len(samples[0])), _indicator(kept_data, len(data))
        values = []
        for within, across in matrices:
            value = -float(_weighted(within, within_data, across, u, v))
            if leave_nearest:
                nearest = across[:, kept_data].amin(1)[kept].mean()
                mean = (u @ across @ v.T) / (len(kept) * len(kept_data))
                value += 2 * float(mean - nearest) / (len(kept_data) - 1)
            values.append(value)
        return values

    return jackknife_replicates(distances, [torch.arange(len(samples[0])), torch.arange(len(data))], generator, groups)


def _within(x: Tensor) -> Tensor:
    """(n, d) -> (n, n): distances, exactly 0 from a point to itself."""
    return torch.cdist(x, x).fill_diagonal_(0)


def _indicator(kept: Tensor, count: int) -> Tensor:
    """(1, count) of float64: 1 at the indices that are kept."""
    weights = torch.zeros(1, count, dtype=torch.float64)
    weights[0, kept] = 1
    return weights


def _weighted(xx: Tensor, yy: Tensor, xy: Tensor, u: Tensor, v: Tensor) -> Tensor:
    """(replicates,): the discrepancy for weights u, (replicates, n), of samples and v, (replicates, m), of data."""
    within = [
        ((w @ k) * w).sum(1) / (w.sum(1).square() - w.square().sum(1)) for w, k in ((u, xx), (v, yy))
    ]  # sum over i != j of w_i w_j k_ij, as the diagonal is 0
    across = ((u @ xy) * v).sum(1) / (u.sum(1) * v.sum(1))
    return within[0] + within[1] - 2 * across
