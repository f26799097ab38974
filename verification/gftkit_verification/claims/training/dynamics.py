"""The covariance that stochastic gradients leave: T14, on closed forms and in the shipped loop."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.registry import Registry
from gftkit.theory.objective import blend, blended_loss, penalty_loss, retention
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.oracles.gaussian import square_root
from gftkit_verification.testbeds import slips
from gftkit_verification.testbeds.loops import build_loop
from gftkit_verification.testbeds.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems import random_covariance
from gftkit_verification.testbeds.side_by_side import Regressions, draw_regressions, weight_of
from gftkit_verification.testbeds.slips import LoopBuilder, Loss
from gftkit_verification.testbeds.statistics import cross_fitted_t, equalise_columns

TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
SIGMA = 0.7
"""Standard deviation of a label."""

LOOP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor shares the weights": slips.sharing_anchor,
    "rho for beta": slips.rho_for_beta,
}


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    yield _recursion()
    yield _stationary()
    yield _interpolation(registry)
    yield _sgd_trained(registry)


def second_moment(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
    """T14: V+ = V - eta (HV + VH) + eta^2 (2 HVH + tr(HV) H) + eta^2 (1 - rho)^2 sigma^2 H."""
    pulled = features @ moment
    noise = (1 - rho) ** 2 * SIGMA**2
    return (
        moment
        - eta * (pulled + pulled.mT)
        + eta**2 * (2 * pulled @ features + pulled.trace() * features)
        + eta**2 * noise * features
    )


def stationary(features: Tensor, eta: float, rho: float) -> Tensor:
    """Where ``second_moment`` rests. In H's eigenbasis, with k = sum_i eta lambda_i/(2 (1 - eta lambda_i)) < 1,

    V_i = eta (1 - rho)^2 sigma^2/(2 (1 - k) (1 - eta lambda_i)): set V+ = V and solve for tr(HV).
    """
    values, vectors = torch.linalg.eigh(features)
    damped = 1 / (2 * (1 - eta * values))
    share = eta * (1 - rho) ** 2 * SIGMA**2 * damped / (1 - float((eta * values * damped).sum()))
    return (vectors * share) @ vectors.mT


@dataclass(frozen=True)
class Sgd:
    """The loss whose gradient is followed, and what is predicted of it."""

    loss: Loss = blended_loss
    moment: Callable[[Tensor, Tensor, float, float], Tensor] = second_moment
    rest: Callable[[Tensor, float, float], Tensor] = stationary


def averaged_step(loss: Loss, moment: Tensor, problem: Regressions, eta: float, temperature: float) -> Tensor:
    """The second moment of W - W_beta after one step of SGD on the loss, averaged exactly: no sampling.

    A step is quadratic in the features and linear in error and label: so the error's second moment needs features
    exact to fourth order, which three Gauss-Hermite nodes in each direction are, and sigma points for the rest.
    """
    p = len(problem.features)
    nodes, chances = [0.0, math.sqrt(3), -math.sqrt(3)], [2 / 3, 1 / 6, 1 / 6]
    phi = torch.tensor(list(itertools.product(nodes, repeat=p)), dtype=torch.float64) @ square_root(problem.features)
    chance = torch.tensor(list(itertools.product(chances, repeat=p)), dtype=torch.float64).prod(1)
    errors = math.sqrt(p) * torch.linalg.cholesky(moment).mT
    errors = torch.cat([errors, -errors])
    signs = torch.tensor([SIGMA, -SIGMA], dtype=torch.float64)
    count = len(phi), len(errors), len(signs)
    target, pretrained = problem.target[0], problem.pretrained[0]  # one output
    optimum = blend(target, pretrained, temperature)
    states = phi[:, None, None].expand(*count, p).reshape(-1, p)
    weights = (optimum + errors)[None, :, None].expand(*count, p).reshape(-1, p).clone().requires_grad_()
    label = (states @ target).reshape(count) + signs
    drift = (weights * states).sum(1, keepdim=True)
    each = loss(drift, label.reshape(-1, 1), (states @ pretrained)[:, None], temperature)
    (gradient,) = torch.autograd.grad(each.sum(), weights)
    apart = weights.detach() - eta / 2 * gradient - optimum
    chances_of = chance[:, None, None].expand(count).flatten() / (count[1] * count[2])
    return (chances_of[:, None] * apart).mT @ apart


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _sgd_problems(generator: Generator) -> Iterator[tuple[Regressions, float]]:
    """Problems with a step at about a third of SGD's limit."""
    for p in (2, 3):
        problem = draw_regressions(p, generator)
        yield problem, 0.7 / float(problem.features.trace() + 2 * torch.linalg.eigvalsh(problem.features)[-1])


LOSS_SLIPS = {
    "target and anchor swapped": slips.swapped,
    "beta for rho": slips.beta_for_rho,
    "penalty form": penalty_loss,
}
GAUSSIAN = "Linear model, Gaussian features, d = 2, 3, batches of 1; beta 0.01 to 30."


