"""Intervals of 95 % confidence where a normal one would lie: near a bound, or for a skewed statistic.

Resampling with replacement repeats draws. A pair of equal draws biases a U-statistic, and a nearest neighbour that is
the point itself is at distance 0, so statistics of pairs or neighbours aren't resampled in that way here.
``bootstrap_weights`` resample a statistic without repeating anything, and ``gftkit.estimation.jackknife`` leaves
groups out.
"""

import math

import torch
from torch import Generator, Tensor

from gftkit.estimation.jackknife import GROUPS
from gftkit.kernel.contracts import Estimate

CONFIDENCE = 0.95
"""Share of all samples whose interval is to hold what they estimate."""


def bootstrap_weights(count: int, replicates: int, generator: Generator) -> Tensor:
    """(replicates, count): random weights of mean 1 for the draws of a sample, the Bayesian bootstrap's.

    Each row is count times a draw of the flat Dirichlet law: no draw is ever repeated, and a weighted statistic of
    pairs leaves out i = j as the unweighted one does. Valid for means and, with weights w_i w_j, for U-statistics.

    Args:
        count: draws in the sample.
        replicates: how many weightings.
        generator: on the CPU.

    Reference: Rubin (1981), The Bayesian bootstrap, Annals of Statistics 9, 130-134; Huskova and Janssen (1993),
        Consistency of the generalized bootstrap for degenerate U-statistics, Annals of Statistics 21, 1811-1823.

    Example:
        >>> drawn = bootstrap_weights(5, 1000, torch.Generator().manual_seed(0))
        >>> torch.allclose(drawn.sum(1), torch.full((1000,), 5.0, dtype=torch.float64)), bool((drawn > 0).all())
        (True, True)
    """
    # Exponential draws over their sum are a draw of the flat Dirichlet law.
    drawn = torch.empty(replicates, count, dtype=torch.float64).exponential_(generator=generator)
    return drawn * (count / drawn.sum(1, keepdim=True))


def percentiles(replicates: Tensor) -> tuple[float, float]:
    """The central 95 % of a statistic's replicates, (replicates,).

    Example:
        >>> [round(end) for end in percentiles(torch.arange(1001.0))]
        [25, 975]
    """
    low, high = replicates.double().quantile(
        torch.tensor([(1 - CONFIDENCE) / 2, (1 + CONFIDENCE) / 2], dtype=torch.float64)
    )
    return float(low), float(high)


def proportion(share: float, stderr: float, count: int) -> Estimate:
    """A share in [0, 1] with Wilson's interval, which stays inside, and isn't empty where the share is 0 or 1.

    Where the draws depend on each other, ``stderr`` says so: the interval is that of share (1 - share)/stderr^2
    independent draws, at most ``count`` of them.

    Args:
        share: of the draws.
        stderr: its standard error; 0 for a share of 0 or 1 is welcome.
        count: draws.

    Reference: Wilson (1927), Journal of the American Statistical Association 22, 209-212; Dean and Pagano (2015),
        Journal of Survey Statistics and Methodology 3, 484-503, for the effective number.

    Example:
        >>> [round(end, 3) for end in proportion(1.0, 0.0, count=100).interval]
        [0.963, 1.0]
    """
    spread = share * (1 - share)
    n = count if spread <= 0 or stderr <= 0 else min(count, max(1.0, spread / stderr**2))
    z = math.sqrt(2) * float(torch.erfinv(torch.tensor(CONFIDENCE, dtype=torch.float64)))
    middle = (share + z**2 / (2 * n)) / (1 + z**2 / n)
    half = z / (1 + z**2 / n) * math.sqrt(max(0.0, spread) / n + z**2 / (4 * n**2))
    return Estimate(share, stderr, (max(0.0, min(share, middle - half)), min(1.0, max(share, middle + half))))


def log_normal(estimate: Estimate, groups: int = GROUPS) -> Estimate:
    """A positive estimate, such as a ratio, with an interval that is symmetric for its logarithm.

    exp(log value ± t stderr/value), t of Student's law, as the standard error comes from ``groups`` groups. No interval
    where the value isn't above 0.

    Reference: Efron and Tibshirani (1993), An Introduction to the Bootstrap, section 12.6, for the transformation.

    Example:
        >>> low, high = log_normal(Estimate(0.5, 0.1)).interval
        >>> round(low, 3), round(high, 3), round(low * high, 3)
        (0.329, 0.76, 0.25)
    """
    from scipy.special import stdtrit

    if not (estimate.value > 0 and math.isfinite(estimate.stderr)):
        return estimate
    factor = math.exp(float(stdtrit(groups - 1, (1 + CONFIDENCE) / 2)) * estimate.stderr / estimate.value)
    return Estimate(estimate.value, estimate.stderr, (estimate.value / factor, estimate.value * factor))
