"""Anchor sharing in the shipped loop: the mean of its gradients, their noise, and the evaluations of the anchor."""

import math
from collections.abc import Callable
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Profile
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import AnchorShare, Train
from gftkit.runtime.randomness import stream
from gftkit.theory.objective import Form
from gftkit.theory.predictions import sharing_noise
from gftkit.training.steps import Steps
from gftkit.verify.claims import Measurement, exact, statistical
from gftkit.verify.declaration import REGISTRY, claim, registered
from gftkit_verification.testbeds.loops.fine_tunes import FineTunes
from gftkit_verification.testbeds.loops.shipped import LinearModel, LoopBuilder, build_loop, step_gradient
from gftkit_verification.testbeds.measuring.gradients import draw_weight
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t, student_t
from gftkit_verification.testbeds.problems.flows import draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed, rho_of
from gftkit_verification.testbeds.problems.retentions import Resting
from gftkit_verification.testbeds.slips import losses as slips
from gftkit_verification.testbeds.slips.loops import tampered

Choice = tuple[Tensor | None, float]
"""The chosen samples and their share, as the loop draws them."""

DIMENSION, BATCH, STEPS = 4, 512, 40

STEP = registered("profile", "step", early=-0.5, late=0.4, cut=0.5)
"""Retentions beyond the target early in flow time, and short of it late."""

CASES: tuple[tuple[Form, AnchorShare, float | None], ...] = (
    ("penalty", 0.75, None),
    ("blended", "retention", 7.0),
)
"""Form, share and temperature of the loops; at temperature 7 the retention is 7/8. None: by flow time, ``STEP``."""

CONDITIONS = (
    f"Gaussian flow, d = {DIMENSION}; a linear model whose weights rest, away from the anchor's; "
    f"batches of {BATCH}, {STEPS} steps; penalty form with share 3/4 at a retention of -0.5 for t < 0.5 and 0.4 after "
    f"it, blended form with share rho = 7/8."
)

COUNTS: tuple[tuple[int, Fraction, Fraction | None], ...] = (
    (10, Fraction(3, 7), None),
    (16, Fraction(1, 50), None),
    (100, Fraction(1), Fraction(7, 100)),
    (30, Fraction(1), Fraction(1, 10)),
)
"""Batch size, temperature, and share; None for the retention."""


@dataclass(frozen=True)
class Added:
    """Gradients with a shared anchor minus those with a whole one, at the same pairs, times and weights.

    Attributes:
        share: k/n.
        white: times the inverse root of the covariance predicted from that batch's samples, (steps, parameters).
        squares: squared norms over the rank of that covariance, (steps,): 1 in the mean.
    """

    share: float
    white: Tensor
    squares: Tensor


def measure_added_noise(
    make: LoopBuilder, registry: Registry, form: Form, share: AnchorShare, beta: float | Resting, generator: Generator
) -> Added:
    """The change of the gradients by sharing, in a loop whose weights rest."""
    here, d = cpu_generator(generator), DIMENSION
    bench = FineTunes(registry, draw_flow(d, here), draw_seed(here), generator.device)
    drift, pretrained = (LinearModel(d, weight=draw_weight(LinearModel(d), here)) for _ in range(2))
    resting = Train(STEPS, BATCH, 1e-30, {"name": "sgd"}, clip=None, ema=0.9)
    whole = bench.loop(build_loop, drift, beta, resting, form=form, pretrained=pretrained)
    shared = bench.loop(make, drift, beta, resting, form=form, pretrained=pretrained, anchor_share=share)
    states: list[tuple[Tensor, Tensor]] = []
    watch(whole, lambda t, x: states.append((t.cpu(), x.cpu())))
    gap = drift.weight.detach() - pretrained.weight.detach()
    count = math.ceil(BATCH * (strength_of(beta, "blended", torch.zeros(1)) if share == "retention" else float(share)))
    noise = sharing_noise(1.0, count, BATCH, 1.0)
    white, squares = [], []
    for step in range(STEPS):
        difference = (step_gradient(shared, step) - step_gradient(whole, step)).cpu()
        t, x = states[-1]
        phi = drift.features(t, x)
        strength = strength_of(beta, form, t)[:, None, None]
        pulls = 2 * strength * (phi @ gap.mT)[:, :, None] * phi[:, None] / d  # of each sample; the loss has 1/d
        values, vectors = torch.linalg.eigh(noise * torch.cov(pulls.flatten(1).mT))
        kept = values > 1e-9 * values[-1]  # gap pulls^T is symmetric: some directions have no noise
        inside = (difference @ vectors)[kept] / values[kept].sqrt()
        white.append(vectors[:, kept] @ inside)
        squares.append(inside.square().mean())
    return Added(count / BATCH, torch.stack(white), torch.stack(squares))


def strength_of(beta: float | Resting, form: Form, t: Tensor) -> Tensor:
    """s at flow times, (batch,): beta in the penalty form, rho in the blended one."""
    rho = torch.full_like(t, rho_of(beta)) if isinstance(beta, float) else beta.end.retention(t)
    return rho / (1 - rho) if form == "penalty" else rho


