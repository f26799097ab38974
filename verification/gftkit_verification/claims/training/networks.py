"""Trained networks: fine-tunes of an mlp by the shipped loop with Adam, between random normal laws."""

import copy
import functools
import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import FrozenAnchor
from gftkit.runs.schema import Train
from gftkit.runtime.randomness import stream
from gftkit.sampling.integrate import Grid, bind_conditions, diffusion_of, grid_of, trajectory
from gftkit.sampling.noise import FromGenerator
from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.training.steps import Steps
from gftkit.verify.claims import Claim, Line, Measurement, order, statistical
from gftkit_verification.claims.training.loop import at_temperature, shared_weights, tampered
from gftkit_verification.oracles.gaussian import CouplingName
from gftkit_verification.testbeds.moments import rho_of, seed_of
from gftkit_verification.testbeds.problems import COUPLINGS
from gftkit_verification.testbeds.statistics import cross_fitted
from gftkit_verification.testbeds.studies import (
    BATCH,
    DEPTH,
    STEPS,
    WIDTH,
    Problem,
    States,
    Study,
    norm,
    states,
    take_steps,
)
from gftkit_verification.testbeds.trials import Build, trial

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 30.0)
FEW = (0.03, 0.3, 5.0)
"""For the mutants that train networks of their own."""

PROBLEMS: tuple[tuple[int, CouplingName], ...] = ((2, "independent"), (4, "optimal-transport"))
SHORT = 100
"""Steps of an inexact fine-tune."""

STATES = 4000
"""Points (t, x) at which networks are compared."""

STAGES = (4.0, 1.0, 0.3, 0.0)
STAGE = 400
"""Steps of a stage."""

BATCHES = 40
"""Independent batches of gradients."""

HELD_OUT = 100_000
"""Pairs for losses, and as many other states for drift errors."""

PATHS, PATH_STEPS = 500, 40
"""Of a simulation."""

SCALE, DELTA = 0.7, 0.05
"""Of the bridge: g, and how far from t = 1 training and the path's KL stop."""


def _slope(x: Sequence[float], y: Sequence[float]) -> float:
    """Of log y on log x."""
    return float(np.polyfit(np.log(x), np.log(y), 1)[0])


@dataclass(frozen=True)
class Subject:
    """What is measured: how the loop is made, and what is predicted of it."""

    predicted: Callable[..., Any]
    build: Build = trial

    @property
    def temperatures(self) -> tuple[float, ...]:
        """All of them, fewer for a mutant that trains networks of its own."""
        return TEMPERATURES if self.build is trial else FEW


def _drift_error(study: Study, subject: Subject, generator: Generator) -> Measurement:
    """The difference that a temperature makes, against rho times the gap of the plain fine-tune."""
    seed, found = seed_of(generator), list[tuple[float, float]]()
    lines: dict[str, Line] = {}
    for d, coupling in PROBLEMS:
        problem = study.problem(d, coupling, seed, generator.device)
        at = states(problem, study.path, STATES, stream(seed, "states", d))
        networks = [study.network(problem, subject.build, beta) for beta in subject.temperatures]
        with torch.no_grad():
            plain = study.network(problem, trial, 0.0)(at.t, at.x)
            delta = problem.pretrained(at.t, at.x) - plain
            moved = [network(at.t, at.x) - plain for network in networks]
        gap, apart = norm(delta), [norm(one) for one in moved]
        along = [float((one * delta).sum(1).mean()) / gap for one in moved]  # a blend of the wrong sign is as far apart
        wanted = [subject.predicted(rho_of(beta), gap) for beta in subject.temperatures]
        found.append(_distance(subject.temperatures, apart, wanted, 1.0))
        found.append((0.0, max(abs(one / other - 1) for one, other in zip(along, wanted, strict=True))))
        lines = lines or {"measured": (subject.temperatures, apart), "theory": (subject.temperatures, wanted)}
    return _worst(found, lines)


