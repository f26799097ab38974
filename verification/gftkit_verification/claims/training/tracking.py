"""T13: the drift behind its moving optimum, by gradient descent and gradient flow on the shipped loss."""

import math
from collections.abc import Iterator, Mapping

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.registry import Registry
from gftkit.theory.objective import blended_loss, penalty_loss, retention
from gftkit.verify.claims import Measurement, exact, order
from gftkit.verify.declaration import FromRegistry, claim, claim_for_each, registered
from gftkit_verification.testbeds.components import components, each_registered
from gftkit_verification.testbeds.loops.shipped import Constant
from gftkit_verification.testbeds.measuring.modes import (
    MODES,
    RisingSchedule,
    SlowSchedule,
    curve_length,
    draw_modes,
    draw_rates,
    predicted_share,
)
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.losses import Loss

STEPS = 60
"""Of gradient flow."""
OVERSHOOT_STEPS = 40
"""Of gradient descent, where overshoots are looked for."""

AXES = ("progress", "<b - b_tgt, Delta> / |Delta|^2")
LINEAR = ("linear", "linear")
LOSS_SLIPS = {
    "target and anchor swapped": slips.swapped,
    "beta for rho": slips.beta_for_rho,
    "penalty form": penalty_loss,
    "anchor shares the weights": slips.shared,
}


def _tracking_slips(schedule: Schedule) -> dict[str, Loss]:
    """Likely slips; of a schedule that is always 0, those that show at temperature 0."""
    if any(schedule.temperature((k + 0.5) / STEPS) > 0 for k in range(STEPS)):
        return LOSS_SLIPS
    return {"target and anchor swapped": slips.swapped, "loss doubled": slips.doubled}


@claim_for_each(
    each_registered("schedule"),
    "T13-tracking-{name}",
    statement=(
        "Gradient flow on the blended form: b - b_tgt = c Delta in each mode, c' = -lambda (c - rho(s)), c(0) = 1."
    ),
    reference="theory, T13",
    subject=lambda _: blended_loss,
    bound=exact(),
    mutants=_tracking_slips,
    conditions=(
        "Model linear in its parameters, 4 modes with lambda 1 to 30; rho of the middle of each of 60 intervals."
    ),
    component="schedule:{name}",
    seeds=1,
    axes=AXES,
    scales=LINEAR,
    item_as="schedule",
)
def tracking_error(loss: Loss, generator: Generator, *, schedule: Schedule) -> Measurement:
    """The largest distance of each mode's share from its prediction, along gradient flow."""
    generator = cpu_generator(generator)
    modes = draw_modes(draw_rates(generator, 1.0, 30.0), generator)
    theory = predicted_share(modes.rates, schedule, STEPS)
    measured = modes.share_left(modes.flow(loss, schedule, STEPS))
    progress = [k / STEPS for k in range(STEPS + 1)]
    curves = {"measured": measured, "theory": theory, "plain": predicted_share(modes.rates, Constant(0.0), STEPS)}
    lines = {name: (progress, curve[:, 1].tolist()) for name, curve in curves.items()}
    return Measurement(float((measured - theory).abs().max()), lines)