def watch(loop: Steps, look: Callable[[Tensor, Tensor], Any]) -> None:
    """Call a function with the states at which a loop's anchor is evaluated."""
    anchor = loop.anchor
    assert anchor is not None

    def watched(t: Tensor, x: Tensor) -> Tensor:
        look(t, x)
        return anchor(t, x)

    loop.anchor = watched  # type: ignore[assignment]


def altered_choice(change: Callable[[Steps, int, Tensor, float], Choice]) -> LoopBuilder:
    """The loop with another choice of samples: a function of the loop, the step, the samples and their share."""

    def value(loop: Steps) -> Callable[[int, float], Choice]:
        choose = loop._anchor_subset

        def altered(step: int, beta: float) -> Choice:
            samples, share = choose(step, beta)
            return (samples, share) if samples is None else change(loop, step, samples, share)

        return altered

    return tampered("_anchor_subset", value)


def _latest(loop: Steps, step: int, samples: Tensor, share: float) -> Choice:
    """The samples of the largest t, where the gap is another one."""
    times = loop.times(loop.config.train.batch_size, stream(loop.config.seed, "time", step, device=loop.device))
    return times.topk(len(samples)).indices.sort().values.cpu(), share


def _with_replacement(loop: Steps, step: int, samples: Tensor, share: float) -> Choice:
    """A sample may be chosen twice."""
    generator = stream(loop.config.seed, "anchor", step)
    return torch.randint(loop.config.train.batch_size, (len(samples),), generator=generator), share


def _not_divided(**options: Any) -> Steps:
    """The loop that takes the penalty form's size where the anchor is shared."""
    return slips.penalty_form(**options) if options["form"] == "blended" else build_loop(**options)


NOT_WEIGHTED = altered_choice(lambda loop, step, samples, share: (samples, 1.0))  # noqa: ARG005
NOTHING = altered_choice(lambda loop, step, samples, share: (samples[:0], share))  # noqa: ARG005

BIASED = {
    "not divided by the share": NOT_WEIGHTED,
    "the latest times chosen": altered_choice(_latest),
    "nothing chosen": NOTHING,
    "blended form not divided": _not_divided,
    "rho for beta": slips.rho_for_beta,
}

NOISY = {
    "chosen with replacement": altered_choice(_with_replacement),
    "not divided by the share": NOT_WEIGHTED,
    "nothing chosen": NOTHING,
    "blended form not divided": _not_divided,
}

MISCOUNTED = {
    "rounded down": altered_choice(lambda loop, step, samples, share: (samples[:-1], share)),  # noqa: ARG005
    "the whole batch": altered_choice(lambda loop, step, samples, share: (None, share)),  # noqa: ARG005
    "share of the rest": altered_choice(lambda loop, step, samples, share: (samples, 1 - share)),  # noqa: ARG005
    "not divided by the share": NOT_WEIGHTED,
}


def added_noises(make: LoopBuilder, registry: Registry, step: Profile, generator: Generator) -> list[Added]:
    """What sharing adds, in every case."""
    return [
        measure_added_noise(make, registry, form, share, Resting(step) if beta is None else beta, generator)
        for form, share, beta in CASES
    ]


