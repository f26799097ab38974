"""A plugin's components are checked by being installed: sound ones pass their claims, broken ones fail some."""

from typing import Annotated

import pytest
import torch
from pydantic import Field

import gftkit
from gftkit.kernel.contracts import Profile
from gftkit.verify.claims import check
from gftkit.verify.collect import collect
from gftkit_plugins.profiles import FlowTime


class Quadratic:
    """A schedule that falls, and one that rises, by the sign of its curve."""

    def __init__(self, sign):
        self.sign = sign

    def temperature(self, progress):
        return 2 + self.sign * progress**2


class Smooth:
    """The path (1 - t^2) x0 + t^2 x1; swapped, x0 and x1 change places."""

    def __init__(self, swapped):
        self.swapped = swapped

    def coefficients(self, t):
        sigma, alpha = (t**2, 1 - t**2) if self.swapped else (1 - t**2, t**2)
        return sigma, alpha, torch.zeros_like(t)


class Reversed:
    """A coupling that turns the source batch round; broken, it takes one sample for all."""

    def __init__(self, broken):
        self.broken = broken

    def pair(self, x0, x1, generator, label=None):
        return torch.zeros(len(x0), dtype=torch.int64) if self.broken else torch.arange(len(x0)).flip(0)


class Ralston:
    """Ralston's method; broken, its second slope is taken at the start of the step. Both declare order 2."""

    ode_order, strong_order, weak_order = 2.0, None, None

    def __init__(self, broken):
        self.broken = broken

    def step(self, drift, diffusion, t, h, x, dw):
        first = drift(t, x)
        second = first if self.broken else drift(t + 2 * h / 3, x + 2 * h / 3 * first)
        return x + h * (first / 4 + 3 * second / 4)


class Hat:
    """A profile that is highest half-way; broken, it depends on the other times of the batch."""

    def __init__(self, height, broken):
        self.height, self.broken = height, broken

    def retention(self, t):
        return self.height * torch.sin(torch.pi * t) - 0.2 * (t.mean() if self.broken else 1)


SOUND = {
    "profile": lambda: Hat(0.4, False),
    "schedule": lambda: Quadratic(-1),
    "path": lambda: Smooth(False),
    "coupling": lambda: Reversed(False),
    "solver": lambda: Ralston(False),
}
BROKEN = {
    "profile": lambda: Hat(0.4, True),
    "schedule": lambda: Quadratic(1),
    "path": lambda: Smooth(True),
    "coupling": lambda: Reversed(True),
    "solver": lambda: Ralston(True),
}


def registry_with(kind, make):
    """Everything installed and one component of a plugin, called "mine"."""

    def factory():
        """A component."""
        return make()

    hook = gftkit.hookimpl(lambda self: {"mine": factory})
    return gftkit.load(plugins={"mine": type("Mine", (), {f"gftkit_{kind}s": hook})()})


def results(kind, make):
    """What the claims about one component of a plugin measure."""
    registry = registry_with(kind, make)
    claims = [claim for claim in collect(registry) if claim.component == f"{kind}:mine" and claim.profile == "quick"]
    assert claims
    return [check(claim) for claim in claims]


@pytest.mark.parametrize("kind", SOUND)
def test_a_sound_component_passes(kind):
    assert [result.claim.name for result in results(kind, SOUND[kind]) if not result.passed] == []


@pytest.mark.parametrize("kind", BROKEN)
def test_a_broken_component_fails(kind):
    assert not all(result.holds for result in results(kind, BROKEN[kind]))


def with_options(low: Annotated[float, Field(lt=0)], times: list[FlowTime], other: Profile):
    """A profile with required options, which the claims fill in: a number, a list, and another profile."""
    assert low < 0
    assert all(0 <= t <= 1 for t in times)
    return Mean(low, other)


class Mean:
    """The mean of a number and a profile."""

    def __init__(self, low, other):
        self.low, self.other = low, other

    def retention(self, t):
        return (self.low + self.other.retention(t)) / 2


def nothing():
    """The profile that is zero."""
    return Mean(0.0, Zero())


class Zero:
    """Zero."""

    def retention(self, t):
        return 0 * t


def test_required_options_of_profiles_are_filled_by_their_types():
    registry = gftkit.load(plugins={"mine": type("Mine", (), {"gftkit_profiles": gftkit.hookimpl(both)})()})
    found = {}
    for claim in collect(registry):
        if claim.component in ("profile:filled", "profile:nothing"):
            found.setdefault(claim.component, []).append(check(claim))
    assert all(len(each) == len(found["profile:filled"]) > 4 for each in found.values())
    assert [result.claim.name for each in found.values() for result in each if not result.passed] == []
    assert not any(claim.component == "profile:fitted" for claim in collect(registry))  # its file can't be made up


def both(self):
    return {"filled": with_options, "nothing": nothing}


class Negative:
    """A schedule that falls to -1 and below."""

    def temperature(self, progress):
        return 0.5 - 2 * progress


class Lost:
    """A path whose coefficients can't be had."""

    def coefficients(self, t):
        raise RuntimeError("lost")


def refuse():
    """Nothing is made."""
    raise RuntimeError("refused")


@pytest.mark.parametrize(
    ("kind", "make", "why"),
    [
        ("schedule", Negative, "temperature: wanted a finite number above -1, got -1.0"),
        ("profile", lambda: Hat(2.0, False), "profile 'mine': wanted finite retentions below 1, got 1."),
        ("path", Lost, "RuntimeError: lost"),
        ("coupling", refuse, "RuntimeError: refused"),
        ("solver", refuse, "RuntimeError: refused"),
    ],
)
def test_what_cannot_be_claimed_about_fails_alone_and_by_name(registry, kind, make, why):
    claims = {claim.name: claim for claim in collect(registry_with(kind, make))}
    assert set(claims) == {f"{kind}-works-mine"} | {claim.name for claim in collect(registry)}
    found = check(claims[f"{kind}-works-mine"])
    assert not found.passed
    assert why in found.error
    assert found.claim.component == f"{kind}:mine"
    shared = {"schedule": "T13-never-ahead", "path": "T10-terminal-law-gaussian"}
    if kind in shared:  # measured over all components of the kind
        assert check(claims[shared[kind]]).passed