def _recursion() -> Claim:
    def measure(subject: Sgd, generator: Generator) -> float:
        generator = cpu_generator(generator)
        worst = 0.0
        for problem, eta in _sgd_problems(generator):
            moment = eta * random_covariance(len(problem.features), generator)
            for beta in TEMPERATURES:
                found = averaged_step(subject.loss, moment, problem, eta, beta)
                worst = max(worst, _apart(found, subject.moment(moment, problem.features, eta, retention(beta))))
        return worst

    def without_trace(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
        return second_moment(moment, features, eta, rho) - eta**2 * (features @ moment).trace() * features

    def fixed_features(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
        return without_trace(moment, features, eta, rho) - eta**2 * features @ moment @ features

    return Claim(
        name="T14-sgd-recursion",
        statement="One step of SGD takes the error's second moment to V - eta (HV + VH) + eta^2 (2 HVH + tr(HV) H) + "
        "eta^2 (1 - rho)^2 sigma^2 H.",
        reference="theory, T14",
        subject=Sgd(),
        measure=measure,
        bound=exact(),
        mutants={
            **{name: Sgd(loss=loss) for name, loss in LOSS_SLIPS.items()},
            "tr(HV) H dropped": Sgd(moment=without_trace),
            "features taken as fixed": Sgd(moment=fixed_features),
            "1 - rho not squared": Sgd(moment=lambda v, h, eta, rho: second_moment(v, h, eta, 1 - math.sqrt(1 - rho))),
        },
        conditions=f"{GAUSSIAN} Averages over features, labels and errors are exact, by cubature.",
        seeds=1,
    )


def _stationary() -> Claim:
    def measure(subject: Sgd, generator: Generator) -> Measurement:
        generator = cpu_generator(generator)
        worst, lines = 0.0, {}
        for problem, eta in _sgd_problems(generator):
            plain = stationary(problem.features, eta, 0.0)
            measured, theory = [], []
            for beta in TEMPERATURES:
                rest = subject.rest(problem.features, eta, retention(beta))
                found = averaged_step(subject.loss, rest, problem, eta, beta)
                wanted = (1 - retention(beta)) ** 2 * plain
                worst = max(worst, _apart(found, rest), _apart(found, wanted))
                measured.append(float(found.trace()))
                theory.append(float(wanted.trace()))
            lines = {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)}
        return Measurement(worst, lines)

    def first_order(features: Tensor, eta: float, rho: float) -> Tensor:
        return eta / 2 * (1 - rho) ** 2 * SIGMA**2 * torch.eye(len(features), dtype=torch.float64)

    return Claim(
        name="T14-stationary-covariance",
        statement="At rest the error's covariance is (1 - rho)^2 that of plain fine-tuning, and in H's mode i "
        "eta (1 - rho)^2 sigma^2/(2 (1 - k)(1 - eta lambda_i)) with k = sum_i eta lambda_i/(2 - 2 eta lambda_i).",
        reference="theory, T14",
        subject=Sgd(),
        measure=measure,
        bound=exact(),
        mutants={
            **{name: Sgd(loss=loss) for name, loss in LOSS_SLIPS.items()},
            "first order in eta": Sgd(rest=first_order),
            "1 - rho not squared": Sgd(rest=lambda h, eta, rho: stationary(h, eta, 1 - math.sqrt(1 - rho))),
        },
        conditions=f"{GAUSSIAN} One exactly averaged step of SGD leaves it as it is.",
        seeds=1,
        axes=("temperature", "trace of the stationary covariance"),
    )


def _interpolation(registry: Registry) -> Claim:
    steps = 8

    def measure(make: LoopBuilder, generator: Generator) -> float:
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
            found = []
            for step in range(steps):
                loop.take(step)
                found.append(weight_of(loop).cpu() - problem.pretrained)
            return torch.stack(found)

        plain = moved(0.0)
        return max(_apart(moved(beta), (1 - retention(beta)) * plain) for beta in TEMPERATURES)

    return Claim(
        name="T14-sgd-interpolation",
        statement=(
            "From the pretrained weights, SGD at a constant temperature is plain fine-tuning's run interpolated "
            "towards them: W_k - W_pre = (1 - rho)(W_k at temperature 0 - W_pre) at every step, pair by pair."
        ),
        reference="theory, T9b and T14",
        subject=build_loop,
        measure=measure,
        bound=exact(),
        mutants=LOOP_SLIPS,
        conditions=(
            "The shipped loop, linear model, d = 3, SGD with momentum 0.8, 8 steps, equal pairs; beta 0.01 to 30."
        ),
        seeds=1,
    )


DIVERGED = 1e3
"""Error, in units of what is expected, of a run that diverged: far beyond chance."""


def standardised(samples: Tensor) -> float:
    """The standardised error of samples (n, k) of mean 0; infinity where a run diverged, whose mean means nothing."""
    if not bool((samples.abs() < DIVERGED).all()):
        return math.inf
    return cross_fitted_t(equalise_columns(samples), torch.zeros(samples.shape[1]))


REPLICAS = 500
"""Independent runs of SGD, side by side in one run of the loop."""


def _sgd_trained(registry: Registry) -> Claim:
    steps = 60

    def measure(make: LoopBuilder, generator: Generator) -> Measurement:
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
            apart = (1 - rho) ** 2 * problem.gap[:, :, None] * problem.gap[:, None]  # of each output, at the start
            for _ in range(steps):
                apart = torch.stack([second_moment(each, problem.features, eta, rho) for each in apart])
            expected = float(apart.sum(0).trace())
            found = error.square().sum((1, 2))
            samples.append(found / expected)
            measured.append(float(found.mean()))
            theory.append(expected)
        return Measurement(
            standardised(torch.stack(samples, 1) - 1),
            {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)},
        )

    return Claim(
        name="T14-sgd-trained",
        statement=(
            "In the shipped loop with SGD at a constant temperature the weights' variance about W_beta is what T14's "
            "recursion gives."
        ),
        reference="theory, T14",
        subject=build_loop,
        measure=measure,
        bound=statistical(degrees=REPLICAS - REPLICAS // 2 - 1),
        mutants=LOOP_SLIPS,
        conditions=(
            "Linear model, Gaussian features, d = 2 and 3 in turn, batches of 1, 60 steps, 500 independent runs; beta "
            "0.01 to 30."
        ),
        profile="full",
        seeds=1,
        axes=("temperature", "E|W - W_beta|^2"),
    )