@claim(
    "sharing-loop-unbiased",
    statement=(
        "In the shipped loop, with either form, the gradient with a shared anchor is in the mean that with a whole one."
    ),
    reference="theory, anchor sharing",
    subject=build_loop,
    bound=statistical(degrees=STEPS - STEPS // 2 - 1),
    mutants=BIASED,
    conditions=CONDITIONS,
    seeds=1,
    uses={"registry": REGISTRY, "step": STEP},
)
def mean_of_added_noise(make: LoopBuilder, generator: Generator, *, registry: Registry, step: Profile) -> float:
    """The standardised mean of what sharing adds to the gradients."""
    together = torch.cat([each.white for each in added_noises(make, registry, step, generator)], 1)
    return cross_fitted_t(together, torch.zeros(together.shape[1]))


@claim(
    "sharing-loop-noise",
    statement=(
        "In the shipped loop sharing adds the covariance s^2 (1/k - 1/n) Cov(grad |b - b_pre|^2), s = beta in the "
        "penalty form and rho in the blended one."
    ),
    reference="theory, anchor sharing",
    subject=build_loop,
    bound=statistical(degrees=STEPS - 1),
    mutants=NOISY,
    conditions=CONDITIONS,
    seeds=1,
    axes=("share k/n", "added variance, in units of s^2 Cov/n"),
    scales=("linear", "linear"),
    uses={"registry": REGISTRY, "step": STEP},
)
def size_of_added_noise(make: LoopBuilder, generator: Generator, *, registry: Registry, step: Profile) -> Measurement:
    """The standardised mean square of what sharing adds to the gradients, less its prediction."""
    added = added_noises(make, registry, step, generator)
    shares, theory = [each.share for each in added], [1 / each.share - 1 for each in added]
    measured = [scale * float(each.squares.mean()) for scale, each in zip(theory, added, strict=True)]
    lines = {"measured": (shares, measured), "n/k - 1": (shares, theory)}
    return Measurement(student_t(torch.stack([each.squares for each in added]).mean(0), 1.0), lines)


def _miscount(make: LoopBuilder, bench: FineTunes, batch: int, beta: Fraction, share: Fraction | None) -> float:
    """The error of a step's number of evaluations of the anchor; counted over two, and by the share that each logs."""
    worst = 0.0
    expected = math.ceil(batch * (beta / (1 + beta) if share is None else share))
    for parts in (1, 2):
        train = Train(2, batch, 1e-3, {"name": "sgd"}, ema=0.9, accumulate=parts)
        option: AnchorShare = "retention" if share is None else float(share)
        loop = bench.loop(make, LinearModel(2), float(beta), train, anchor_share=option)
        counts: list[int] = []
        watch(loop, lambda t, x: counts.append(len(x)))  # noqa: ARG005, B023
        logged = [loop.take(step)["anchor_share"] for step in range(2)]
        worst = max(worst, abs(sum(counts) / 2 - expected), *(abs(share * batch - expected) for share in logged))
    return worst


@claim(
    "sharing-loop-evaluations",
    statement=(
        "For each step the anchor is evaluated at exactly k = ceil(share n) samples, and the share logged is k/n."
    ),
    reference="theory, anchor sharing",
    subject=build_loop,
    bound=exact(),
    mutants=MISCOUNTED,
    conditions="Batches of 10 to 100, in one part and in two; shares 7/100 and 1/10, and the retentions 3/10 and 1/51.",
    seeds=1,
    uses={"registry": REGISTRY},
)
def miscount(make: LoopBuilder, generator: Generator, *, registry: Registry) -> float:
    """The largest error of the number of evaluations, and of the logged share, over batch sizes and shares."""
    here = cpu_generator(generator)
    worst = 0.0
    for batch, beta, share in COUNTS:
        bench = FineTunes(registry, draw_flow(2, here), draw_seed(here), generator.device)
        worst = max(worst, _miscount(make, bench, batch, beta, share))
    return worst


@dataclass(frozen=True)
class Kept:
    """A step's evaluations of the anchor at a profile.

    Attributes:
        t: all flow times of the batch.
        evaluated: those of the evaluations.
        logged: the share that the step logs.
    """

    t: Tensor
    evaluated: Tensor
    logged: float


def _evaluations(make: LoopBuilder, bench: FineTunes, profile: Profile, form: Form) -> Kept:
    train = Train(1, 64, 1e-3, {"name": "sgd"}, ema=0.9)
    loop = bench.loop(make, LinearModel(2), Resting(profile), train, form=form)
    seen: list[Tensor] = []
    watch(loop, lambda t, x: seen.append(t.cpu()))  # noqa: ARG005
    logged = loop.take(0)["anchor_share"]
    times = loop.times(64, stream(loop.config.seed, "time", 0, device=loop.device)).cpu()
    return Kept(times, torch.cat(seen) if seen else times[:0], logged)


def _all_but_one(loop: Steps, step: int, samples: Tensor, share: float) -> Choice:  # noqa: ARG001
    return samples[1:], share


def _whole(loop: Steps, step: int, samples: Tensor, share: float) -> Choice:  # noqa: ARG001
    return None, share


def _wrong_side(loop: Steps, step: int, samples: Tensor, share: float) -> Choice:  # noqa: ARG001
    every = torch.arange(loop.config.train.batch_size)
    return every[~torch.isin(every, samples)], share


@claim(
    "T19-loop-evaluations",
    statement="The anchor is evaluated at exactly those samples whose retention isn't 0, and their share is logged.",
    reference="theory, T19",
    subject=build_loop,
    bound=exact(),
    mutants={
        "one left out": altered_choice(_all_but_one),
        "the whole batch": altered_choice(_whole),
        "where the retention is 0": altered_choice(_wrong_side),
    },
    conditions=(
        "A batch of 64; profile step: 0 and, from t = 0.5, 0.4, penalty form; -0.4 and, from 0.3, 0, blended form."
    ),
    seeds=1,
    uses={
        "registry": REGISTRY,
        "late": registered("profile", "step", early=0.0, late=0.4, cut=0.5),
        "early": registered("profile", "step", early=-0.4, late=0.0, cut=0.3),
    },
)
def miscount_by_time(
    make: LoopBuilder, generator: Generator, *, registry: Registry, late: Profile, early: Profile
) -> float:
    """The number of samples whose evaluation is wrong, and the error of the logged share."""
    here, worst = cpu_generator(generator), 0.0
    bench = FineTunes(registry, draw_flow(2, here), draw_seed(here), generator.device)
    cases: tuple[tuple[Profile, Form], ...] = ((late, "penalty"), (early, "blended"))
    for profile, form in cases:
        kept = _evaluations(make, bench, profile, form)
        expected = kept.t[profile.retention(kept.t) != 0]
        wrong = set(expected.tolist()) ^ set(kept.evaluated.tolist())
        worst = max(worst, len(wrong), abs(kept.logged * len(kept.t) - len(expected)))
    return worst
