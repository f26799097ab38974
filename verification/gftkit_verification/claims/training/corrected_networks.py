"""Trained networks corrected by their measured retention: a lag undone (T20), overfitting held back in time (T21)."""

import copy
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache, partial
from itertools import pairwise

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Batch
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.runtime.randomness import stream
from gftkit.theory.objective import blend, temperature_of
from gftkit.theory.retention_fit import RetentionFit, fit_retention
from gftkit.verify.claims import Line, Measurement, order
from gftkit.verify.declaration import FromRegistry, claim
from gftkit_verification.testbeds.loops.networks import (
    BATCH,
    FINETUNING,
    PROBLEMS,
    TRAINED,
    TWO,
    NetworkProblem,
    Study,
    draw_states,
    linear_study,
    take_steps,
)
from gftkit_verification.testbeds.loops.shipped import build_loop
from gftkit_verification.testbeds.loops.side_by_side import Finite
from gftkit_verification.testbeds.measuring.statistics import student_t
from gftkit_verification.testbeds.problems.moments import draw_seed

BATCHES, PAIRS = 20, 20_000
"""Of pairs that choose a retention; as many other states measure the drift error."""
STOP, LATER = 40, 150
"""Steps after which a run is stopped early, and another one later."""
SLOW = Train(steps=300, batch_size=BATCH, learning_rate=3e-4, clip=None)
"""So slow that what is left of the gap is a lag: fast steps leave noise instead."""

SIGNIFICANT = 5.0
"""Standard errors, over states."""
WHOLE = (0.0, 1.0)
"""One part of flow time."""

FEW, LONG = 12, 1000
"""Points that are overfitted, and steps."""
EDGES = (0.0, 0.2, 0.4, 0.6, 0.75, 0.9, 1.0)
PARTS = len(EDGES) - 1

Fit = Callable[..., RetentionFit]
Mixed = Callable[[Sequence[float]], float]
"""Retentions, one for each part of flow time -> drift error^2 of the blend, by the oracle."""


@dataclass(frozen=True)
class Drifts:
    """Drifts at the states of pairs: on their device, without gradients."""

    t: Tensor
    label: Tensor
    b_tgt: Tensor
    anchor: Tensor
    drift: Tensor

    def fit(self, fit: Fit, edges: Sequence[float]) -> RetentionFit:
        """The best retention by the pairs."""
        return fit(self.drift, self.label, self.anchor, self.t, batches=BATCHES, edges=edges)

    def error(self, retention: Sequence[float], edges: Sequence[float] = WHOLE) -> float:
        """E|b + r(t) (b_pre - b) - b_tgt|^2."""
        return float(self.errors(retention, edges).mean())

    def errors(self, retention: Sequence[float], edges: Sequence[float] = WHOLE) -> Tensor:
        """Its square at each state, (n,) of float64."""
        inner = torch.tensor(edges[1:-1], dtype=self.t.dtype, device=self.t.device)
        rho = torch.tensor(retention, dtype=self.t.dtype, device=self.t.device)[torch.bucketize(self.t, inner)]
        mixed = blend(self.drift, self.anchor, temperature_of(rho))
        return (mixed - self.b_tgt).square().sum(1).double()

    def least(self, edges: Sequence[float] = WHOLE) -> list[float]:
        """The retentions of the least error by the oracle."""
        exact = fit_retention(self.drift, self.b_tgt, self.anchor, self.t, batches=BATCHES, edges=edges)
        return [estimate.value for estimate in exact.by_time]


def drifts_at(
    study: Study, problem: NetworkProblem, network: Callable[[Tensor, Tensor], Tensor], generator: Generator
) -> Drifts:
    """A network and its anchor at fresh pairs of the target's law."""
    at = draw_states(problem, study.path, PAIRS, generator)
    with torch.no_grad():
        return Drifts(at.t, at.label, at.b_tgt, problem.pretrained(at.t, at.x), network(at.t, at.x))


# --- T20 --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Stopped:
    """Pairs that choose, and other states that measure, of a run that stopped early, and of one that stopped later."""

    chosen: Drifts
    measured: Drifts
    later: Drifts


