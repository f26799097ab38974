"""How steadily a curve falls: statistics of a metric's history on raw weights."""

from collections.abc import Sequence

import numpy as np
from scipy.stats import spearmanr

WINDOW = 5
"""Evaluations in a window of ``instant_variance``."""


def spearman(steps: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's rank correlation of step and value, in [-1, 1]: -1 is a steady fall. nan below 3 points.

    Example:
        >>> spearman([1, 2, 3, 4], [9.0, 7.0, 4.0, 1.0])
        -1.0
    """
    if len(steps) < 3 or len(set(values)) == 1:
        return float("nan")
    return float(round(spearmanr(steps, values).statistic, 12))


def instant_variance(steps: Sequence[float], values: Sequence[float]) -> float:
    """The mean variance over sliding windows of 5 evaluations, after the first fifth of the steps.

    In each window the least-squares line is removed, and the squares of what is left are divided by 5 - 2. nan where
    fewer than 5 evaluations are left.

    Example:
        >>> instant_variance(range(10), [3.0 - step for step in range(10)]) < 1e-20
        True
    """
    last = max(steps, default=0)
    late = [(step, value) for step, value in zip(steps, values, strict=True) if step > last / 5]
    if len(late) < WINDOW:
        return float("nan")
    at, measured = np.array(late, dtype=float).T
    variances = []
    for first in range(len(late) - WINDOW + 1):
        s, v = at[first : first + WINDOW], measured[first : first + WINDOW]
        variances.append(((v - np.polyval(np.polyfit(s, v, 1), s)) ** 2).sum() / (WINDOW - 2))
    return float(np.mean(variances))
