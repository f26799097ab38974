"""The shipped training loop past zero and with a profile: it reaches b_tgt + rho(t) Delta in its class (T19)."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path, Profile
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import AnchorShare, Train
from gftkit.theory.temperature import mean_retention
from gftkit.training.steps import Steps
from gftkit.verify.claims import Measurement, statistical
from gftkit.verify.declaration import REGISTRY, claim, registered
from gftkit_verification.claims.training.linear_models import (
    BURN,
    DIVERGED,
    LinearProblem,
    draw_problem,
    iterates,
)
from gftkit_verification.testbeds.loops.shipped import LinearModel, LoopBuilder, build_loop, fit_regression
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.flows import COUPLINGS
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems.retentions import Retentions
from gftkit_verification.testbeds.slips.loops import tampered

BATCH, STEPS = 512, 44
TESTED = STEPS - BURN - (STEPS - BURN) // 2
"""Steps along which ``cross_fitted_t`` tests."""


@dataclass(frozen=True)
class Case:
    """A schedule's end, and the problem that is trained with it.

    Attributes:
        name: of the profile.
        options: of the profile.
        jumps: flow times at which its retention jumps.
        degree: of the model's features in t.
        anchor_share: of the loop.
    """

    name: str
    options: Mapping[str, object]
    jumps: Sequence[float] = ()
    degree: int = 1
    anchor_share: AnchorShare = 1.0


CASES = (
    Case("constant", {"value": -0.9}, degree=0),
    Case("linear", {"early": -1.2, "late": 0.4}),
    Case("table", {"times": [0.2, 0.8], "values": [0.4, -0.9]}, jumps=(0.2, 0.8), degree=0, anchor_share=0.75),
)


def _optimum(case: Case, problem: LinearProblem, profile: Profile) -> Tensor:
    """The least-squares fit of the labels (1 - rho(t)) y + rho(t) W_pre phi: (int (1 - rho) E[y phi^T] + W_pre int rho
    E[phi phi^T]) (int E[phi phi^T])^-1, (d, p)."""
    model = LinearModel(len(problem.anchor), problem.degree, problem.anchor)
    part = fit_regression(problem.target, model, weight=lambda t: 1 - profile.retention(t), jumps=case.jumps)
    moment = part.weight @ part.gram + problem.anchor @ (problem.fit.gram - part.gram)
    return torch.linalg.solve(problem.fit.gram, moment, left=False)


def at_profile(change: Callable[[Profile, Tensor], Tensor]) -> LoopBuilder:
    """``build_loop``, with a loop that takes the schedule's retentions for others."""

    def value(loop: Steps) -> Callable[[int], Profile | None]:
        shipped = loop.profile

        def changed(step: int) -> Profile:
            profile = shipped(step) or _constant(loop.temperature(step))
            return Retentions(lambda t: change(profile, t))

        return changed

    return tampered("profile", value)


def _constant(beta: float) -> Profile:
    return Retentions(lambda t: torch.full_like(t, beta / (1 + beta)))


MUTANTS = {
    "profile at 1 - t": at_profile(lambda profile, t: profile.retention(1 - t)),
    "mean retention for all t": at_profile(lambda profile, t: torch.full_like(t, mean_retention(profile))),
    "beta for rho": at_profile(lambda profile, t: profile.retention(t) / (1 - profile.retention(t))),
    "the retention's sign": at_profile(lambda profile, t: -profile.retention(t)),
    "0 for what is below": at_profile(lambda profile, t: profile.retention(t).clamp(min=0)),
}


@claim(
    "T19-training-loop",
    statement=(
        "A step of the shipped loop on W phi(t, x) leads in the mean to the least-squares fit of (1 - rho(t)) b_t(x|z) "
        "+ rho(t) b_pre, the optimum in its class, also where the retention depends on flow time or is below 0."
    ),
    reference="theory, T19",
    subject=build_loop,
    bound=statistical(degrees=TESTED - 1),
    mutants=MUTANTS,
    conditions=(
        f"linear path; schedule stepwise at temperature 0 that ends at a retention of -0.9; at a line from -1.2 to "
        f"0.4; and at a table from 0.4 to -0.9, with the anchor at 3/4 of a batch; "
        f"dimensions 2 and 3; independent and optimal coupling; features (1, x) and (1, t, x, t x); SGD, {STEPS} steps "
        f"of {BATCH} pairs"
    ),
    seeds=1,
    axes=("case", "share of the way from W_pre to the optimum"),
    scales=("linear", "linear"),
    uses={"registry": REGISTRY, "path": registered("path", "linear")},
)
def expected_step(make: LoopBuilder, generator: Generator, *, registry: Registry, path: Path) -> Measurement:
    """The mean landing of a step, less the optimum; the same step of every case makes one sample."""
    samples, shares = [], []
    for k, case in enumerate(CASES):
        problem = draw_problem(2 + k % 2, case.degree, COUPLINGS[k // 2 % 2], path, 0.0, cpu_generator(generator))
        profile = registry.create("profile", case.name, **case.options)
        train = Train(STEPS, BATCH, problem.rate, {"name": "sgd"}, clip=None, ema=0.9)
        loop = problem.loop(
            make,
            registry,
            path=path,
            temperature=registry.create("schedule", "stepwise", temperatures=(0.0,), end=profile, ramp=1 / STEPS),
            train=train,
            seed=draw_seed(generator),
            device=generator.device,
            anchor_share=case.anchor_share,
        )
        weights, optimum = iterates(loop, STEPS), _optimum(case, problem, profile)
        root = torch.linalg.cholesky(problem.fit.gram)
        away = ((weights - optimum) @ root).flatten(1).norm(dim=1)
        if not bool((away < DIVERGED * away[0]).all()):  # its steps' noise would hide everything
            return Measurement(math.inf, note=f"the loop diverges with profile {case.name}")
        weights = weights[BURN:]
        newton = len(problem.anchor) / (2 * problem.rate) * torch.linalg.inv(problem.fit.gram)
        landing = weights[:-1] + (weights[1:] - weights[:-1]) @ newton
        samples.append(((landing - optimum) @ root).flatten(1))
        way = (optimum - problem.anchor) @ root
        shares.append(float(((landing.mean(0) - problem.anchor) @ root * way).sum() / way.square().sum()))
    together = torch.cat(samples, 1)
    count = range(len(CASES))
    lines = {"measured": (count, shares), "theory": (count, [1.0] * len(CASES))}
    return Measurement(cross_fitted_t(together, torch.zeros(together.shape[1])), lines)
