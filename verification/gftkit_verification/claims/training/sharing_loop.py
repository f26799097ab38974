"""Anchor sharing in the shipped loop: the mean of its gradients, their noise, and what the anchor is asked for."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from fractions import Fraction
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.registry import Registry
from gftkit.runs.schema import AnchorShare, Train
from gftkit.runtime.randomness import stream
from gftkit.theory.objective import Form
from gftkit.theory.predictions import sharing_noise
from gftkit.training.steps import Steps
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.claims.objective.gradients import random_weight
from gftkit_verification.claims.objective.gradients_trained import Bench
from gftkit_verification.claims.training.loop import tampered
from gftkit_verification.testbeds import slips
from gftkit_verification.testbeds.moments import on_cpu, rho_of, seed_of
from gftkit_verification.testbeds.problems import drawn_flow
from gftkit_verification.testbeds.slips import Trial
from gftkit_verification.testbeds.statistics import cross_fitted, student
from gftkit_verification.testbeds.trials import LinearModel, step_gradient, trial

Choice = tuple[Tensor | None, float]
"""The chosen samples and their share, as the loop draws them."""

DIMENSION, BATCH, STEPS = 4, 512, 40

CASES: tuple[tuple[Form, AnchorShare, float], ...] = (("penalty", 0.75, 0.5), ("blended", "retention", 7.0))
"""Form, share and temperature of the loops; at temperature 7 the retention is 7/8."""

CONDITIONS = (
    f"Gaussian flow, d = {DIMENSION}; a linear model whose weights rest, away from the anchor's; "
    f"batches of {BATCH}, {STEPS} steps; penalty form with share 3/4, blended form with share rho = 7/8."
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


def added_noise(
    make: Trial, registry: Registry, form: Form, share: AnchorShare, beta: float, generator: Generator
) -> Added:
    """What sharing changes in the gradients of a loop whose weights rest."""
    here, d = on_cpu(generator), DIMENSION
    bench = Bench(registry, drawn_flow(d, here), seed_of(here), generator.device)
    drift, pretrained = (LinearModel(d, weight=random_weight(LinearModel(d), here)) for _ in range(2))
    resting = Train(STEPS, BATCH, 1e-30, {"name": "sgd"}, clip=None, ema=0.9)
    whole = bench.loop(trial, drift, beta, resting, form=form, pretrained=pretrained)
    shared = bench.loop(make, drift, beta, resting, form=form, pretrained=pretrained, anchor_share=share)
    seen: list[tuple[Tensor, Tensor]] = []
    watch(whole, lambda t, x: seen.append((t.cpu(), x.cpu())))
    gap = drift.weight.detach() - pretrained.weight.detach()
    rho = rho_of(beta)
    count = math.ceil(BATCH * (rho if share == "retention" else float(share)))
    noise = sharing_noise(beta if form == "penalty" else rho, count, BATCH, 1.0)
    white, squares = [], []
    for step in range(STEPS):
        difference = (step_gradient(shared, step) - step_gradient(whole, step)).cpu()
        phi = drift.features(*seen[-1])
        pulls = 2 * (phi @ gap.mT)[:, :, None] * phi[:, None] / d  # of each sample; the loss is divided by d
        values, vectors = torch.linalg.eigh(noise * torch.cov(pulls.flatten(1).mT))
        kept = values > 1e-9 * values[-1]  # gap pulls^T is symmetric: some directions have no noise
        inside = (difference @ vectors)[kept] / values[kept].sqrt()
        white.append(vectors[:, kept] @ inside)
        squares.append(inside.square().mean())
    return Added(count / BATCH, torch.stack(white), torch.stack(squares))


def watch(loop: Steps, look: Callable[[Tensor, Tensor], Any]) -> None:
    """Have a loop's anchor show where it is evaluated."""
    anchor = loop.anchor
    assert anchor is not None

    def watched(t: Tensor, x: Tensor) -> Tensor:
        look(t, x)
        return anchor(t, x)

    loop.anchor = watched  # type: ignore[assignment]


def drawn(change: Callable[[Steps, int, Tensor, float], Choice]) -> Trial:
    """The loop with another choice: a function of the loop, the step, and what was chosen, with its share."""

    def value(loop: Steps) -> Callable[[int, float], Choice]:
        given = loop._anchor_subset

        def chosen(step: int, beta: float) -> Choice:
            found, share = given(step, beta)
            return (found, share) if found is None else change(loop, step, found, share)

        return chosen

    return tampered("_anchor_subset", value)


def _latest(loop: Steps, step: int, chosen: Tensor, share: float) -> Choice:
    """The samples of the largest t, where the gap is another one."""
    times = loop.times(loop.config.train.batch_size, stream(loop.config.seed, "time", step, device=loop.device))
    return times.topk(len(chosen)).indices.sort().values.cpu(), share


