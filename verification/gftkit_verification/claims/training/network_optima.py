"""T4, T7 and T8 with trained networks: drift errors at a temperature, their range, and the steps of a schedule."""

import functools
import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.registry import Registry
from gftkit.networks.anchor import FrozenAnchor
from gftkit.runs.schema import Train
from gftkit.runtime.randomness import stream
from gftkit.theory import objective, predictions
from gftkit.training.steps import Steps
from gftkit.verify.claims import Line, Measurement, order
from gftkit.verify.declaration import FromRegistry, claim
from gftkit_verification.oracles.gaussian import CouplingName
from gftkit_verification.testbeds.loops.networks import (
    BATCH,
    CONSTANT,
    PROBLEMS,
    SHORT,
    STATES,
    STEPS,
    TEMPERATURES,
    TRAINED,
    TWO,
    Prediction,
    Study,
    compare_with_power,
    draw_states,
    linear_study,
    norm,
    take_steps,
    worst_comparison,
)
from gftkit_verification.testbeds.loops.shipped import build_loop
from gftkit_verification.testbeds.problems.moments import draw_seed, rho_of
from gftkit_verification.testbeds.slips.loops import INVERSE_TEMPERATURE, SHARED_WEIGHTS, at_temperature, tampered

STAGES = (4.0, 1.0, 0.3, 0.0)
STAGE = 400
"""Steps of a stage."""

HELD_OUT = 100_000
"""Pairs for losses, and as many other states for drift errors."""


# --- T4 ---------------------------------------------------------------------------------------------------------------


@claim(
    "T04-drift-error-trained",
    statement="Networks fine-tuned at beta and at 0 with the same random numbers are rho |Delta| apart, and so along "
    "Delta, the pretrained network less the one at 0: slope 1 in rho, ratio 1.",
    reference="theory, T4",
    subject=Prediction(predictions.drift_error),
    bound=order(0.05),
    mutants={
        "1/(1 + beta) for beta/(1 + beta)": Prediction(predictions.drift_error, INVERSE_TEMPERATURE),
        "anchor that shares the weights": Prediction(predictions.drift_error, SHARED_WEIGHTS),
        "rho for beta": Prediction(predictions.drift_error, at_temperature(rho_of)),
        "rho^2 for rho": Prediction(lambda rho, gap: predictions.drift_error(rho**2, gap)),
    },
    conditions=f"{TRAINED}; linear path, {TWO}; {CONSTANT}; {STEPS} steps",
    profile="full",
    seeds=1,
    axes=("temperature", "drift difference"),
    uses={"study": FromRegistry(linear_study)},
)
def drift_difference(subject: Prediction, generator: Generator, *, study: Study) -> Measurement:
    """The difference that a temperature makes, against rho times the gap of the plain fine-tune."""
    seed, distances = draw_seed(generator), list[tuple[float, float]]()
    lines: dict[str, Line] = {}
    for d, coupling in PROBLEMS:
        problem = study.problem(d, coupling, seed, generator.device)
        at = draw_states(problem, study.path, STATES, stream(seed, "states", d))
        networks = [study.network(problem, subject.build, beta) for beta in subject.temperatures]
        with torch.no_grad():
            plain = study.network(problem, build_loop, 0.0)(at.t, at.x)
            delta = problem.pretrained(at.t, at.x) - plain
            moved = [network(at.t, at.x) - plain for network in networks]
        gap, lengths = norm(delta), [norm(one) for one in moved]
        along = [
            float((one * delta).sum(1).mean()) / gap for one in moved
        ]  # a blend of the wrong sign has equal lengths
        predicted = [subject.predicted(rho_of(beta), gap) for beta in subject.temperatures]
        distances.append(compare_with_power(subject.temperatures, lengths, predicted, 1.0))
        distances.append((0.0, max(abs(one / other - 1) for one, other in zip(along, predicted, strict=True))))
        lines = lines or {"measured": (subject.temperatures, lengths), "theory": (subject.temperatures, predicted)}
    return worst_comparison(distances, lines)


# --- T7 ---------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Inexact:
    """T7: the range, and the loss by whose held-out difference the excess risk is measured."""

    predicted: Callable[[float, float, float], tuple[float, float]] = predictions.drift_error_range
    loss: Callable[..., Tensor] = objective.blended_loss


@dataclass(frozen=True)
class HeldOut:
    """Networks trained for a short time, on pairs; and their drift errors by the oracle, on other states."""

    label: Tensor
    b_tgt: Tensor
    anchor: Tensor
    drifts: Sequence[Tensor]
    gap: float
    errors: Sequence[float]
    """|b - b_tgt|_w at each temperature."""


def _compare_held_out(study: Study, d: int, coupling: CouplingName, seed: int, device: torch.device) -> HeldOut:
    problem = study.problem(d, coupling, seed, device)
    pairs, others = (draw_states(problem, study.path, HELD_OUT, stream(seed, name, d)) for name in ("pairs", "others"))
    networks = [study.network(problem, build_loop, beta, SHORT) for beta in TEMPERATURES]
    with torch.no_grad():
        return HeldOut(
            pairs.label,
            pairs.b_tgt,
            problem.pretrained(pairs.t, pairs.x),
            [network(pairs.t, pairs.x) for network in networks],
            norm(problem.pretrained(others.t, others.x) - others.b_tgt),
            [norm(network(others.t, others.x) - others.b_tgt) for network in networks],
        )


def _held_out_networks(registry: Registry) -> Callable[..., HeldOut]:
    """A problem's networks, trained once for all mutants."""
    return functools.lru_cache(4)(functools.partial(_compare_held_out, linear_study(registry)))


