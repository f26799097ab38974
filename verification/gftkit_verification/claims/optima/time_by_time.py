"""The best retention time by time, against the best constant: T21 on closed forms."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from itertools import pairwise

import torch
from torch import Generator, Tensor

from gftkit.data.pairing import pair
from gftkit.kernel.contracts import Coupling, Path
from gftkit.theory import flow as paths
from gftkit.theory.objective import blend, temperature_of
from gftkit.theory.predictions import profile_gain
from gftkit.theory.retention_fit import RetentionFit, fit_retention
from gftkit.verify import Line, Measurement, claim, claim_for_each, exact, registered
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.components import each_registered
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, random_covariance, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator

DIMENSIONS = (2, 3)
BATCHES, SIZE = 2, 60
EDGES = (0.0, 0.2, 0.45, 0.7, 1.0)
PARTS = len(EDGES) - 1
DRAWN = 8
"""Other profiles that are tried."""


@dataclass(frozen=True)
class ByTime:
    """The estimate of the best retention by flow time, its gain over the best constant, and the blend."""

    fit: Callable[..., RetentionFit] = fit_retention
    gain: Callable[[Sequence[float], Sequence[float]], float] = profile_gain
    blend: Callable[[Tensor, Tensor, Tensor], Tensor] = blend


@dataclass(frozen=True)
class Fitted:
    """A fit at some states, which are all there are: half of it lags, and half of it is off at random."""

    t: Tensor
    target: Tensor
    anchor: Tensor
    drift: Tensor
    weight: Tensor

    def error(self, subject: ByTime, retention: Sequence[float]) -> float:
        """E w |b + r(t) (b_pre - b) - b_tgt|^2 of a retention for each part of flow time."""
        part = torch.bucketize(self.t, torch.tensor(EDGES[1:-1], dtype=torch.float64), right=True)
        rho = torch.tensor(retention, dtype=torch.float64)[part]
        mixed = subject.blend(self.drift, self.anchor, temperature_of(rho))
        return float((self.weight * (mixed - self.target).square().sum(1)).mean())


def _draw_mixture(path: Path, d: int, generator: Generator) -> MixtureFlow:
    means = 2 * torch.randn(3, d, generator=generator, dtype=torch.float64)
    covs = torch.stack([random_covariance(d, generator) / 4 for _ in means])
    origin, eye = torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64)
    return MixtureFlow(path, origin, eye, torch.tensor([0.5, 0.3, 0.2], dtype=torch.float64), means, covs)


def draw_fits(path: Path, generator: Generator) -> Iterator[Fitted]:
    """For Gaussian flows of both couplings, and for mixtures, in each dimension."""
    for d in DIMENSIONS:
        for coupling in (*COUPLINGS, None):
            t = torch.rand(BATCHES * SIZE, generator=generator, dtype=torch.float64)
            zeta = torch.randn(len(t), d, generator=generator, dtype=torch.float64)
            if coupling is None:
                one, other = (_draw_mixture(path, d, generator) for _ in range(2))
                x = (1.5 - t[:, None]) * torch.randn(len(t), d, generator=generator, dtype=torch.float64)
                target, anchor = one.velocity(t, x), other.velocity(t, x)
            else:
                flow = draw_flow(d, generator, coupling)
                x = paths.sample(path, t, *flow.pairs(len(t), generator), None)
                target, anchor = flow.velocity(t, x), retarget(flow, generator).velocity(t, x)
            lag = 0.5 * torch.cos(2 * torch.pi * t)
            drift = target + lag[:, None] * (anchor - target) + t[:, None] ** 2 * zeta
            yield Fitted(t, target, anchor, drift, 0.5 + t)


def _fit(change: Callable[[RetentionFit], RetentionFit]) -> Callable[..., RetentionFit]:
    return lambda *values, **options: change(fit_retention(*values, **options))


def _at_reversed_times(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: object) -> RetentionFit:
    return fit_retention(drift, target, anchor, 1 - t, **options)  # type: ignore[arg-type]


def _without_weight(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: object) -> RetentionFit:
    return fit_retention(drift, target, anchor, t, **{**options, "weight": None})  # type: ignore[arg-type]


def _plain_variance(best: Sequence[float], weights: Sequence[float]) -> float:
    mean = sum(best) / len(best)
    return sum((rho - mean) ** 2 for rho in best) / len(best) * sum(weights)


def _about_plain_mean(best: Sequence[float], weights: Sequence[float]) -> float:
    return profile_gain(best, weights, [sum(best) / len(best)] * len(best))


SLIPS = {
    "flow time reversed": ByTime(fit=_at_reversed_times),
    "weight left out": ByTime(fit=_without_weight),
    "the sign": ByTime(fit=_fit(lambda fit: RetentionFit(fit.edges, -fit.along, fit.moved))),
    "parts not weighted": ByTime(gain=_plain_variance),
    "about the plain mean": ByTime(gain=_about_plain_mean),
    "fit and anchor swapped": ByTime(blend=lambda drift, anchor, beta: blend(anchor, drift, beta)),
}


@claim(
    "T21-time-by-time",
    statement=(
        "r*(t) = E<b_hat - b_tgt, b_hat - b_pre>/E|b_hat - b_pre|^2 has the least drift error of all profiles, and "
        "lowers the best constant's by int w (r*(t) - r)^2 E|b_hat - b_pre|^2 dt; any other profile's by the same with "
        "it for r."
    ),
    reference="theory, T21",
    subject=ByTime(),
    bound=exact(1e-9),
    mutants=SLIPS,
    conditions=(
        f"{BATCHES * SIZE} states of Gaussian flows, both couplings, and of mixtures, d = 2, 3, as the population; "
        f"fits with a lag of 0.5 cos(2 pi t) and noise that grows as t^2; {PARTS} parts of flow time, weight 1/2 + t; "
        f"{DRAWN} other profiles."
    ),
    seeds=1,
    axes=("flow time", "r*(t)"),
    scales=("linear", "linear"),
    uses={"path": registered("path", "linear")},
)
def gain_difference(subject: ByTime, generator: Generator, *, path: Path) -> Measurement:
    """The differences of errors from the predicted gain, relative to the error; infinite where a profile is better."""
    generator, worst = cpu_generator(generator), 0.0
    lines: dict[str, Line] = {}
    for fitted in draw_fits(path, generator):
        difference, best = compare(subject, fitted, generator)
        worst = max(worst, difference)
        lines = lines or {"measured": ([(a + b) / 2 for a, b in pairwise(EDGES)], best)}
    return Measurement(worst, lines)


def compare(subject: ByTime, fitted: Fitted, generator: Generator) -> tuple[float, list[float]]:
    """The largest difference of an error from its prediction by the gain, and r* of each part."""
    fit = subject.fit(
        fitted.drift, fitted.target, fitted.anchor, fitted.t, batches=BATCHES, edges=EDGES, weight=fitted.weight
    )
    best, weights = [estimate.value for estimate in fit.by_time], fit.weights.tolist()
    least = fitted.error(subject, best)
    constant = fitted.error(subject, [fit.constant.value] * PARTS)
    worst = abs(constant - least - subject.gain(best, weights)) / constant
    for _ in range(DRAWN):
        other = (0.7 * torch.rand(PARTS, generator=generator, dtype=torch.float64) - 0.3).tolist()
        error = fitted.error(subject, other)
        gained = sum((one - r) ** 2 * weight for one, r, weight in zip(best, other, weights, strict=True))
        worst = math.inf if error < least else max(worst, abs(error - least - gained) / constant)
    return worst, best


@claim_for_each(
    each_registered("coupling", lambda coupling: isinstance(coupling, Coupling)),
    "T21-pairs-{name}",
    statement=(
        "Over the pairs of any coupling, whatever their labels' noise, r*(t) lowers the loss E w |b_hat - b_t|^2 of "
        "the best constant by int w (r*(t) - r)^2 E|b_hat - b_pre|^2 dt, and of any other profile likewise."
    ),
    reference="theory, T21",
    subject=lambda coupling: ByTime(),  # noqa: ARG005
    bound=exact(1e-9),
    mutants=SLIPS,
    conditions=(
        f"{BATCHES * SIZE} pairs of Gaussian laws, d = 2, 3, as the population; a lag of 0.5 cos(2 pi t); {PARTS} "
        f"parts of flow time, weight 1/2 + t; {DRAWN} other profiles."
    ),
    component="coupling:{name}",
    seeds=1,
    uses={"path": registered("path", "linear")},
    item_as="coupling",
)
def gain_by_pairs(subject: ByTime, generator: Generator, *, path: Path, coupling: Coupling) -> float:
    """``compare`` with conditional drifts for the target."""
    generator, worst = cpu_generator(generator), 0.0
    for d in DIMENSIONS:
        flow = draw_flow(d, generator)
        x0, x1 = flow.pairs(BATCHES * SIZE, generator)
        condition = x1[:, :1]  # for couplings that heed one
        x0 = x0[pair(coupling, x0, x1, generator, conditions={"c": condition})]
        t = torch.rand(len(x1), generator=generator, dtype=torch.float64)
        x, label = paths.sample(path, t, x0, x1, None), paths.drift(path, t, x0, x1, None)
        anchor, lag = retarget(flow, generator).velocity(t, x), 0.5 * torch.cos(2 * torch.pi * t)
        drift = flow.velocity(t, x) * (1 - lag[:, None]) + lag[:, None] * anchor
        worst = max(worst, compare(subject, Fitted(t, label, anchor, drift, 0.5 + t), generator)[0])
    return worst