def _distance(
    temperatures: Sequence[float], measured: Sequence[float], wanted: Sequence[float], power: float
) -> tuple[float, float]:
    """How far the slope of log measured on log rho is from ``power``, and the worst ratio to what is wanted from 1."""
    slope = _slope([rho_of(beta) for beta in temperatures], measured)
    return abs(slope - power), max(abs(one / other - 1) for one, other in zip(measured, wanted, strict=True))


def _worst(found: Sequence[tuple[float, float]], lines: Mapping[str, Line]) -> Measurement:
    slope, ratio = (max(values) for values in zip(*found, strict=True))
    return Measurement(max(slope, ratio), lines, f"slope off by {slope:.2g}, worst ratio by {ratio:.2g}")


def _path_kl(study: Study, subject: Subject, generator: Generator) -> Measurement:
    """KL(P_0 || P_beta) and KL(P_0 || P_pre) by Girsanov's formula, along one simulation of the plain fine-tune."""
    seed, found = seed_of(generator), list[tuple[float, float]]()
    lines: dict[str, Line] = {}
    solver = study.registry.create("solver", "euler-maruyama")
    times = grid_of(study.path, PATH_STEPS).times
    g = diffusion_of(study.path)
    for d, coupling in PROBLEMS:
        problem = study.problem(d, coupling, seed, generator.device)
        plain = study.network(problem, trial, 0.0)
        others = [
            problem.pretrained, *(study.network(problem, subject.build, beta) for beta in subject.temperatures)
        ]  # fmt: skip
        x0 = problem.target.starts(PATHS, stream(seed, "starts", d)).float().to(problem.device)
        noise = stream(seed, "noise", d, device=problem.device)
        kl = torch.zeros(len(others), dtype=torch.float64)
        with torch.no_grad():
            visited = trajectory(bind_conditions(plain), g, solver, Grid(times), x0, FromGenerator(noise))
            for (t, later), x in zip(itertools.pairwise(times), visited, strict=False):
                drift = bind_conditions(plain)(t, x)
                squares = [squared_norm(bind_conditions(other)(t, x) - drift).mean() for other in others]
                kl += (later - t) / (2 * g(t) ** 2) * torch.stack(squares).cpu()
        pretrained, *measured = kl.tolist()
        wanted = [subject.predicted(rho_of(beta), pretrained) for beta in subject.temperatures]
        found.append(_distance(subject.temperatures, measured, wanted, 2.0))
        lines = lines or {"measured": (subject.temperatures, measured), "theory": (subject.temperatures, wanted)}
    return _worst(found, lines)


@dataclass(frozen=True)
class Inexact:
    """T7: the range, and the loss by whose held-out difference the excess risk is measured."""

    predicted: Callable[[float, float, float], tuple[float, float]] = predictions.drift_error_range
    loss: Callable[..., Tensor] = objective.blended_loss


@dataclass(frozen=True)
class HeldOut:
    """Networks trained for a short time, on pairs; and what the oracle says of them, on other states."""

    label: Tensor
    b_tgt: Tensor
    anchor: Tensor
    drifts: Sequence[Tensor]
    gap: float
    errors: Sequence[float]
    """|b - b_tgt|_w at each temperature."""


def _held_out(study: Study, d: int, coupling: CouplingName, seed: int, device: torch.device) -> HeldOut:
    problem = study.problem(d, coupling, seed, device)
    pairs, others = (states(problem, study.path, HELD_OUT, stream(seed, name, d)) for name in ("pairs", "others"))
    networks = [study.network(problem, trial, beta, SHORT) for beta in TEMPERATURES]
    with torch.no_grad():
        return HeldOut(
            pairs.label,
            pairs.b_tgt,
            problem.pretrained(pairs.t, pairs.x),
            [network(pairs.t, pairs.x) for network in networks],
            norm(problem.pretrained(others.t, others.x) - others.b_tgt),
            [norm(network(others.t, others.x) - others.b_tgt) for network in networks],
        )


