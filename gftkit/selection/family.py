"""The profiles that are compared: built of r*(t) and of the retention that the samples want."""

import itertools
from collections.abc import Mapping
from dataclasses import dataclass

import torch

from gftkit.evaluation.retentions import Preference
from gftkit.kernel.contracts import Profile
from gftkit.kernel.registry import Registry
from gftkit.theory.retention_fit import RetentionFit, shrink

ERRORS = 2.0
"""Standard errors from which a value of r*(t) counts; it is taken for 0 else."""
LEAST, MOST = -1.0, 0.9
"""Between these lies every retention of a profile: r*(t) may be 1 and above, which no blend is trained to."""
LATE_FROM = 0.7
"""The flow time from which on r*(t) is kept by those profiles that keep its late part only."""
JUMP = 1e-4
"""Length of flow time in which a profile of two values goes from one to the other."""


@dataclass(frozen=True)
class Table:
    """Straight lines between retentions, as the profiles ``table`` and ``fitted`` have them.

    Attributes:
        times: flow times, increasing.
        values: the retention at each.
    """

    times: tuple[float, ...]
    values: tuple[float, ...]

    @property
    def is_zero(self) -> bool:
        """True for the run's own drift, unblended."""
        return not any(self.values)

    def component(self, registry: Registry) -> Profile:
        """The profile ``table``: the same numbers as of ``fitted``, which reads them from a file."""
        profile: Profile = registry.create("profile", "table", times=[*self.times], values=[*self.values])
        return profile


ZERO = Table((0.0,), (0.0,))


def constant(value: float) -> Table:
    """One retention at all flow times."""
    return Table((0.0,), (_within(value),))


def early_and_late(early: float, late: float, cut: float) -> Table:
    """One retention before the flow time ``cut``, and another one from there on.

    Example:
        >>> early_and_late(-0.2, -0.2, 0.7), early_and_late(-0.2, 0.5, 0.7).values
        (Table(times=(0.0,), values=(-0.2,)), (-0.2, 0.5))
    """
    return constant(early) if early == late else Table((cut - JUMP, cut), (_within(early), _within(late)))


def family(preference: Preference, fit: RetentionFit) -> dict[str, Table]:
    """The profiles by name: some may be zero, or equal to another one.

    Args:
        preference: of the samples.
        fit: r*(t), on data that the run wasn't trained on.
    """
    middles = [round((low + high) / 2, 6) for low, high in itertools.pairwise(fit.edges.tolist())]
    values = [_within(shrink(estimate, ERRORS)) for estimate in fit.by_time]
    late = [(t, value) for t, value in zip(middles, values, strict=True) if t >= LATE_FROM]

    def with_late(early: float) -> Table:
        times, retentions = zip((LATE_FROM - JUMP, _within(early)), *late, strict=True)
        return Table(times, retentions)

    return {
        "minimum": constant(preference.early),
        "minimum, late rule": early_and_late(preference.early, preference.late, preference.cut),
        "constant r*": constant(shrink(fit.constant, ERRORS)),
        "r*(t)": Table(tuple(middles), tuple(values)),
        "line through r*(t)": _line(middles, values, fit),
        "late r*(t)": with_late(0.0),
        "minimum, late r*(t)": with_late(preference.early),
    }


def distinct(tables: Mapping[str, Table]) -> dict[str, Table]:
    """Those that aren't zero, each once, under its first name."""
    kept: dict[str, Table] = {}
    for name, table in tables.items():
        if not table.is_zero and table not in kept.values():
            kept[name] = table
    return kept


def _line(middles: list[float], values: list[float], fit: RetentionFit) -> Table:
    """The straight line through r*(t) of least squares, by what a deviation costs in each part of flow time."""
    weights = fit.weights.clamp(min=0).sqrt()[:, None]
    t, wanted = (torch.tensor(each, dtype=torch.float64)[:, None] for each in (middles, values))
    inputs = torch.cat([torch.ones_like(t), t], 1)
    shift, slope = torch.linalg.lstsq(weights * inputs, weights * wanted).solution[:, 0].tolist()
    return Table((0.0, 1.0), (_within(shift), _within(shift + slope)))


def _within(value: float) -> float:
    return min(max(value, LEAST), MOST)
