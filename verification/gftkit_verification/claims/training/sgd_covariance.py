"""T14: the covariance that stochastic gradients leave, on closed forms and in the shipped loop."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.registry import Registry
from gftkit.theory.objective import blend, blended_loss, penalty_loss, retention
from gftkit.verify.claims import Measurement, exact, statistical
from gftkit.verify.declaration import REGISTRY, claim
from gftkit_verification.testbeds.loops.shipped import LoopBuilder, build_loop
from gftkit_verification.testbeds.loops.side_by_side import Regressions, draw_regressions, weight_of
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.measuring.sgd import (
    LOOP_SLIPS,
    SIGMA,
    TEMPERATURES,
    averaged_step,
    second_moment,
    standardised_error,
    stationary,
)
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.losses import Loss

LOSS_SLIPS = {
    "target and anchor swapped": slips.swapped,
    "beta for rho": slips.beta_for_rho,
    "penalty form": penalty_loss,
}
GAUSSIAN = "Linear model, Gaussian features, d = 2, 3, batches of 1; beta 0.01 to 30."
REPLICAS = 500
"""Independent runs of SGD, side by side in one run of the loop."""


@dataclass(frozen=True)
class Sgd:
    """The loss whose gradient is followed, and the predictions about it."""

    loss: Loss = blended_loss
    moment: Callable[[Tensor, Tensor, float, float], Tensor] = second_moment
    rest: Callable[[Tensor, float, float], Tensor] = stationary


def _sgd_problems(generator: Generator) -> Iterator[tuple[Regressions, float]]:
    """Problems with a step at about a third of SGD's limit."""
    for p in (2, 3):
        problem = draw_regressions(p, generator)
        yield problem, 0.7 / float(problem.features.trace() + 2 * torch.linalg.eigvalsh(problem.features)[-1])


