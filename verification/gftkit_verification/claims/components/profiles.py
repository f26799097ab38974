"""Every registered profile: a finite retention below 1 at each flow time, whatever the other times of a batch."""

import math
from collections.abc import Callable, Iterator
from functools import partial

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Profile
from gftkit.kernel.registry import Registry
from gftkit.theory.temperature import TIMES, has_feedback
from gftkit.verify import FromRegistry, Measurement, claim_for_each, exact
from gftkit_verification.testbeds.components import components, each_registered
from gftkit_verification.testbeds.problems.retentions import retentions_of

Retention = Callable[[Tensor], Tensor]
"""Flow times -> rho."""

DRAWN = 200
"""Random flow times, beside 0, 1 and the middles of 512 equal parts."""
PROGRESSES = 21
"""Equally spaced, from 0 to 1."""


def _slips(profile: Profile) -> dict[str, Retention]:
    rho = profile.retention
    return {
        "all of the pretrained drift at the end": lambda t: torch.where(t == 1, 1.0, rho(t)).to(t.dtype),
        "no bound at the end": lambda t: rho(t) - 1 / (1 - t),
        "not a number at the start": lambda t: rho(t) * t / t,
        "one number for all": lambda t: rho(t).mean(),
        "a column": lambda t: rho(t)[:, None],
        "always float64": lambda t: rho(t).double(),
        "the batch's latest time": lambda t: rho(t) - t.max() / 10,
    }


@claim_for_each(
    each_registered("profile"),
    "profile-retention-{name}",
    statement="Profile {name} gives each flow time in [0, 1] a finite retention below 1 of its own.",
    reference="gftkit.kernel.contracts.Profile",
    subject=lambda profile: profile.retention,
    bound=exact(),
    mutants=_slips,
    conditions=(
        f"Required options filled with values of their types; 512 flow times, {DRAWN} random ones, 0 and 1; float32 "
        f"and float64."
    ),
    component="profile:{name}",
    axes=("flow time", "retention"),
    scales=("linear", "linear"),
)
def profile_errors(retention: Retention, generator: Generator) -> Measurement:
    """The number of errors: of shape or type, values out of range, and values that depend on the other times."""
    errors, line = 0, {}
    for dtype in (torch.float32, torch.float64):
        random = torch.rand(DRAWN, generator=generator, dtype=torch.float64, device=generator.device)
        ends = torch.tensor([0.0, 1.0], dtype=torch.float64, device=generator.device)
        t = torch.cat([TIMES.to(generator.device), ends, random]).to(dtype)
        values = retention(t)
        if values.shape != t.shape or values.dtype != dtype or values.device != t.device:
            errors += 1
            continue
        errors += int((~(torch.isfinite(values) & (values < 1))).sum())
        half = t[: len(t) // 2]
        # Not to the last bit: vector instructions may round the ends of a batch in another way.
        errors += not torch.allclose(retention(half), values[: len(half)], atol=1e-5)
        errors += not torch.allclose(retention(t.flip(0)), values.flip(0), atol=1e-5)
        shown = torch.isfinite(values)
        line = {"measured": (t[shown].sort().values.tolist(), values[shown][t[shown].argsort()].tolist())}
    return Measurement(float(errors), line)


Retentions = Callable[[float, Tensor], Tensor]
"""Progress and flow times -> rho."""
CooledTo = Callable[[Profile], Retentions]
"""A schedule's retentions, by the profile at its end."""


def _cooling(registry: Registry) -> Iterator[tuple[str, CooledTo]]:
    """Every registered schedule that takes a profile for its end."""
    for name, schedule in components(registry, "schedule"):
        option = registry.component("schedule", name).options.get("end")
        if option is not None and option.kind == "profile" and not has_feedback(schedule):
            yield name, partial(_cooled_to, registry, name)


def _cooled_to(registry: Registry, name: str, end: Profile) -> Retentions:
    schedule = registry.create("schedule", name, end=end)
    return lambda progress, t: retentions_of(schedule, progress)(t)


def _profiles(registry: Registry) -> list[Profile]:
    """Every registered profile."""
    return [profile for _, profile in components(registry, "profile")]


def _changed(make: CooledTo) -> dict[str, CooledTo]:
    def change(wrong: Callable[[Retentions, float, Tensor], Tensor]) -> CooledTo:
        return lambda end: lambda s, t: wrong(make(end), s, t)

    return {
        "rises late in flow time": change(lambda rho, s, t: rho(s, t) + 0.1 * math.sin(math.pi * s) * (t > 0.9)),
        "flow time reversed": change(lambda rho, s, t: rho(s, 1 - t)),
        "the mean over flow time": change(lambda rho, s, t: rho(s, t).mean().expand(len(t))),
        "stops half-way": change(lambda rho, s, t: rho(s / 2, t)),
        "progress reversed": change(lambda rho, s, t: rho(1 - s, t)),
        "the end doubled": lambda end: lambda s, t: make(end)(s, t) + s * end.retention(t),
    }


@claim_for_each(
    _cooling,
    "T08-cooling-to-profiles-{name}",
    statement="Schedule {name} with any profile for its end never rises at any flow time, and ends at it.",
    reference="theory, T8 and T19",
    bound=exact(1e-12),
    mutants=_changed,
    conditions=f"Every registered profile; 512 flow times, {PROGRESSES} progresses.",
    component="schedule:{name}",
    seeds=1,
    uses={"profiles": FromRegistry(_profiles)},
)
def rise_or_distance(make: CooledTo, generator: Generator, *, profiles: list[Profile]) -> float:  # noqa: ARG001
    """The largest rise of a retention at a flow time, or distance of the last ones from the profile."""
    worst = 0.0
    for end in profiles:
        rho = make(end)
        values = torch.stack([rho(k / (PROGRESSES - 1), TIMES) for k in range(PROGRESSES)])
        rise = (values - values.cummin(0).values).max()
        worst = max(worst, float(rise), float((values[-1] - end.retention(TIMES)).abs().max()))
    return worst
