"""Stability: how steadily and how soon a metric falls on raw weights.

Curves are given as steps, rising, and as many values; lower values are better.
"""

import math
from collections.abc import Mapping, Sequence

import numpy as np

WINDOW = 5
"""Evaluations in a window of ``instant_variance``."""

BURN_IN = 0.2
"""Share of the steps, from the start, that ``instant_variance`` leaves out."""


def stability_of(
    steps: Sequence[int], values: Sequence[float], threshold: float | None, seconds: Mapping[int, float]
) -> dict[str, float | None]:
    """Every statistic of this module for one curve, by name; None where it isn't known.

    Args:
        steps: of the evaluations.
        values: as many, on raw weights.
        threshold: for ``steps_to_threshold`` and ``seconds_to_threshold``; None leaves these out.
        seconds: of training up to each step, as ``Run.seconds`` gives them.
    """
    statistics = {
        "spearman": spearman(steps, values),
        "instant_variance": instant_variance(steps, values),
        "instant_variance_whole": instant_variance(steps, values, left_out=0),
        "largest_setback": largest_setback(values),
    }
    if threshold is not None:
        reached = first_reaching(steps, values, threshold)
        statistics["steps_to_threshold"] = reached
        statistics["seconds_to_threshold"] = math.nan if math.isnan(reached) else seconds.get(int(reached), math.nan)
    return {name: None if math.isnan(value) else value for name, value in statistics.items()}


def spearman(steps: Sequence[float], values: Sequence[float]) -> float:
    """Spearman's rank correlation of step and value, in [-1, 1]: -1 is a steady fall. nan below 3 points.

    Example:
        >>> spearman([1, 2, 3, 4], [9.0, 7.0, 4.0, 1.0])
        -1.0
    """
    from scipy.stats import spearmanr  # slow to load

    if len(steps) < 3 or len(set(values)) == 1:
        return float("nan")
    return float(round(spearmanr(steps, values).statistic, 12))  # so that a steady fall is -1 and not nearly -1


def instant_variance(steps: Sequence[float], values: Sequence[float], left_out: float = BURN_IN) -> float:
    """The mean variance over sliding windows of 5 evaluations, after the first fifth of the steps.

    In each window the least-squares line is removed, and the squares of what is left are divided by 5 - 2. nan where
    fewer than 5 evaluations are left.

    Args:
        steps: rising.
        values: as many.
        left_out: share of the steps that is left out at the start; 0 for the whole curve.

    Example:
        >>> instant_variance(range(10), [3.0 - step for step in range(10)]) < 1e-20
        True
    """
    last = max(steps, default=0)
    late = [(s, v) for s, v in zip(steps, values, strict=True) if left_out == 0 or s > left_out * last]
    if len(late) < WINDOW:
        return float("nan")
    at, measured = np.array(late, dtype=float).T
    variances = []
    for first in range(len(late) - WINDOW + 1):
        s, v = at[first : first + WINDOW], measured[first : first + WINDOW]
        variances.append(((v - np.polyval(np.polyfit(s, v, 1), s)) ** 2).sum() / (WINDOW - 2))
    return float(np.mean(variances))


def largest_setback(values: Sequence[float]) -> float:
    """The largest rise of a curve above the lowest value before it: max over i <= j of v_j - v_i, at least 0.

    0 for a curve that never rises; in the metric's unit; nan without values.

    Example:
        >>> largest_setback([9.0, 4.0, 6.0, 3.0, 3.5])
        2.0
    """
    if not len(values):
        return float("nan")
    measured = np.asarray(values, dtype=float)
    return float((measured - np.minimum.accumulate(measured)).max())


def first_reaching(steps: Sequence[float], values: Sequence[float], threshold: float) -> float:
    """The step of the first evaluation at or below a threshold, nan where there is none.

    The curve may rise again afterwards. It is known at evaluations only: the true step lies up to one interval earlier.

    Example:
        >>> first_reaching([50, 100, 150, 200], [9.0, 7.0, 4.0, 5.0], threshold=5.0)
        150.0
    """
    return next((float(s) for s, v in zip(steps, values, strict=True) if v <= threshold), float("nan"))