def _without_trace(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
    return second_moment(moment, features, eta, rho) - eta**2 * (features @ moment).trace() * features


def _fixed_features(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
    return _without_trace(moment, features, eta, rho) - eta**2 * features @ moment @ features


@claim(
    "T14-sgd-recursion",
    statement="One step of SGD takes the error's second moment to V - eta (HV + VH) + eta^2 (2 HVH + tr(HV) H) + "
    "eta^2 (1 - rho)^2 sigma^2 H.",
    reference="theory, T14",
    subject=Sgd(),
    bound=exact(),
    mutants={
        **{name: Sgd(loss=loss) for name, loss in LOSS_SLIPS.items()},
        "tr(HV) H dropped": Sgd(moment=_without_trace),
        "features taken as fixed": Sgd(moment=_fixed_features),
        "1 - rho not squared": Sgd(moment=lambda v, h, eta, rho: second_moment(v, h, eta, 1 - math.sqrt(1 - rho))),
    },
    conditions=f"{GAUSSIAN} Averages over features, labels and errors are exact, by cubature.",
    seeds=1,
)
def recursion_error(subject: Sgd, generator: Generator) -> float:
    """The largest relative error of the recursion, against an exactly averaged step."""
    generator = cpu_generator(generator)
    worst = 0.0
    for problem, eta in _sgd_problems(generator):
        moment = eta * random_covariance(len(problem.features), generator)
        for beta in TEMPERATURES:
            after = averaged_step(subject.loss, moment, problem, eta, beta)
            worst = max(
                worst, relative_difference(after, subject.moment(moment, problem.features, eta, retention(beta)))
            )
    return worst


def _first_order(features: Tensor, eta: float, rho: float) -> Tensor:
    return eta / 2 * (1 - rho) ** 2 * SIGMA**2 * torch.eye(len(features), dtype=torch.float64)


@claim(
    "T14-stationary-covariance",
    statement="At rest the error's covariance is (1 - rho)^2 that of plain fine-tuning, and in H's mode i "
    "eta (1 - rho)^2 sigma^2/(2 (1 - k)(1 - eta lambda_i)) with k = sum_i eta lambda_i/(2 - 2 eta lambda_i).",
    reference="theory, T14",
    subject=Sgd(),
    bound=exact(),
    mutants={
        **{name: Sgd(loss=loss) for name, loss in LOSS_SLIPS.items()},
        "first order in eta": Sgd(rest=_first_order),
        "1 - rho not squared": Sgd(rest=lambda h, eta, rho: stationary(h, eta, 1 - math.sqrt(1 - rho))),
    },
    conditions=f"{GAUSSIAN} One exactly averaged step of SGD leaves it as it is.",
    seeds=1,
    axes=("temperature", "trace of the stationary covariance"),
)
def stationarity_error(subject: Sgd, generator: Generator) -> Measurement:
    """The largest relative change of the covariance at rest by an exactly averaged step, and its error."""
    generator = cpu_generator(generator)
    worst, lines = 0.0, {}
    for problem, eta in _sgd_problems(generator):
        plain = stationary(problem.features, eta, 0.0)
        measured, theory = [], []
        for beta in TEMPERATURES:
            rest = subject.rest(problem.features, eta, retention(beta))
            after = averaged_step(subject.loss, rest, problem, eta, beta)
            expected = (1 - retention(beta)) ** 2 * plain
            worst = max(worst, relative_difference(after, rest), relative_difference(after, expected))
            measured.append(float(after.trace()))
            theory.append(float(expected.trace()))
        lines = {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)}
    return Measurement(worst, lines)


@claim(
    "T14-sgd-interpolation",
    statement="From the pretrained weights, SGD at a constant temperature is plain fine-tuning's run interpolated "
    "towards them: W_k - W_pre = (1 - rho)(W_k at temperature 0 - W_pre) at every step, pair by pair.",
    reference="theory, T9b and T14",
    subject=build_loop,
    bound=exact(),
    mutants=LOOP_SLIPS,
    conditions="The shipped loop, linear model, d = 3, SGD with momentum 0.8, 8 steps, equal pairs; beta 0.01 to 30.",
    seeds=1,
    uses={"registry": REGISTRY},
)
def interpolation_error(make: LoopBuilder, generator: Generator, *, registry: Registry) -> float:
    """The largest relative distance from plain fine-tuning's run, interpolated."""
    steps = 8
    here = cpu_generator(generator)
    problem, seed = draw_regressions(3, here, replicas=2), draw_seed(here)
    optimizer = {"name": "sgd", "momentum": 0.8}

    def moved(beta: float) -> Tensor:
        loop = problem.loop(
            make,
            registry,
            schedule=beta,
            seed=seed,
            rate=0.02,
            steps=steps,
            batch_size=4,
            optimizer=optimizer,
            device=generator.device,
        )
        ways = []
        for step in range(steps):
            loop.take(step)
            ways.append(weight_of(loop).cpu() - problem.pretrained)
        return torch.stack(ways)

    plain = moved(0.0)
    return max(relative_difference(moved(beta), (1 - retention(beta)) * plain) for beta in TEMPERATURES)


@claim(
    "T14-sgd-trained",
    statement="In the shipped loop with SGD at a constant temperature the weights' variance about W_beta is what T14's "
    "recursion gives.",
    reference="theory, T14",
    subject=build_loop,
    bound=statistical(degrees=REPLICAS - REPLICAS // 2 - 1),
    mutants=LOOP_SLIPS,
    conditions=(
        "Linear model, Gaussian features, d = 2 and 3 in turn, batches of 1, 60 steps, 500 independent runs; beta 0.01 "
        "to 30."
    ),
    profile="full",
    seeds=1,
    axes=("temperature", "E|W - W_beta|^2"),
    uses={"registry": REGISTRY},
)
def variance_error(make: LoopBuilder, generator: Generator, *, registry: Registry) -> Measurement:
    """The standardised error of the mean of |W - W_beta|^2 over runs, for all temperatures together."""
    steps = 60
    here = cpu_generator(generator)
    problems = [draw_regressions(d, here, REPLICAS, SIGMA) for d in (2, 3)]
    samples, measured, theory = [], [], []
    for beta, problem in zip(TEMPERATURES, itertools.cycle(problems), strict=False):
        eta = 0.5 / float(problem.features.trace() + 2 * torch.linalg.eigvalsh(problem.features)[-1])
        loop = problem.loop(
            make, registry, schedule=beta, seed=draw_seed(here), rate=eta, steps=steps, device=generator.device
        )
        for step in range(steps):
            loop.take(step)
        rho = retention(beta)
        error = weight_of(loop).cpu() - blend(problem.target, problem.pretrained, beta)
        moments = (1 - rho) ** 2 * problem.gap[:, :, None] * problem.gap[:, None]  # of each output, at the start
        for _ in range(steps):
            moments = torch.stack([second_moment(each, problem.features, eta, rho) for each in moments])
        expected = float(moments.sum(0).trace())
        squares = error.square().sum((1, 2))
        samples.append(squares / expected)
        measured.append(float(squares.mean()))
        theory.append(expected)
    return Measurement(
        standardised_error(torch.stack(samples, 1) - 1),
        {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)},
    )
