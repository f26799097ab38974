"""Means over seeds, their spread, and paired differences, with Student's intervals and Holm's correction."""

import math
from collections.abc import Sequence
from dataclasses import dataclass, replace
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
        p: two-sided p-value of no difference, by Holm's correction over the couplings and sizes of the method and
            metric; None for one seed.
    """

    method: str
    coupling: str
    size: int
    metric: str
    over: Interval
    relative: Interval | None
    p: float | None = None

    @property
    def significant(self) -> bool:
        """Whether it is significant at 5 %, with that correction."""
        return self.p is not None and self.p <= 1 - LEVEL


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
    return _corrected(differences)


def _corrected(differences: Sequence[Difference]) -> list[Difference]:
    """The same with their p-values, corrected over the couplings and sizes of each method and metric."""
    families: dict[tuple[str, str], list[Difference]] = {}
    for one in differences:
        if one.over.count > 1:
            families.setdefault((one.method, one.metric), []).append(one)
    corrected = {}
    for family in families.values():
        for one, p in zip(family, holm([p_value(one.over) for one in family]), strict=True):
            corrected[id(one)] = p
    return [replace(one, p=corrected.get(id(one))) for one in differences]


def p_value(over: Interval) -> float:
    """The two-sided p-value of a mean of 0, by Student's t; of 2 seeds or more.

    Example:
        >>> round(p_value(interval([1.0, 2.0, 3.0])), 4)
        0.0742
    """
    from scipy.stats import t

    if not over.spread:
        return 1.0 if over.mean == 0 else 0.0
    return float(2 * t.sf(abs(over.mean) / over.spread * math.sqrt(over.count), over.count - 1))


def holm(values: Sequence[float]) -> list[float]:
    """P-values corrected for their number: with those at most 0.05, any is wrong in at most 5 % of such families.

    Reference: Holm (1979), A simple sequentially rejective multiple test procedure, Scand. J. Statistics 6, 65-70.

    Example:
        >>> holm([0.01, 0.04, 0.03])
        [0.03, 0.06, 0.06]
    """
    corrected, highest = [1.0] * len(values), 0.0
    for rank, k in enumerate(sorted(range(len(values)), key=values.__getitem__)):
        highest = max(highest, min(1.0, (len(values) - rank) * values[k]))
        corrected[k] = highest
    return corrected