@claim(
    "T07-error-range-trained",
    statement="|rho |Delta| - sqrt(eps)| <= |b - b_tgt| <= rho |Delta| + sqrt(eps) for networks of short training, eps "
    "the excess of the shipped loss over the optimum's on held-out pairs, the drift error by the oracle on "
    "others.",
    reference="theory, T7",
    subject=Inexact(),
    bound=order(0.05),
    mutants={
        "eps for its root": Inexact(lambda rho, gap, eps: predictions.drift_error_range(rho, gap, eps**2)),
        "rho^2 for rho": Inexact(lambda rho, gap, eps: predictions.drift_error_range(rho**2, gap, eps)),
        "1 - rho for rho": Inexact(lambda rho, gap, eps: predictions.drift_error_range(1 - rho, gap, eps)),
        "half the squared norm": Inexact(loss=lambda b, y, a, beta: objective.blended_loss(b, y, a, beta) / 2),
    },
    conditions=f"{TRAINED}; linear path, {TWO}; {CONSTANT}; {SHORT} steps; {HELD_OUT} pairs and as many other "
    f"states, which leave an error of a few percent in eps",
    profile="full",
    seeds=1,
    axes=("temperature", "drift error"),
    uses={"held_out": FromRegistry(_held_out_networks)},
)
def distance_from_error_range(
    subject: Inexact, generator: Generator, *, held_out: Callable[..., HeldOut]
) -> Measurement:
    """The distance of the drift error from its range, relative to the range's end."""
    seed, worst = draw_seed(generator), -math.inf
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


# --- T8 ---------------------------------------------------------------------------------------------------------------


def _resetting(loop: Steps) -> Callable[[int], float]:
    """The loop's temperatures; each stage's anchor becomes the end of the last one (theory, T18)."""
    temperature, temperatures = loop.temperature, set[float]()

    def changed(step: int) -> float:
        beta = temperature(step)
        if temperatures and beta not in temperatures:
            loop.anchor = FrozenAnchor(loop.drift)
        temperatures.add(beta)
        return beta

    return changed


@claim(
    "T08-gradual-steps-trained",
    statement="At the ends of a stepwise schedule's stages the trained network lies on the segment from b_pre to its "
    "end, in steps of |rho_(k+1) - rho_k| |Delta|, the first (1 - rho_0) |Delta|; as far apart are networks of "
    "equal seeds at successive temperatures.",
    reference="theory, T8 and T18",
    subject=Prediction(predictions.step_between_optima),
    bound=order(0.1),
    mutants={
        "anchor that shares the weights": Prediction(predictions.step_between_optima, SHARED_WEIGHTS),
        "anchor reset at each stage": Prediction(predictions.step_between_optima, tampered("temperature", _resetting)),
        "squared retentions": Prediction(
            lambda before, after, gap: predictions.step_between_optima(before**2, after**2, gap)
        ),
    },
    conditions=f"{TRAINED}; linear path, {TWO}; temperatures {', '.join(f'{beta:g}' for beta in STAGES)}, {STAGE} "
    f"steps each; moving average of the weights; "
    f"and networks of equal seeds at {', '.join(f'{beta:g}' for beta in TEMPERATURES)} and 0, {STEPS} steps each",
    profile="full",
    seeds=1,
    axes=("stage", "step of the network"),
    scales=("linear", "linear"),
    uses={"study": FromRegistry(linear_study)},
)
def distance_from_segment(subject: Prediction, generator: Generator, *, study: Study) -> Measurement:
    """The steps between the networks at the ends of the stages, and their distance from the straight segment."""
    seed, worst = draw_seed(generator), 0.0
    lines: dict[str, Line] = {}
    schedule = study.registry.create("schedule", "stepwise", temperatures=STAGES)
    retentions = [1.0, *(rho_of(beta) for beta in STAGES)]
    train = Train(steps=STAGE * len(STAGES), batch_size=BATCH, learning_rate=2e-3, clip=None, ema=0.99)
    for d, coupling in PROBLEMS:
        problem = study.problem(d, coupling, seed, generator.device)
        at = draw_states(problem, study.path, STATES, stream(seed, "states", d))
        loop = study.loop(problem, subject.build, schedule, train)
        drifts = [problem.pretrained(at.t, at.x)]
        for _, steps in itertools.groupby(range(train.steps), key=lambda step: step // STAGE):
            take_steps(loop, steps)
            drifts.append(loop.ema(at.t, at.x))
        last = drifts[-1]
        delta = drifts[0] - last
        gap = norm(delta)
        lengths = [norm(one - other) for one, other in itertools.pairwise(drifts)]
        predicted = [subject.predicted(one, other, gap) for one, other in itertools.pairwise(retentions)]
        aside = [norm(b - last - rho * delta) / gap for rho, b in zip(retentions, drifts, strict=True)]
        worst = max(worst, *aside, *(abs(one / other - 1) for one, other in zip(lengths, predicted, strict=True)))
        hot_first = sorted(subject.temperatures, reverse=True)
        with torch.no_grad():
            optima = [study.network(problem, subject.build, beta)(at.t, at.x) for beta in (*hot_first, 0.0)]
            whole = norm(problem.pretrained(at.t, at.x) - study.network(problem, build_loop, 0.0)(at.t, at.x))
        rhos = [*(rho_of(beta) for beta in hot_first), 0.0]
        for (one, other), (rho, later) in zip(itertools.pairwise(optima), itertools.pairwise(rhos), strict=True):
            worst = max(worst, abs(norm(one - other) / subject.predicted(rho, later, whole) - 1))
        stages = range(1, len(predicted) + 1)
        lines = lines or {"measured": (stages, lengths), "theory": (stages, predicted)}
    return Measurement(worst, lines)
