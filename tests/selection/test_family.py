"""The family of profiles: built of r*(t) and of the samples' retention, each once, within bounds."""

import pytest
import torch

from gftkit.evaluation.retentions import EarlyAndLate, Preference
from gftkit.kernel.contracts import Estimate
from gftkit.selection.family import (
    JUMP,
    LATE_FROM,
    LEAST,
    MOST,
    ZERO,
    Table,
    constant,
    distinct,
    early_and_late,
    family,
)
from gftkit.theory.retention_fit import RetentionFit

EDGES = (0.0, 0.4, 0.7, 0.9, 1.0)


def fitted(values, noise=0.01, batches=40):
    """r*(t) of these values in the parts of ``EDGES``, with errors."""
    generator = torch.Generator().manual_seed(0)
    moved = torch.ones(batches, len(values), dtype=torch.float64)
    shaken = noise * torch.randn(moved.shape, generator=generator, dtype=torch.float64)
    return RetentionFit(torch.tensor(EDGES, dtype=torch.float64), torch.tensor(values) * moved + shaken, moved)


def preferring(early, late):
    return Preference((), Estimate(early, 0.01), early, late, 0.6)


def test_the_family_has_the_values_that_were_measured():
    tables = family(preferring(-0.2, 0.4), fitted([-0.3, -0.1, 0.2, 0.6]))
    assert tables["minimum"].values == (-0.2,)
    assert tables["minimum, late rule"] == Table((0.6 - JUMP, 0.6), (-0.2, 0.4))
    assert tables["constant r*"].values == pytest.approx([0.1], abs=0.01)
    assert tables["r*(t)"].times == (0.2, 0.55, 0.8, 0.95)
    assert tables["r*(t)"].values == pytest.approx([-0.3, -0.1, 0.2, 0.6], abs=0.02)
    assert tables["late r*(t)"].times == tables["minimum, late r*(t)"].times == (LATE_FROM - JUMP, 0.8, 0.95)
    assert tables["late r*(t)"].values == pytest.approx([0.0, 0.2, 0.6], abs=0.02)
    assert tables["minimum, late r*(t)"].values == pytest.approx([-0.2, 0.2, 0.6], abs=0.02)


def test_the_line_is_that_of_least_squares():
    exact = [0.1 - 0.5 * t for t in (0.2, 0.55, 0.8, 0.95)]
    line = family(preferring(0.0, 0.0), fitted(exact, noise=1e-9))["line through r*(t)"]
    assert line.times == (0.0, 1.0)
    assert line.values == pytest.approx([0.1, -0.4], abs=1e-6)


def test_what_is_not_significant_counts_as_zero():
    tables = family(preferring(0.0, 0.0), fitted([0.01, -0.01, 0.01, 0.01], noise=0.2))
    assert all(table.is_zero for table in tables.values())
    assert distinct(tables) == {}
    assert distinct(family(preferring(0.0, 0.0), fitted([0.3, 0.3, 0.3, 0.3]))) != {}


def test_each_profile_is_compared_once_and_zero_never():
    tables = {"zero": ZERO, "one": constant(-0.2), "same": early_and_late(-0.2, -0.2, 0.7), "two": constant(0.1)}
    assert list(distinct(tables)) == ["one", "two"]


def test_retentions_stay_within_bounds():
    tables = family(preferring(-0.2, 0.8), fitted([-3.0, 0.5, 1.0, 1.4]))
    values = [value for table in tables.values() for value in table.values]
    assert min(values) == LEAST
    assert max(values) == MOST < 1


def test_two_values_are_those_that_the_samples_were_measured_at(registry):
    table = early_and_late(-0.2, 0.5, 0.7).component(registry)
    t = torch.linspace(0, 1, 1001, dtype=torch.float64)
    t = t[(t <= 0.7 - JUMP) | (t >= 0.7)]
    assert torch.allclose(table.retention(t), EarlyAndLate(-0.2, 0.5, 0.7).retention(t), atol=1e-12)
    assert not torch.allclose(table.retention(t), EarlyAndLate(-0.2, 0.5, 0.71).retention(t), atol=0.1)