def _with_replacement(loop: Steps, step: int, chosen: Tensor, share: float) -> Choice:
    """A sample may be chosen twice."""
    generator = stream(loop.config.seed, "anchor", step)
    return torch.randint(loop.config.train.batch_size, (len(chosen),), generator=generator), share


def _not_divided(*args: Any, **options: Any) -> Steps:
    """The loop that takes the penalty form's size where the anchor is shared."""
    return slips.penalty_form(*args, **options) if options["form"] == "blended" else trial(*args, **options)


NOT_WEIGHTED = drawn(lambda loop, step, chosen, share: (chosen, 1.0))  # noqa: ARG005
NOTHING = drawn(lambda loop, step, chosen, share: (chosen[:0], share))  # noqa: ARG005

BIASED = {
    "not divided by the share": NOT_WEIGHTED,
    "the latest times chosen": drawn(_latest),
    "nothing chosen": NOTHING,
    "blended form not divided": _not_divided,
    "rho for beta": slips.rho_for_beta,
}

NOISY = {
    "chosen with replacement": drawn(_with_replacement),
    "not divided by the share": NOT_WEIGHTED,
    "nothing chosen": NOTHING,
    "blended form not divided": _not_divided,
}

MISCOUNTED = {
    "rounded down": drawn(lambda loop, step, chosen, share: (chosen[:-1], share)),  # noqa: ARG005
    "the whole batch": drawn(lambda loop, step, chosen, share: (None, share)),  # noqa: ARG005
    "share of the rest": drawn(lambda loop, step, chosen, share: (chosen, 1 - share)),  # noqa: ARG005
    "not divided by the share": NOT_WEIGHTED,
}


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""

    def unbiased(make: Trial, generator: Generator) -> float:
        together = torch.cat([added_noise(make, registry, *case, generator).white for case in CASES], 1)
        return cross_fitted(together, torch.zeros(together.shape[1]))

    def noise(make: Trial, generator: Generator) -> Measurement:
        found = [added_noise(make, registry, *case, generator) for case in CASES]
        shares, theory = [each.share for each in found], [1 / each.share - 1 for each in found]
        measured = [scale * float(each.squares.mean()) for scale, each in zip(theory, found, strict=True)]
        lines = {"measured": (shares, measured), "n/k - 1": (shares, theory)}
        return Measurement(student(torch.stack([each.squares for each in found]).mean(0), 1.0), lines)

    def evaluations(make: Trial, generator: Generator) -> float:
        here = on_cpu(generator)
        return max(_miscounted(make, registry, *case, here, generator.device) for case in COUNTS)

    yield Claim(
        "sharing-loop-unbiased",
        "In the shipped loop, with either form, the gradient with a shared anchor is in the mean that with a whole "
        "one.",
        "theory, anchor sharing",
        trial,
        unbiased,
        statistical(degrees=STEPS - STEPS // 2 - 1),
        BIASED,
        CONDITIONS,
        seeds=1,
    )
    yield Claim(
        "sharing-loop-noise",
        "In the shipped loop sharing adds the covariance s^2 (1/k - 1/n) Cov(grad |b - b_pre|^2), s = beta in the "
        "penalty form and rho in the blended one.",
        "theory, anchor sharing",
        trial,
        noise,
        statistical(degrees=STEPS - 1),
        NOISY,
        CONDITIONS,
        seeds=1,
        axes=("share k/n", "added variance, in units of s^2 Cov/n"),
        scales=("linear", "linear"),
    )
    yield Claim(
        "sharing-loop-evaluations",
        "For each step the anchor is evaluated at exactly k = ceil(share n) samples, and the share logged is k/n.",
        "theory, anchor sharing",
        trial,
        evaluations,
        exact(),
        MISCOUNTED,
        "Batches of 10 to 100, in one part and in two; shares 7/100 and 1/10, and the retentions 3/10 and 1/51.",
        seeds=1,
    )


def _miscounted(
    make: Trial,
    registry: Registry,
    batch: int,
    beta: Fraction,
    share: Fraction | None,
    here: Generator,
    device: torch.device,
) -> float:
    """By how many evaluations of the anchor a step is off; counted over two, and by the share that each logs."""
    worst = 0.0
    wanted = math.ceil(batch * (beta / (1 + beta) if share is None else share))
    bench = Bench(registry, drawn_flow(2, here), seed_of(here), device)
    for parts in (1, 2):
        train = Train(2, batch, 1e-3, {"name": "sgd"}, ema=0.9, accumulate=parts)
        option: AnchorShare = "retention" if share is None else float(share)
        loop = bench.loop(make, LinearModel(2), float(beta), train, anchor_share=option)
        asked: list[int] = []
        watch(loop, lambda t, x: asked.append(len(x)))  # noqa: ARG005, B023
        logged = [loop.take(step)["anchor_share"] for step in range(2)]
        worst = max(worst, abs(sum(asked) / 2 - wanted), *(abs(share * batch - wanted) for share in logged))
    return worst
