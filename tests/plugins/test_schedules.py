"""Every registered schedule keeps its contract; broken ones don't pass."""

import itertools
import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

import gftkit
from gftkit.theory import mean_retention
from gftkit_plugins.profiles import Linear, Step

REGISTRY = gftkit.load()

ROUND_OFF = 1e-12
"""Float64 round-off of a few operations, relative to the size of what is computed."""


def check_schedule(schedule, first, second):
    """Above -1, >= its floor, at its end from ``zero_from`` and ``ramp`` on; without feedback it never rises."""
    early, late = sorted((first, second))
    floor = getattr(schedule, "floor", 0)
    betas = [float(schedule.temperature(s)) for s in (0.0, early, late, 1.0)]
    assert all(math.isfinite(beta) for beta in betas), "a temperature is finite"
    assert min(betas) > -1, "a temperature is above -1"
    assert min(betas) >= floor - ROUND_OFF, "a temperature is never below the floor"
    if hasattr(schedule, "needs"):
        assert max(betas) <= betas[0], "a schedule with feedback never exceeds its start"
    else:
        rises = [later - sooner for sooner, later in itertools.pairwise(betas)]
        assert max(rises) <= ROUND_OFF * (1 + betas[0]), "a schedule never rises"
    if (zero_from := getattr(schedule, "zero_from", None)) is not None:
        end = getattr(schedule, "end", None)
        arrived = max(zero_from, schedule.ramp if end else 0.0)
        last = schedule.temperature(1.0)
        reached = [beta for s, beta in zip((0.0, early, late, 1.0), betas, strict=True) if s >= arrived]
        assert all(beta == last for beta in reached), "a temperature is exactly its last one from zero_from on"
        assert schedule.temperature(arrived) == last, "a temperature is exactly its last one from zero_from on"
        assert last == 0 or end, "a temperature is exactly 0 from zero_from on, without another end"
    assert gftkit.retention(betas[0]) < 1


FREE = [name for name in REGISTRY.names("schedule") if name != "recorded"]
"""The schedules that want no finished run; ``recorded`` is in test_recorded.py."""


@pytest.mark.parametrize("name", FREE)
@given(data=st.data(), first=st.floats(0, 1), second=st.floats(0, 1))
def test_every_schedule_keeps_its_contract(components, name, data, first, second):
    check_schedule(data.draw(components("schedule", name)), first, second)


FORMULAS = {
    "exponential": lambda s: 4 * math.exp(-6 * s) if s < 0.9 else 0,
    "linear": lambda s: 4 * max(0, 1 - s / 0.9),
    "cosine": lambda s: 2 * (1 + math.cos(math.pi * s / 0.9)) if s < 0.9 else 0,
    "inverse": lambda s: 4 / (1 + 40 * s) if s < 0.9 else 0,
    "stepwise": lambda s: (4, 1, 0.25, 0, 0)[int(4 * s)],
    "constant": lambda s: 0.3,
    "zero": lambda s: 0,
}


@pytest.mark.parametrize("name", FORMULAS)
@given(s=st.floats(0, 1))
def test_schedules_have_their_formulas(name, s):
    assert REGISTRY.create("schedule", name).temperature(s) == pytest.approx(FORMULAS[name](s), abs=ROUND_OFF)


class Broken:
    """An object with these members."""

    def __init__(self, **members):
        vars(self).update(members)


@pytest.mark.parametrize(
    ("schedule", "complaint"),
    [
        (Broken(temperature=lambda s: s), "never rises"),
        (Broken(temperature=lambda s: 1 - 2 * s), "above -1"),
        (Broken(temperature=lambda s: 0.5 - s), "below the floor"),
        (Broken(temperature=lambda s: 1 / (1 - s) if s < 1 else math.inf), "finite"),
        (Broken(temperature=lambda s: math.nan), "finite"),
        (Broken(temperature=lambda s: 1 - s, floor=0.5), "below the floor"),
        (Broken(temperature=lambda s: math.exp(-9 * s), zero_from=0.5), "exactly its last"),
        (Broken(temperature=lambda s: float(s <= 0.5), zero_from=0.5), "exactly its last"),
        (Broken(temperature=lambda s: 2 - float(s > 0.4), zero_from=0.5), "exactly 0"),
        (Broken(temperature=lambda s: 1 + s, needs=("energy",)), "exceeds its start"),
    ],
)
def test_a_broken_schedule_is_rejected(schedule, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_schedule(schedule, 0.25, 0.75)


TIMES = torch.linspace(0, 1, 41, dtype=torch.float64)


def retentions(schedule, progress):
    """The retention at ``TIMES``."""
    profile = schedule.profile(progress)
    rho = gftkit.retention(schedule.temperature(progress))
    return torch.full_like(TIMES, rho) if profile is None else profile.retention(TIMES)


COOLING = ("cosine", "exponential", "inverse", "linear", "stepwise")
ENDS = [-0.4, 0.3, Step(-0.3, 0.5, 0.8), Linear(0.6, -0.6)]


@pytest.mark.parametrize("name", COOLING)
def test_a_zero_end_is_no_end_bit_for_bit(name):
    plain, ended = (REGISTRY.create("schedule", name, **options) for options in ({}, {"end": Step(0.0, 0.0)}))
    for s in (0.0, 0.3, 0.6, 0.9, 1.0):
        assert plain.profile(s) is None
        assert torch.equal(retentions(ended, s), torch.full_like(TIMES, gftkit.retention(plain.temperature(s))))


@pytest.mark.parametrize("name", COOLING)
@pytest.mark.parametrize("end", ENDS, ids=("below", "above", "step", "linear"))
def test_a_schedule_arrives_at_its_end_and_only_falls_on_its_way(name, end):
    schedule = REGISTRY.create("schedule", name, end=end, ramp=0.5)
    along = [retentions(schedule, k / 200) for k in range(201)]
    wanted = torch.full_like(TIMES, end) if isinstance(end, float) else end.retention(TIMES)
    assert torch.allclose(along[-1], wanted, atol=1e-12)
    assert all(bool((later <= before + 1e-12).all()) for before, later in itertools.pairwise(along))
    # The mean is what the temperature says.
    for s in (0.2, 1.0):
        profile = schedule.profile(s)
        if profile is not None:
            assert gftkit.retention(schedule.temperature(s)) == pytest.approx(mean_retention(profile), abs=1e-9)


def test_a_number_serves_as_the_end_and_one_out_of_range_is_refused():
    assert REGISTRY.create("schedule", "exponential", end=-0.25).temperature(1.0) == pytest.approx(-0.2)
    assert REGISTRY.create("schedule", "exponential", end=-0.25).floor == pytest.approx(-0.2)
    for wrong in (1.0, math.inf, "half"):
        with pytest.raises(gftkit.GftkitError):
            REGISTRY.create("schedule", "exponential", end=wrong)
