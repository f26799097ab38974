"""The retention that samples want: blends of a drift and its anchor, by the energy distance of their samples to data.

A run that lags behind its target, c of the gap being left, is corrected by the retention -c/(1 - c) (theory, T20); one
that overfits, by one above 0 (T15). Which it is, and how much, shows in samples. The energy distance to the training
data has its minimum at nearly the same constant retention as that to held-out data: to copy the data lowers it by what
hardly depends on the retention. So one number is chosen without held-out data. Late in flow time, where a drift comes
to copy, as much of the anchor is kept as costs at most half of what was gained.
"""

from collections.abc import Callable
from dataclasses import dataclass
from operator import itemgetter
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.estimation.distances import energy_distances
from gftkit.estimation.jackknife import GROUPS, Replicates
from gftkit.kernel.contracts import Estimate, Profile
from gftkit.theory.retention_fit import shrink

RETENTIONS = (-0.4, -0.2, 0.0, 0.15)
"""The retentions at which the energy distance is measured; the chosen one lies between the outermost."""
LATER = ((0.8, 0.0), (0.8, 0.4), (0.8, 0.8), (0.7, 0.8), (0.6, 0.8))
"""What is kept late, from little to much: the retention, and the flow time (first) from which on it is kept."""
KEPT = 0.5
"""The share of the gain in energy distance that is kept; the rest is spent on copying less."""
ERRORS = 2.0
"""Standard errors by which the energy distance must fall: else the retention stays 0."""


@dataclass(frozen=True)
class EarlyAndLate:
    """A profile: one retention before the flow time ``cut``, another one from there on."""

    early: float
    late: float
    cut: float

    def retention(self, t: Tensor) -> Tensor:
        """The retention at t, of t's shape."""
        return torch.where(t < self.cut, self.early, self.late).to(t.dtype)


@dataclass(frozen=True)
class Preference:
    """The retention that the samples of a drift want.

    Attributes:
        distances: the energy distance at each retention of ``RETENTIONS``.
        minimum: where a parabola through them is least, between the outermost of ``RETENTIONS``.
        early: the retention at flow times before ``cut``: the minimum shrunk towards 0 by its error, or 0.
        late: the retention from ``cut`` on.
        cut: a flow time. Both are as far along ``LATER`` as keeps the share ``KEPT`` of the gain.
        gain: the fall of the energy distance from retention 0 to ``early`` at all flow times; None where that is 0.
    """

    distances: tuple[Estimate, ...]
    minimum: Estimate
    early: float = 0.0
    late: float = 0.0
    cut: float = LATER[0][0]
    gain: Estimate | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain values, as they are logged."""
        values = {
            "retentions": list(RETENTIONS),
            "distance": [each.value for each in self.distances],
            "distance_stderr": [each.stderr for each in self.distances],
            "minimum": self.minimum.value,
            "minimum_stderr": self.minimum.stderr,
            "early": self.early,
            "late": self.late,
            "cut": self.cut,
        }
        return values if self.gain is None else {**values, "gain": self.gain.value, "gain_stderr": self.gain.stderr}


def preferred_retention(samples_at: Callable[[Profile], Tensor], data: Tensor, generator: Generator) -> Preference:
    """The retention at which samples of a blend lie nearest to data, if it is significantly better than 0.

    Args:
        samples_at: samples of the blend at a profile, (n, d), made from the same source samples and noise each time.
        data: training or held-out data, (m, d), m >= 4.
        generator: of the groups of the jackknife; on the CPU.

    Reference: theory, T20, T21 and the end of section 7.
    """
    groups = max(2, min(GROUPS, len(data) // 2))

    def measure(*samples: Tensor) -> Replicates:
        return energy_distances(samples, data, generator, groups=groups, leave_nearest=True)

    def constant(retention: float) -> Tensor:
        return samples_at(EarlyAndLate(retention, retention, 1.0))

    curve = [constant(retention) for retention in RETENTIONS]
    measured = measure(*curve)
    distances = tuple(measured.estimate(itemgetter(k)) for k in range(len(RETENTIONS)))
    minimum = measured.estimate(_minimum)
    early = shrink(minimum, ERRORS)
    if early == 0:
        return Preference(distances, minimum)
    plain = curve[RETENTIONS.index(0.0)]
    gain = measure(plain, constant(early)).estimate(lambda values: values[0] - values[1])
    if not _is_significant(gain):
        return Preference(distances, minimum, gain=gain)
    if early > 0:
        return Preference(distances, minimum, early, early, gain=gain)

    def gain_at(cut: float, late: float) -> float:
        before, after = measure(plain, samples_at(EarlyAndLate(early, late, cut))).values.tolist()
        return float(before - after)

    cut, late = _furthest(early, gain.value, gain_at)
    return Preference(distances, minimum, early, late, cut, gain)


def _furthest(early: float, gain: float, gain_at: Callable[[float, float], float]) -> tuple[float, float]:
    """How far along ``LATER`` the gain stays above its share: the cut and the late retention, on straight lines."""
    here, above, least = (LATER[0][0], early), gain, KEPT * gain
    for there in LATER:
        below = gain_at(*there)
        if below < least:
            share = (above - least) / (above - below)
            cut, late = (one + share * (other - one) for one, other in zip(here, there, strict=True))
            return cut, late
        here, above = there, below
    return here


def beyond(minimum: float) -> str:
    """A minimum at an end of ``RETENTIONS``, in words, for nothing is known beyond it; "" for one between them.

    Example:
        >>> beyond(-0.4), beyond(-0.1)
        ('-0.4 or below', '')
    """
    if minimum <= RETENTIONS[0]:
        return f"{RETENTIONS[0]:g} or below"
    return f"{RETENTIONS[-1]:g} or above" if minimum >= RETENTIONS[-1] else ""


def _is_significant(estimate: Estimate) -> bool:
    """Above 0 by ``ERRORS`` standard errors."""
    return estimate.value > ERRORS * estimate.stderr


def _minimum(values: Tensor) -> Tensor:
    """Where the least-squares parabola through the distances at ``RETENTIONS`` is least, within its ends."""
    # By orthogonal polynomials 1, p = r - mean and q = r^2 - k r + ..., without LAPACK, whose last digits depend on
    # where numbers lie in memory: a resumed run must find the same retention.
    points = torch.tensor(RETENTIONS, dtype=torch.float64)
    p = points - points.mean()
    k = (points.square() * p).sum() / p.square().sum()
    q = points.square() - k * points
    q = q - q.mean()
    slope, bend = (values * p).sum() / p.square().sum(), (values * q).sum() / q.square().sum()
    if bend <= 0:  # no minimum between the ends
        return points[values.argmin()]
    return ((k - slope / bend) / 2).clamp(points[0], points[-1])