@claim(
    "T13-lag",
    statement="Where lambda is large the drift lags behind its moving optimum by -rho'/lambda.",
    reference="theory, T13",
    subject=blended_loss,
    bound=order(0.05),
    mutants={
        "penalty form": penalty_loss,
        "loss doubled": slips.doubled,
        "target and anchor swapped": slips.swapped,
    },
    conditions="Schedule `exponential`, 4 modes with lambda 150 to 450, s from 0.2 to 0.8.",
    component="schedule:exponential",
    seeds=1,
    axes=("progress", "c - rho"),
    scales=LINEAR,
    uses={"schedule": registered("schedule", "exponential")},
)
def lag_error(loss: Loss, generator: Generator, *, schedule: Schedule) -> Measurement:
    """The largest relative error of -rho'/lambda as the lag, along gradient descent."""
    steps = 520
    generator = cpu_generator(generator)
    modes = draw_modes(draw_rates(generator, 150.0, 450.0), generator)
    share = modes.share_left(modes.descend(loss, schedule, steps))
    worst, measured, theory = 0.0, [], []
    at = range(steps // 5, steps * 4 // 5, steps // 20)
    for k in at:
        before, rho, after = (retention(schedule.temperature((k + ahead) / steps)) for ahead in (-1, 0, 1))
        lag = (before - after) * steps / 2 / modes.rates  # -rho'/lambda
        worst = max(worst, float(((share[k] - rho) / lag - 1).abs().max()))
        measured.append(float(share[k, 0]) - rho)
        theory.append(float(lag[0]))
    progress = [k / steps for k in at]
    return Measurement(worst, {"measured": (progress, measured), "theory": (progress, theory)})


def _behind(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    return blended_loss(drift, target, 2 * target - anchor, temperature)


@claim(
    "T13-never-ahead",
    statement="c >= e^{-lambda s} for every schedule: noise-free, at equal learning rate, Gradual Fine-Tuning is never "
    "ahead of plain fine-tuning.",
    reference="theory, T13",
    subject=blended_loss,
    bound=exact(),
    mutants={"gap's sign": slips.flipped, "loss doubled": slips.doubled, "anchor behind the target": _behind},
    conditions="Every registered schedule and one that rises; 4 modes, 40 steps with lr lambda up to 1/2.",
    seeds=1,
    uses={"schedules": FromRegistry(lambda registry: dict(components(registry, "schedule")))},
)
def largest_lead(loss: Loss, generator: Generator, *, schedules: Mapping[str, Schedule]) -> float:
    """The largest lead over plain fine-tuning: e^(-lambda s) - c, for every schedule and one that rises."""
    generator = cpu_generator(generator)
    modes = draw_modes(draw_rates(generator, 0.5, 20.0), generator)
    plain = (1 - modes.rates / 40) ** torch.arange(41)[:, None]  # 40 steps of plain fine-tuning
    ahead = [
        plain - modes.share_left(modes.descend(loss, schedule, 40))
        for schedule in (*schedules.values(), RisingSchedule())
    ]
    return max(0.0, *(float(each.max()) for each in ahead))


def _retentions(schedule: Schedule) -> Tensor:
    steps = range(OVERSHOOT_STEPS)
    return torch.tensor([retention(schedule.temperature(k / OVERSHOOT_STEPS)) for k in steps], dtype=torch.float64)


def falling_schedules(registry: Registry) -> Iterator[tuple[str, Mapping[str, Schedule]]]:
    """The registered schedules whose retention never rises, all in one item."""
    schedules = dict(components(registry, "schedule"))
    yield "", {name: one for name, one in schedules.items() if (_retentions(one).diff() <= 0).all()}


@claim_for_each(
    falling_schedules,
    "T13-no-overshoot",
    statement=(
        "Under a rho that never rises, c >= rho(s) and c never rises: the drift goes one way and never overshoots its "
        "optimum."
    ),
    reference="theory, T13",
    subject=lambda _: blended_loss,
    bound=exact(),
    mutants={
        "target and anchor swapped": slips.swapped,
        "beta for rho": slips.beta_for_rho,
        "gap's sign": slips.flipped,
    },
    conditions=lambda schedules: f"Schedules {', '.join(schedules)}; 4 modes, 40 steps with lr lambda below 1.",
    seeds=1,
    item_as="schedules",
)
def largest_overshoot(loss: Loss, generator: Generator, *, schedules: Mapping[str, Schedule]) -> float:
    """The largest overshoot, rho - c, and the largest rise of c, for schedules that never rise."""
    generator = cpu_generator(generator)
    modes = draw_modes(draw_rates(generator, 0.5, 30.0), generator)
    worst = 0.0
    for schedule in schedules.values():
        share = modes.share_left(modes.descend(loss, schedule, OVERSHOOT_STEPS))
        below = _retentions(schedule)[:, None] - share[:-1]
        worst = max(worst, float(below.max()), float(share.diff(dim=0).max()))
    return worst


@claim(
    "T13-no-overshoot-counterexample",
    statement=(
        "Under a rho that rises the drift falls below its optimum and turns back, as c' = -lambda (c - rho(s)) has it."
    ),
    reference="theory, T13",
    subject=blended_loss,
    bound=exact(),
    mutants=LOSS_SLIPS,
    conditions="beta = 4 s; 4 modes, gradient descent of 40 steps against its own recursion.",
    seeds=1,
    axes=AXES,
    scales=LINEAR,
)
def recursion_error_of_rising(loss: Loss, generator: Generator) -> Measurement:
    """The distance from the recursion under a rising temperature; infinite where the drift doesn't overshoot."""
    generator = cpu_generator(generator)
    modes = draw_modes(draw_rates(generator, 5.0, 30.0), generator)
    share, rho = modes.share_left(modes.descend(loss, RisingSchedule(), OVERSHOOT_STEPS)), _retentions(RisingSchedule())
    theory = [torch.ones(MODES, dtype=torch.float64)]
    for k in range(OVERSHOOT_STEPS):
        theory.append(theory[-1] - modes.rates / OVERSHOOT_STEPS * (theory[-1] - rho[k]))
    error = float((share - torch.stack(theory)).abs().max())
    overshot = float((rho[:, None] - share[:-1]).max()) > 0.02 and bool((share[-1] - share.amin(0) > 0.02).all())
    progress = [k / OVERSHOOT_STEPS for k in range(OVERSHOOT_STEPS)]
    lines = {"measured": share[:-1, 0], "theory": torch.stack(theory)[:-1, 0], "rho": rho}
    return Measurement(
        error if overshot else math.inf, {name: (progress, line.tolist()) for name, line in lines.items()}
    )


@claim(
    "T13-path-length",
    statement=(
        "With several modes plain fine-tuning's curve of drifts is longer than |Delta|; under a slow schedule the "
        "curve's length tends to |Delta|."
    ),
    reference="theory, T13",
    subject=blended_loss,
    bound=order(0.02),
    mutants={"no anchor": slips.unanchored, "anchor shares the weights": slips.shared, "swapped": slips.swapped},
    conditions=(
        "rho from 1 to 0, linear in s; 4 modes with lambda 20 to 3000; plain fine-tuning's is at least 1.1 |Delta|."
    ),
    seeds=1,
    axes=("c of the slowest mode", "c of the fastest mode"),
    scales=LINEAR,
)
def excess_length(loss: Loss, generator: Generator) -> Measurement:
    """The relative excess of the curve's length under a slow schedule; infinite where plain fine-tuning has none."""
    steps = 300
    generator = cpu_generator(generator)
    modes = draw_modes(draw_rates(generator, 20.0, 3000.0), generator)
    slow, plain = (modes.flow(loss, schedule, steps) for schedule in (SlowSchedule(), Constant(0.0)))
    straight = float((modes.pretrained - modes.target).norm())
    value = abs(curve_length(slow) / straight - 1)
    lines = {}
    for name, curve in (("measured", slow), ("plain fine-tuning", plain)):
        share = modes.share_left(curve)[:: steps // 60]
        lines[name] = share[:, 0].tolist(), share[:, -1].tolist()
    return Measurement(
        value if curve_length(plain) > 1.1 * straight else math.inf,
        {**lines, "straight": ([0.0, 1.0], [0.0, 1.0])},
        f"length/|Delta|: {curve_length(slow) / straight:.3f} gradually, {curve_length(plain) / straight:.3f} plainly",
    )
