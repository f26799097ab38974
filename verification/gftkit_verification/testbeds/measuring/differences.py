"""Relative differences, and slopes on logarithmic axes: what exact and order claims measure."""

import math
from collections.abc import Sequence
from itertools import pairwise

from torch import Tensor


def relative_difference(measured: Tensor, expected: Tensor) -> float:
    """The largest difference, relative to the largest expected entry."""
    return float((measured - expected).abs().max() / expected.abs().max())


def relative_error(measured: float, expected: float) -> float:
    """|measured/expected - 1|."""
    return abs(measured / expected - 1)


def log_slopes(xs: Sequence[float], ys: Sequence[float]) -> list[float]:
    """Slopes of log y on log x between neighbors; infinite where a y is 0 or not a number."""
    if not all(y > 0 for y in ys):
        return [math.inf]
    return [math.log(y2 / y1) / math.log(x2 / x1) for (x1, y1), (x2, y2) in pairwise(zip(xs, ys, strict=True))]
