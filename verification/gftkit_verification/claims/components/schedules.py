"""Every registered schedule: it never rises, and keeps within its range."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.registry import Registry
from gftkit.theory.objective import retention
from gftkit.theory.temperature import has_feedback
from gftkit.verify.claims import Measurement, exact
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.testbeds.components import components, each_registered

POINTS = 1000
"""Equal parts of the progress; each limit is approached from both sides too: schedules jump at simple fractions."""

DRAWN = 500
"""Random progresses beside them."""

BESIDE = 1e-12
"""How near a limit is approached: wider than the round-off of step/steps."""

PICTURED = 101
"""Points of the picture."""

CONDITIONS = (
    f"Default options; {POINTS} equal parts of the progress with both sides of each limit, and {DRAWN} random "
    f"progresses."
)

Temperature = Callable[[float], float]
"""Progress in [0, 1] -> beta."""


def _progress(generator: Generator) -> list[float]:
    grid = torch.arange(POINTS + 1, dtype=torch.float64) / POINTS
    random = torch.rand(DRAWN, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    progress = torch.cat([grid, grid - BESIDE, grid + BESIDE, random]).clamp(0, 1)
    return sorted(set(progress.tolist()))


def _line(temperature: Temperature) -> dict[str, tuple[list[float], list[float]]]:
    """The temperature's line; a value that is not finite is left out."""
    values = ((k / (PICTURED - 1), float(temperature(k / (PICTURED - 1)))) for k in range(PICTURED))
    finite = [point for point in values if math.isfinite(point[1])]
    return {"measured": ([s for s, _ in finite], [beta for _, beta in finite])}


def _scale(betas: list[float]) -> float:
    return max(map(abs, betas)) or 1.0


def _rising(schedule: Schedule) -> dict[str, Temperature]:
    """Rising schedules, for every schedule: also for a constant one, and zero."""
    beta = schedule.temperature
    top = beta(0.0) or 1.0
    return {
        "time reversed": lambda s: beta(1 - s) + top * s / 10,
        "a bump": lambda s: beta(s) + 2 * top * math.exp(-(((s - 0.5) / 0.05) ** 2)),
        "restarts": lambda s: beta(4 * s % 1) - top * (4 * s % 1) / 10,
        "reheated at the end": lambda s: 2 * top if s == 1 else beta(s),
    }


@claim_for_each(
    each_registered(
        "schedule", where=lambda schedule: not has_feedback(schedule)
    ),  # with feedback it may rise, to its start
    "schedule-never-rises-{name}",
    statement="The temperature of schedule {name} never rises.",
    reference="theory, T8 and T13",
    subject=lambda schedule: schedule.temperature,
    bound=exact(1e-12),
    mutants=_rising,
    conditions=CONDITIONS,
    component="schedule:{name}",
    axes=("progress", "temperature"),
    scales=("linear", "linear"),
)
def largest_rise(temperature: Temperature, generator: Generator) -> Measurement:
    """The largest rise of the temperature above any earlier one, relative to the largest temperature."""
    betas = [float(temperature(s)) for s in _progress(generator)]
    lowest = itertools.accumulate(betas, min)
    rise = max(beta - before for beta, before in zip(betas, lowest, strict=True))
    return Measurement(rise / _scale(betas), _line(temperature))


@dataclass(frozen=True)
class Ranged:
    """A registered schedule and the least temperature that it declares."""

    name: str
    schedule: Schedule
    floor: float


def _ranged(registry: Registry) -> Iterator[tuple[str, Ranged]]:
    for name, schedule in components(registry, "schedule"):
        yield name, Ranged(name, schedule, float(getattr(schedule, "floor", 0.0)))


def _outside(ranged: Ranged) -> dict[str, Temperature]:
    """Schedules outside their range, for every schedule: also for a constant one, and zero."""
    beta, floor = ranged.schedule.temperature, ranged.floor
    top = beta(0.0) or 1.0
    outside: dict[str, Temperature] = {
        "below its floor at the end": lambda s: beta(s) - (1.1 * top if s > 0.95 else 0.0),
        "infinite at the start": lambda s: beta(s) if s else math.inf,
        "above its start": lambda s: beta(s) + 2 * top * (0.2 < s < 0.3),
        "not a number at the end": lambda s: beta(s) if s < 1 else math.nan,
    }
    if floor:
        outside["below its floor"] = lambda s: beta(s) if s < 0.95 else min(floor / 2, 2 * floor)
    return outside


@claim_for_each(
    _ranged,
    "schedule-range-{name}",
    statement=lambda ranged: (
        f"The temperature of schedule {ranged.name} is finite, never below its floor of {ranged.floor:g}, and never "
        f"above its start."
    ),
    reference="theory, section 0",
    subject=lambda ranged: ranged.schedule.temperature,
    bound=exact(1e-12),
    mutants=_outside,
    conditions=CONDITIONS,
    component="schedule:{name}",
    item_as="ranged",
)
def distance_from_range(temperature: Temperature, generator: Generator, *, ranged: Ranged) -> float:
    """The distance of the temperature from [floor, temperature(0)], relative to the largest one."""
    betas = [float(temperature(s)) for s in _progress(generator)]
    if not all(map(math.isfinite, betas)):
        return math.inf
    outside = max(max(ranged.floor - beta, beta - betas[0]) for beta in betas)
    # The loop refuses a temperature of -1 or below.
    refused = not all(_accepted(beta) for beta in betas)
    return math.inf if refused else max(0.0, outside) / _scale(betas)


def _accepted(beta: float) -> bool:
    try:
        return retention(beta) < 1
    except ValueError:
        return False