def _stop(study: Study, seed: int, index: int, device: torch.device) -> Stopped:
    d, coupling = PROBLEMS[index]
    problem = study.problem(d, coupling, seed, device)
    loop = study.loop(problem, build_loop, 0.0, SLOW)
    at = partial(drifts_at, study, problem)
    take_steps(loop, range(STOP))
    chosen, measured = (at(loop.drift, stream(seed, name, d)) for name in ("chosen", "measured"))
    take_steps(loop, range(STOP, LATER))
    return Stopped(chosen, measured, at(loop.drift, stream(seed, "chosen", d)))


def _stopped_networks(registry: Registry) -> Callable[..., Stopped]:
    """A problem's run, trained once for all mutants."""
    return lru_cache(4)(partial(_stop, linear_study(registry)))


@dataclass(frozen=True)
class Correction:
    """The retention that corrects a stopped run: by the monitor's statistic at its pairs."""

    fit: Fit = fit_retention
    change: Callable[[float], float] = lambda r: r
    later: bool = False

    def retention(self, stopped: Stopped) -> float:
        """-c/(1 - c)."""
        pairs = stopped.later if self.later else stopped.chosen
        return self.change(pairs.fit(self.fit, WHOLE).constant.value)


def _of_the_average(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: object) -> RetentionFit:
    """The lag of weights that are half averaged with the start."""
    return fit_retention((drift + anchor) / 2, target, anchor, t, **options)  # type: ignore[arg-type]


@claim(
    "T20-lag-undone-trained",
    statement=(
        "A network of plain fine-tuning that was stopped early errs less, by the exact drift, blended at r = -c/(1 - "
        "c) < 0 with its measured lag c, and as little as at any other r."
    ),
    reference="theory, T20",
    subject=Correction(),
    bound=order(0.02),
    mutants={
        "the sign": Correction(change=lambda r: -r),
        "half of it": Correction(change=lambda r: r / 2),
        "c of a later stop": Correction(later=True),
        "lag of the average": Correction(fit=_of_the_average),
    },
    conditions=(
        f"{TRAINED}; linear path, {TWO}; temperature 0, learning rate {SLOW.learning_rate:g}, stopped after "
        f"{STOP} of {SLOW.steps} steps; {PAIRS} fresh pairs for the lag, and as many others for the error."
    ),
    profile="full",
    seeds=1,
    axes=("retention", "E|b - b_tgt|^2"),
    scales=("linear", "linear"),
    uses={"stopped": FromRegistry(_stopped_networks)},
)
def excess_error(subject: Correction, generator: Generator, *, stopped: Callable[..., Stopped]) -> Measurement:
    """(E(r) - E_min)/(E(0) - E_min) of the drift error^2 E; infinite where the error doesn't fall significantly."""
    seed, worst = draw_seed(generator), 0.0
    lines: dict[str, Line] = {}
    notes = []
    for index in range(len(PROBLEMS)):
        run = stopped(seed, index, generator.device)
        measured = run.measured
        r, best = subject.retention(run), measured.least()
        at, zero, least = (measured.error(one) for one in ([r], [0.0], best))
        worst = max(worst, (at - least) / (zero - least))
        if not best[0] < 0 or student_t(measured.errors([0.0]) - measured.errors([r])) < SIGNIFICANT:
            worst = math.inf
        grid = [best[0] * k / 4 for k in range(-1, 9)]
        lines = lines or {
            "measured": ([r], [at]),
            "any retention": (grid, [measured.error([one]) for one in grid]),
        }
        notes.append(f"r = {r:.3g}: error {math.sqrt(zero):.3g} -> {math.sqrt(at):.3g}")
    return Measurement(worst, lines, "; ".join(notes))


# --- T21 --------------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Overfitted:
    """A network overfitted to a few points: at held-out pairs, at pairs of its points, and at states for the error."""

    held_out: Drifts
    trained_on: Drifts
    measured: Drifts