def _range(held_out: Callable[..., HeldOut], subject: Inexact, generator: Generator) -> Measurement:
    """By how much the drift error leaves its range, relative to the range's end."""
    seed, worst = seed_of(generator), -math.inf
    lines: dict[str, Line] = {}
    for d, coupling in PROBLEMS:
        at = held_out(d, coupling, seed, generator.device)
        ends = []
        for beta, drift in zip(TEMPERATURES, at.drifts, strict=True):
            optimum = at.b_tgt + rho_of(beta) * (at.anchor - at.b_tgt)
            risk, least = (subject.loss(b, at.label, at.anchor, beta) for b in (drift, optimum))
            excess = max(0.0, float((risk - least).double().mean()))
            ends.append(subject.predicted(rho_of(beta), at.gap, excess))
        lower, upper = zip(*ends, strict=True)
        outside = [max(low / e, e / high) - 1 for low, e, high in zip(lower, at.errors, upper, strict=True)]
        worst = max(worst, *outside)
        lines = lines or {
            "measured": (TEMPERATURES, at.errors),
            "lower bound": (TEMPERATURES, lower),
            "upper bound": (TEMPERATURES, upper),
        }
    return Measurement(max(0.0, worst), lines, f"largest ratio to a bound {1 + worst:.3g}")


@dataclass(frozen=True)
class Losses:
    """T3: the conditional objectives of the loop."""

    blended: Callable[..., Tensor] = objective.blended_loss
    penalty: Callable[..., Tensor] = objective.penalty_loss


def _gradients(study: Study, subject: Losses, generator: Generator) -> float:
    """Gradients of the conditional objectives less the marginal one's, over independent batches."""
    seed, found = seed_of(generator), []
    for d, coupling in itertools.product((2, 4), COUPLINGS):
        problem = study.problem(d, coupling, seed, generator.device)
        drift = copy.deepcopy(study.network(problem, trial, 1.0, SHORT)).requires_grad_(True)
        batches = (states(problem, study.path, BATCH, stream(seed, "batch", d, coupling, k)) for k in range(BATCHES))
        found.append(torch.stack([_gradient(subject, drift, problem, at) for at in batches]))
    together = torch.cat(found, 1)
    return cross_fitted(together, torch.zeros(together.shape[1]))


def _gradient(subject: Losses, drift: nn.Module, problem: Problem, at: States) -> Tensor:
    """Both forms at every temperature, in units of the noise that they have there, 1 - rho."""
    made = drift(at.t, at.x)
    b, anchor = made.detach().requires_grad_(True), problem.pretrained(at.t, at.x)
    apart = []
    for beta in TEMPERATURES:
        marginal = (squared_norm(b - at.b_tgt) + beta * squared_norm(b - anchor)) / (1 + beta)
        blended = subject.blended(b, at.label, anchor, beta)
        penalty = subject.penalty(b, at.label, anchor, beta) / (1 + beta)
        apart += [(1 + beta) * (loss - marginal).mean() for loss in (blended, penalty)]
    at_output = torch.stack([torch.autograd.grad(value, b, retain_graph=True)[0] for value in apart])
    found = torch.autograd.grad(made, list(drift.parameters()), at_output, is_grads_batched=True)
    return torch.cat([value.flatten() for value in found]).cpu()


