"""Gradients of models linear in their parameters, in closed form: noise at the optimum (T9c), and curvature (T9)."""

import math
from collections.abc import Iterator, Sequence
from dataclasses import replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory.objective import blended_loss, penalty_loss, retention, squared_norm
from gftkit.theory.predictions import label_noise
from gftkit.verify import Measurement, claim, exact, registered
from gftkit_verification.testbeds.measuring.differences import relative_error
from gftkit_verification.testbeds.measuring.gradients import (
    AXES,
    LOSS_SLIPS,
    TEMPERATURES,
    Linear,
    draw_linear_problems,
)
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.losses import Loss

CONDITIONS = "W phi, phi = (1, t, x, t x); Gaussian flows, d = 2, 3, 5, both couplings; 60 samples as the population."
STEPS = 4
"""Of gradient descent."""


def compare_noise(loss: Loss, linear: Linear, added: Sequence[float]) -> tuple[float, dict[str, list[float]]]:
    """Noise at the optimum of each temperature against (1 - rho)^2 of plain flow matching's, and what is added."""
    flow_matching = linear.noise(slips.unanchored, 0.0)
    measured = [linear.noise(loss, beta) for beta in TEMPERATURES]
    inside = [label_noise(retention(beta), flow_matching) for beta in TEMPERATURES]
    theory = [less + more for less, more in zip(inside, added, strict=True)]
    worst = max(map(relative_error, measured, theory))
    return worst, {"measured": measured, "theory": theory, "b_pre in the class": inside}


@claim(
    "T09c-optimum-noise",
    statement=(
        "At b_beta the gradient's whole covariance is (1 - rho)^2 that of plain flow matching at its optimum, for "
        "models linear in their parameters whose class contains b_pre."
    ),
    reference="theory, T9c",
    subject=blended_loss,
    bound=exact(),
    mutants=LOSS_SLIPS,
    conditions=CONDITIONS,
    seeds=1,
    axes=AXES,
    uses={"path": registered("path", "linear")},
)
def noise_at_optimum(loss: Loss, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference from the prediction, where b_pre is in the class."""
    generator = cpu_generator(generator)
    worst = 0.0
    lines: dict[str, list[float]] = {}
    for drawn in draw_linear_problems(path, generator):
        linear = replace(drawn, problem=replace(drawn.problem, anchor=drawn.phi @ drawn.pretrained.mT))
        difference, lines = compare_noise(loss, linear, [0.0] * len(TEMPERATURES))
        worst = max(worst, difference)
    return Measurement(worst, {name: (TEMPERATURES, lines[name]) for name in ("measured", "theory")})


def added_noise(linear: Linear) -> Iterator[float]:
    """The part of the gradient's variance at b_beta that a b_pre outside of the class adds, for each temperature."""
    goals = torch.cat([linear.problem.label, linear.problem.anchor], 1)
    fitted = linear.phi @ torch.linalg.lstsq(linear.phi, goals).solution
    residual, misfit = (fitted - goals).tensor_split(2, 1)
    size = squared_norm(linear.phi)
    for rho in map(retention, TEMPERATURES):
        cross = 2 * rho * (1 - rho) * (residual * misfit).sum(1)
        yield float(4 * (size * (rho**2 * squared_norm(misfit) + cross)).mean())


@claim(
    "T09c-optimum-noise-counterexample",
    statement=(
        "Where the class doesn't contain b_pre, with r = (Pi - I) b_pre, the trace exceeds (1 - rho)^2 of plain flow "
        "matching's by 4 E|phi|^2 (rho^2 |r|^2 + 2 rho (1 - rho) <b - b_t(x|z), r>) with b plain flow matching's "
        "optimum: it doesn't vanish as beta grows."
    ),
    reference="theory, T9c",
    subject=blended_loss,
    bound=exact(),
    mutants=LOSS_SLIPS,
    conditions=f"{CONDITIONS} b_pre is not affine in x.",
    seeds=1,
    axes=AXES,
    uses={"path": registered("path", "linear")},
)
def noise_outside_class(loss: Loss, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference from the prediction, where b_pre is not in the class."""
    generator = cpu_generator(generator)
    worst = 0.0
    lines: dict[str, list[float]] = {}
    for drawn in draw_linear_problems(path, generator):
        curved = drawn.problem.anchor + torch.sin(3 * drawn.problem.x)
        linear = replace(drawn, problem=replace(drawn.problem, anchor=curved))
        difference, lines = compare_noise(loss, linear, list(added_noise(linear)))
        if lines["theory"][-1] < 2 * lines["b_pre in the class"][-1]:  # nothing would be shown
            difference = math.inf
        worst = max(worst, difference)
    return Measurement(worst, {name: (TEMPERATURES, line) for name, line in lines.items()})


def doubled_penalty(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """The penalty form at twice the temperature."""
    return penalty_loss(drift, target, anchor, 2 * temperature)


@claim(
    "T09-penalty-curvature",
    statement=(
        "The penalty form has 1 + beta times plain flow matching's curvature: gradient descent converges iff "
        "lr (1 + beta) lambda_max < 2."
    ),
    reference="theory, T9",
    subject=penalty_loss,
    bound=exact(),
    mutants={"blended form": blended_loss, "no anchor": slips.unanchored, "twice the tie": doubled_penalty},
    conditions=f"{CONDITIONS} Learning rates 5 % below and above the limit.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def growth_at_limit(loss: Loss, generator: Generator, *, path: Path) -> float:
    """The relative error of |1 - lr curvature|^steps as gradient descent's growth along the steepest direction."""
    generator = cpu_generator(generator)
    worst = 0.0
    for linear in draw_linear_problems(path, generator):
        curvature = 2 * linear.phi.mT @ linear.phi / len(linear.phi)  # plain flow matching's
        curvatures, directions = torch.linalg.eigh(curvature)
        for beta in TEMPERATURES[1::2]:
            optimum = linear.optimum(penalty_loss, beta)
            for share in (0.95, 1.05):  # of the largest learning rate
                weight = optimum + directions[:, -1]
                rate = share * 2 / ((1 + beta) * float(curvatures[-1]))
                for _ in range(STEPS):
                    weight = weight - rate * linear.gradients(loss, weight, beta).mean(0)
                growth = float((weight - optimum).norm()) / math.sqrt(len(optimum))
                worst = max(worst, relative_error(growth, abs(1 - 2 * share) ** STEPS))
    return worst