def _overfit(study: Study, seed: int, device: torch.device) -> Overfitted:
    d, coupling = PROBLEMS[0]
    problem = study.problem(d, coupling, seed, device)
    points = problem.target.pairs(FEW, stream(seed, "points"))[1].float()
    loop = build_loop(
        registry=study.registry,
        drift=copy.deepcopy(problem.pretrained),
        data=Finite(Batch(points)),
        source=lambda n, generator: problem.target.starts(n, generator).float(),
        path=study.path,
        coupling=study.registry.create("coupling", "independent"),
        schedule=0.0,
        train=replace(FINETUNING, steps=LONG, batch_size=BATCH),
        seed=seed,
        device=device.type,
    )
    take_steps(loop, range(LONG))
    at = partial(drifts_at, study, problem, loop.drift.eval())
    # Pairs of the points: x1 one of them, and the drift, anchor and label at their states.
    generator = stream(seed, "own")
    x1 = points[torch.randint(FEW, (PAIRS,), generator=generator)]
    x0 = problem.target.starts(PAIRS, generator).float()
    t = torch.rand(PAIRS, generator=generator)
    t, x, label = (v.to(device) for v in (t, (1 - t[:, None]) * x0 + t[:, None] * x1, x1 - x0))
    with torch.no_grad():
        own = Drifts(t, label, label, problem.pretrained(t, x), loop.drift(t, x))
    return Overfitted(at(stream(seed, "held out")), own, at(stream(seed, "measured")))


def _overfitted_network(registry: Registry) -> Callable[..., Overfitted]:
    """The network, trained once for all mutants."""
    return lru_cache(4)(partial(_overfit, linear_study(registry)))


@dataclass(frozen=True)
class ByTime:
    """The retentions by flow time that held-out pairs choose."""

    choose: Callable[[Overfitted], Sequence[float]]


def _chosen(run: Overfitted) -> list[float]:
    return [estimate.value for estimate in run.held_out.fit(fit_retention, EDGES).by_time]


def _constant(run: Overfitted) -> list[float]:
    return [run.held_out.fit(fit_retention, EDGES).constant.value] * PARTS


@claim(
    "T21-time-by-time-trained",
    statement=(
        "r*(t) of held-out pairs lowers the drift error of a network that overfits a few points, by the exact drift, "
        "more than the best constant does, and about as much as any profile can."
    ),
    reference="theory, T21",
    subject=ByTime(_chosen),
    bound=order(0.03),
    mutants={
        "the best constant": ByTime(_constant),
        "flow time reversed": ByTime(lambda run: _chosen(run)[::-1]),
        "the sign": ByTime(lambda run: [-rho for rho in _chosen(run)]),
        "pairs that were trained on": ByTime(
            lambda run: [estimate.value for estimate in run.trained_on.fit(fit_retention, EDGES).by_time]
        ),
    },
    conditions=(
        f"{TRAINED}; linear path, dimension 2, independent coupling; {FEW} points, {LONG} steps at temperature 0; "
        f"{PARTS} parts of flow time; {PAIRS} held-out pairs, and as many other states for the error."
    ),
    profile="full",
    seeds=1,
    axes=("flow time", "r*(t)"),
    scales=("linear", "linear"),
    uses={"overfitted": FromRegistry(_overfitted_network)},
)
def regret(subject: ByTime, generator: Generator, *, overfitted: Callable[..., Overfitted]) -> Measurement:
    """(E(r) - E_min)/(E(0) - E_min) of the drift error^2 E; infinite where the best constant would be better."""
    run = overfitted(draw_seed(generator), generator.device)
    chosen, best = subject.choose(run), run.measured.least(EDGES)
    at, zero, constant, least = (
        run.measured.error(rho, EDGES) for rho in (chosen, [0.0] * PARTS, _constant(run), best)
    )
    middles = [(left + right) / 2 for left, right in pairwise(EDGES)]
    lines: dict[str, Line] = {"measured": (middles, chosen), "by the exact drift": (middles, best)}
    note = f"error {math.sqrt(zero):.3g}, by the best constant {math.sqrt(constant):.3g}, by r*(t) {math.sqrt(at):.3g}"
    value = (at - least) / (zero - least) if at <= constant else math.inf
    return Measurement(value, lines, note)
