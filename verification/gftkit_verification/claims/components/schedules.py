"""Every registered schedule: it never rises, and keeps within its range."""

import itertools
import math
from collections.abc import Callable, Iterator

import torch
from torch import Generator

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.registry import Registry
from gftkit.theory.objective import retention
from gftkit.theory.temperature import has_feedback
from gftkit.verify.claims import Claim, Measurement, exact
from gftkit_verification.testbeds.components import components

POINTS = 1000
"""Equal parts of the progress; each limit is approached from both sides too: schedules jump at simple fractions."""

DRAWN = 500
"""Random progresses beside them."""

BESIDE = 1e-12
"""How near a limit is approached: wider than the round-off of step/steps."""

SHOWN = 101
"""Points of the picture."""

Temperature = Callable[[float], float]
"""Progress in [0, 1] -> beta."""


def _progress(generator: Generator) -> list[float]:
    grid = torch.arange(POINTS + 1, dtype=torch.float64) / POINTS
    drawn = torch.rand(DRAWN, generator=generator, dtype=torch.float64, device=generator.device).cpu()
    found = torch.cat([grid, grid - BESIDE, grid + BESIDE, drawn]).clamp(0, 1)
    return sorted(set(found.tolist()))


def _shown(temperature: Temperature) -> dict[str, tuple[list[float], list[float]]]:
    """The temperature's line; a value that is not finite is left out."""
    values = ((k / (SHOWN - 1), float(temperature(k / (SHOWN - 1)))) for k in range(SHOWN))
    finite = [point for point in values if math.isfinite(point[1])]
    return {"measured": ([s for s, _ in finite], [beta for _, beta in finite])}


def _scale(betas: list[float]) -> float:
    return max(map(abs, betas)) or 1.0


def _rise(temperature: Temperature, generator: Generator) -> Measurement:
    """The largest rise of the temperature above any earlier one, relative to the largest temperature."""
    betas = [float(temperature(s)) for s in _progress(generator)]
    lowest = itertools.accumulate(betas, min)
    rise = max(beta - before for beta, before in zip(betas, lowest, strict=True))
    return Measurement(rise / _scale(betas), _shown(temperature))


def _outside(floor: float) -> Callable[[Temperature, Generator], float]:
    def measure(temperature: Temperature, generator: Generator) -> float:
        """How far the temperature is outside [floor, temperature(0)], relative to the largest one."""
        betas = [float(temperature(s)) for s in _progress(generator)]
        if not all(map(math.isfinite, betas)):
            return math.inf
        low, high = max(0.0, floor), betas[0]
        outside = max(max(low - beta, beta - high) for beta in betas)
        # The loop refuses a temperature below 0 where it takes the share of the anchor.
        refused = not all(_accepted(beta) for beta in betas)
        return math.inf if refused else max(0.0, outside) / _scale(betas)

    return measure


def _accepted(beta: float) -> bool:
    try:
        return 0 <= retention(beta) < 1
    except ValueError:
        return False


def _slips(given: Temperature, floor: float) -> tuple[dict[str, Temperature], dict[str, Temperature]]:
    """Rising schedules, and schedules outside their range, for every schedule: also for a constant one, and zero."""
    top = given(0.0) or 1.0
    rising: dict[str, Temperature] = {
        "time reversed": lambda s: given(1 - s) + top * s / 10,
        "a bump": lambda s: given(s) + 2 * top * math.exp(-(((s - 0.5) / 0.05) ** 2)),
        "restarts": lambda s: given(4 * s % 1) - top * (4 * s % 1) / 10,
        "reheated at the end": lambda s: 2 * top if s == 1 else given(s),
    }
    outside: dict[str, Temperature] = {
        "below 0 at the end": lambda s: given(s) - (1.1 * top if s > 0.95 else 0.0),
        "infinite at the start": lambda s: given(s) if s else math.inf,
        "above its start": lambda s: given(s) + 2 * top * (0.2 < s < 0.3),
        "not a number at the end": lambda s: given(s) if s < 1 else math.nan,
    }
    if floor:
        outside["below its floor"] = lambda s: given(s) if s < 0.95 else floor / 2
    return rising, outside


def _claims_of(name: str, schedule: Schedule) -> Iterator[Claim]:
    floor = float(getattr(schedule, "floor", 0.0))
    rising, outside = _slips(schedule.temperature, floor)
    conditions = (
        f"Default options; {POINTS} equal parts of the progress with both sides of each limit, and {DRAWN} random "
        f"progresses."
    )
    if not has_feedback(schedule):  # with feedback it may rise, up to its start
        yield Claim(
            f"schedule-never-rises-{name}",
            f"The temperature of schedule {name} never rises.",
            "theory, T8 and T13",
            schedule.temperature,
            _rise,
            exact(1e-12),
            rising,
            conditions,
            f"schedule:{name}",
            axes=("progress", "temperature"),
            scales=("linear", "linear"),
        )
    yield Claim(
        f"schedule-range-{name}",
        f"The temperature of schedule {name} is finite, never below its floor of {floor:g}, and never above its start.",
        "theory, section 0",
        schedule.temperature,
        _outside(floor),
        exact(1e-12),
        outside,
        conditions,
        f"schedule:{name}",
    )


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims about schedules."""
    for name, schedule in components(registry, "schedule"):
        yield from _claims_of(name, schedule)
