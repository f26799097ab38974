"""Means over seeds, their spread, and paired differences, with Student's intervals."""

import math
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean, stdev

from gftkit.study.rows import Row

LEVEL = 0.95
"""Of every interval."""

ABSOLUTE = "spearman"
"""The metric that has no percentages: its 0 isn't the least value."""


@dataclass(frozen=True)
class Interval:
    """A mean over seeds with its interval.

    Attributes:
        count: of seeds.
        mean: over them.
        spread: the standard deviation between seeds, None for one seed.
        low: the interval's lower end, None for one seed.
        high: its upper end.
    """

    count: int
    mean: float
    spread: float | None = None
    low: float | None = None
    high: float | None = None


@dataclass(frozen=True)
class Spread:
    """One metric of one method at one coupling and size, over seeds."""

    method: str
    coupling: str
    size: int
    metric: str
    over: Interval


@dataclass(frozen=True)
class Difference:
    """One metric of one method minus the baseline's, over pairs of one coupling, size and seed.

    Attributes:
        method: compared with the baseline.
        coupling: of both.
        size: of both.
        metric: the measured one.
        over: the differences.
        relative: the differences divided by the baseline's value of their pair; None where one of these isn't above 0,
            and for a rank correlation.
    """

    method: str
    coupling: str
    size: int
    metric: str
    over: Interval
    relative: Interval | None


def interval(values: Sequence[float]) -> Interval:
    """The mean of n independent values with its 95 % interval by Student's t: mean ± t_(n-1) s/sqrt(n).

    It is exact for values of a normal law, and approximate for many values of another. One value gives no interval.

    Reference: Student (1908), The probable error of a mean, Biometrika 6(1).

    Example:
        >>> three = interval([1.0, 2.0, 3.0])
        >>> round(three.low, 3), three.mean, round(three.high, 3)  # 2 -+ 4.303 / sqrt(3)
        (-0.484, 2.0, 4.484)
        >>> interval([1.0]).low is None
        True
    """
    from scipy.stats import t

    count, mean = len(values), fmean(values)
    if count < 2:
        return Interval(count, mean)
    spread = stdev(values)
    half = float(t.ppf((1 + LEVEL) / 2, count - 1)) * spread / math.sqrt(count)
    return Interval(count, mean, spread, mean - half, mean + half)


def spreads(rows: Sequence[Row]) -> list[Spread]:
    """Each metric of each method at each coupling and size over its seeds; values that aren't finite are left out."""
    groups: dict[tuple[str, str, int, str], list[float]] = {}
    for row in rows:
        if row["value"] is not None:
            groups.setdefault((row["method"], row["coupling"], row["size"], row["metric"]), []).append(row["value"])
    return [Spread(*key, interval(values)) for key, values in groups.items()]


def differences(rows: Sequence[Row], baseline: str) -> list[Difference]:
    """Each metric of each other method minus the baseline's, over the seeds that both have at a coupling and size."""
    key = "coupling", "size", "seed", "metric"
    base = {tuple(row[k] for k in key): row["value"] for row in rows if row["method"] == baseline}
    pairs: dict[tuple[str, str, int, str], list[tuple[float, float]]] = {}
    for row in rows:
        other = base.get(tuple(row[k] for k in key))
        if row["method"] == baseline or row["value"] is None or other is None:
            continue
        pairs.setdefault((row["method"], row["coupling"], row["size"], row["metric"]), []).append((row["value"], other))
    differences = []
    for which, values in pairs.items():
        relative = None
        if which[-1] != ABSOLUTE and all(other > 0 for _, other in values):
            relative = interval([(value - other) / other for value, other in values])
        differences.append(Difference(*which, interval([value - other for value, other in values]), relative))
    return differences