def _stages(study: Study, subject: Subject, generator: Generator) -> Measurement:
    """The steps between the networks at the ends of the stages, and their distance from the straight segment."""
    seed, worst = seed_of(generator), 0.0
    lines: dict[str, Line] = {}
    schedule = study.registry.create("schedule", "stepwise", temperatures=STAGES)
    retentions = [1.0, *(rho_of(beta) for beta in STAGES)]
    train = Train(steps=STAGE * len(STAGES), batch_size=BATCH, learning_rate=2e-3, clip=None, ema=0.99)
    for d, coupling in PROBLEMS:
        problem = study.problem(d, coupling, seed, generator.device)
        at = states(problem, study.path, STATES, stream(seed, "states", d))
        loop = study.loop(problem, subject.build, schedule, train)
        drifts = [problem.pretrained(at.t, at.x)]
        for _, steps in itertools.groupby(range(train.steps), key=lambda step: step // STAGE):
            take_steps(loop, steps)
            drifts.append(loop.ema(at.t, at.x))
        last = drifts[-1]
        delta = drifts[0] - last
        gap = norm(delta)
        apart = [norm(one - other) for one, other in itertools.pairwise(drifts)]
        wanted = [subject.predicted(one, other, gap) for one, other in itertools.pairwise(retentions)]
        aside = [norm(b - last - rho * delta) / gap for rho, b in zip(retentions, drifts, strict=True)]
        worst = max(worst, *aside, *(abs(one / other - 1) for one, other in zip(apart, wanted, strict=True)))
        hot_first = sorted(subject.temperatures, reverse=True)
        with torch.no_grad():
            optima = [study.network(problem, subject.build, beta)(at.t, at.x) for beta in (*hot_first, 0.0)]
            whole = norm(problem.pretrained(at.t, at.x) - study.network(problem, trial, 0.0)(at.t, at.x))
        rhos = [*(rho_of(beta) for beta in hot_first), 0.0]
        for (one, other), (rho, later) in zip(itertools.pairwise(optima), itertools.pairwise(rhos), strict=True):
            worst = max(worst, abs(norm(one - other) / subject.predicted(rho, later, whole) - 1))
        stages = range(1, len(wanted) + 1)
        lines = lines or {"measured": (stages, apart), "theory": (stages, wanted)}
    return Measurement(worst, lines)


def _resetting(loop: Steps) -> Callable[[int], float]:
    """The loop's temperatures, by which each stage's anchor is the end of the last one (theory, T18)."""
    temperature, seen = loop.temperature, set[float]()

    def changed(step: int) -> float:
        beta = temperature(step)
        if seen and beta not in seen:
            loop.anchor = FrozenAnchor(loop.drift)
        seen.add(beta)
        return beta

    return changed


INVERSE = at_temperature(lambda beta: 1 / beta)
SHARED = tampered("anchor", shared_weights)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    linear = Study(registry, registry.create("path", "linear"))
    bridge = Study(registry, registry.create("path", "brownian-bridge", scale=SCALE, delta=DELTA))
    trained = (
        f"mlp of {DEPTH} x {WIDTH} units, pretrained and then fine-tuned by the shipped loop with Adam, batches of "
        f"{BATCH}, between random normal laws"
    )
    constant = f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}"
    two = "dimension 2 with independent and 4 with optimal coupling"
    drift_error, path_kl, step = predictions.drift_error, predictions.path_kl, predictions.step_between_optima
    yield Claim(
        "T03-gradients-trained",
        "At a trained network the conditional objective's mean gradient, blended or penalty/(1 + beta), is the "
        "marginal objective's with the exact b_tgt, divided by 1 + beta.",
        "theory, T3",
        Losses(),
        lambda subject, generator: _gradients(linear, subject, generator),
        statistical(degrees=BATCHES - BATCHES // 2 - 1),
        {
            "1/(1 + beta) for beta/(1 + beta)": Losses(lambda b, y, a, beta: objective.blended_loss(b, y, a, 1 / beta)),
            "norm for its square": Losses(lambda b, y, a, beta: objective.blended_loss(b, y, a, beta).sqrt()),
            "sign of the label": Losses(lambda b, y, a, beta: objective.blended_loss(b, -y, a, beta)),
            "rho for beta in the penalty": Losses(
                penalty=lambda b, y, a, beta: objective.penalty_loss(b, y, a, rho_of(beta))
            ),
        },
        conditions=f"{trained}; linear path, dimensions 2 and 4, both couplings; {constant}; {BATCHES} batches",
        profile="full",
        seeds=1,
    )
    yield Claim(
        "T04-drift-error-trained",
        "Networks fine-tuned at beta and at 0 with the same random numbers are rho |Delta| apart, and so along Delta, "
        "the pretrained network less the one at 0: slope 1 in rho, ratio 1.",
        "theory, T4",
        Subject(drift_error),
        lambda subject, generator: _drift_error(linear, subject, generator),
        order(0.05),
        {
            "1/(1 + beta) for beta/(1 + beta)": Subject(drift_error, INVERSE),
            "anchor that shares the weights": Subject(drift_error, SHARED),
            "rho for beta": Subject(drift_error, at_temperature(rho_of)),
            "rho^2 for rho": Subject(lambda rho, gap: drift_error(rho**2, gap)),
        },
        conditions=f"{trained}; linear path, {two}; {constant}; {STEPS} steps",
        profile="full",
        seeds=1,
        axes=("temperature", "drift difference"),
    )
    yield Claim(
        "T05-path-kl-trained",
        "KL(P_0 || P_beta) = rho^2 KL(P_0 || P_pre) for the path laws of trained networks, by Girsanov's formula along "
        "simulated paths: slope 2 in rho, ratio 1.",
        "theory, T5",
        Subject(path_kl),
        lambda subject, generator: _path_kl(bridge, subject, generator),
        order(0.1),
        {
            "1/(1 + beta) for beta/(1 + beta)": Subject(path_kl, INVERSE),
            "anchor that shares the weights": Subject(path_kl, SHARED),
            "rho for rho^2": Subject(lambda rho, pretrained: rho * pretrained),
        },
        conditions=f"{trained}; Brownian bridge of scale {SCALE} up to t = {1 - DELTA}, {two}; {constant}; {STEPS} "
        f"steps; {PATHS} paths of {PATH_STEPS} Euler-Maruyama steps",
        profile="full",
        seeds=1,
        axes=("temperature", "path KL"),
    )
    held_out = functools.lru_cache(4)(functools.partial(_held_out, linear))
    yield Claim(
        "T07-error-range-trained",
        "|rho |Delta| - sqrt(eps)| <= |b - b_tgt| <= rho |Delta| + sqrt(eps) for networks of short training, eps the "
        "excess of the shipped loss over the optimum's on held-out pairs, the drift error by the oracle on others.",
        "theory, T7",
        Inexact(),
        lambda subject, generator: _range(held_out, subject, generator),
        order(0.05),
        {
            "eps for its root": Inexact(lambda rho, gap, eps: predictions.drift_error_range(rho, gap, eps**2)),
            "rho^2 for rho": Inexact(lambda rho, gap, eps: predictions.drift_error_range(rho**2, gap, eps)),
            "1 - rho for rho": Inexact(lambda rho, gap, eps: predictions.drift_error_range(1 - rho, gap, eps)),
            "half the squared norm": Inexact(loss=lambda b, y, a, beta: objective.blended_loss(b, y, a, beta) / 2),
        },
        conditions=f"{trained}; linear path, {two}; {constant}; {SHORT} steps; {HELD_OUT} pairs and as many other "
        f"states, which leave an error of a few percent in eps",
        profile="full",
        seeds=1,
        axes=("temperature", "drift error"),
    )
    yield Claim(
        "T08-gradual-steps-trained",
        "At the ends of a stepwise schedule's stages the trained network lies on the segment from b_pre to its end, in "
        "steps of |rho_(k+1) - rho_k| |Delta|, the first (1 - rho_0) |Delta|; as far apart are networks of equal "
        "seeds at successive temperatures.",
        "theory, T8 and T18",
        Subject(step),
        lambda subject, generator: _stages(linear, subject, generator),
        order(0.1),
        {
            "anchor that shares the weights": Subject(step, SHARED),
            "anchor reset at each stage": Subject(step, tampered("temperature", _resetting)),
            "squared retentions": Subject(lambda before, after, gap: step(before**2, after**2, gap)),
        },
        conditions=f"{trained}; linear path, {two}; temperatures {', '.join(f'{beta:g}' for beta in STAGES)}, {STAGE} "
        f"steps each; moving average of the weights; "
        f"and networks of equal seeds at {', '.join(f'{beta:g}' for beta in TEMPERATURES)} and 0, {STEPS} steps each",
        profile="full",
        seeds=1,
        axes=("stage", "step of the network"),
        scales=("linear", "linear"),
    )
