"""Every registered schedule keeps its contract; broken ones don't pass."""

import itertools
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

import gftkit

REGISTRY = gftkit.load()

ROUND_OFF = 1e-12
"""Float64 round-off of a few operations, relative to the size of what is computed."""


def check_schedule(schedule, first, second):
    """Finite, >= 0, >= its floor, 0 from ``zero_from`` on; without feedback it never rises."""
    early, late = sorted((first, second))
    floor = getattr(schedule, "floor", 0)
    betas = [float(schedule.temperature(s)) for s in (0.0, early, late, 1.0)]
    assert all(math.isfinite(beta) for beta in betas), "a temperature is finite"
    assert min(betas) >= 0, "a temperature is >= 0"
    assert min(betas) >= floor >= 0, "a temperature is never below the floor"
    if hasattr(schedule, "needs"):
        assert max(betas) <= betas[0], "a schedule with feedback never exceeds its start"
    else:
        rises = [later - sooner for sooner, later in itertools.pairwise(betas)]
        assert max(rises) <= ROUND_OFF * (1 + betas[0]), "a schedule never rises"
    if (zero_from := getattr(schedule, "zero_from", None)) is not None:
        reached = [beta for s, beta in zip((0.0, early, late, 1.0), betas, strict=True) if s >= zero_from]
        assert not any(reached), "a temperature is exactly 0 from zero_from on"
        assert schedule.temperature(zero_from) == 0, "a temperature is exactly 0 from zero_from on"
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
        (Broken(temperature=lambda s: 1 - 2 * s), "is >= 0"),
        (Broken(temperature=lambda s: 1 / (1 - s) if s < 1 else math.inf), "finite"),
        (Broken(temperature=lambda s: math.nan), "finite"),
        (Broken(temperature=lambda s: 1 - s, floor=0.5), "below the floor"),
        (Broken(temperature=lambda s: math.exp(-9 * s), zero_from=0.5), "exactly 0"),
        (Broken(temperature=lambda s: float(s <= 0.5), zero_from=0.5), "exactly 0"),
        (Broken(temperature=lambda s: 1 + s, needs=("energy",)), "exceeds its start"),
    ],
)
def test_a_broken_schedule_is_rejected(schedule, complaint):
    with pytest.raises(AssertionError, match=complaint):
        check_schedule(schedule, 0.25, 0.75)
