"""Going past the end undoes a lag: T20 on closed forms, and by pairs."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow as paths
from gftkit.theory.objective import blend, temperature_of
from gftkit.theory.predictions import best_retention, error_with_noise, lag_of
from gftkit.theory.retention_fit import RetentionFit, fit_retention
from gftkit.verify import Line, Measurement, claim, exact, registered, statistical
from gftkit_verification.testbeds.measuring.differences import relative_error
from gftkit_verification.testbeds.measuring.sgd import standardised_error
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator

DIMENSIONS = (2, 3, 5)
LAGS = (-0.3, 0.1, 0.4)
RETENTIONS = (-0.8, -0.2, 0.0, 0.4)
STATES = 50
BATCHES, SIZE = 60, 200
EDGES = (0.0, 0.25, 0.6, 1.0)

CONDITIONS = (
    f"{STATES} states of Gaussian flows as the population, d = 2, 3, 5, both couplings; lags "
    f"{', '.join(f'{lag:g}' for lag in LAGS)}."
)


@dataclass(frozen=True)
class Lagging:
    """The blend of a fit with its anchor, the predictions of its error and of its best retention, and the lag's."""

    blend: Callable[[Tensor, Tensor, Any], Tensor] = blend
    error: Callable[[float, float, float, float], float] = error_with_noise
    best: Callable[[float, float, float], float] = best_retention
    lag: Callable[[float], float] = lag_of


@dataclass(frozen=True)
class Population:
    """Flow times, target drift, anchor and a random direction at some states: all the states there are."""

    t: Tensor
    target: Tensor
    anchor: Tensor
    drawn: Tensor

    @property
    def gap(self) -> Tensor:
        """Delta, (n, d)."""
        return self.anchor - self.target

    def orthogonal(self, size: float) -> Tensor:
        """A drift of that norm with ``E<zeta, Delta> = 0``, (n, d)."""
        zeta = self.drawn - mean_product(self.drawn, self.gap) / mean_product(self.gap, self.gap) * self.gap
        return zeta * size / math.sqrt(mean_product(zeta, zeta))

    def error(self, drift: Tensor) -> float:
        """E|b - b_tgt|^2."""
        return mean_product(drift - self.target, drift - self.target)


def mean_product(left: Tensor, right: Tensor) -> float:
    """``E<left, right>``."""
    return float((left * right).sum(1).mean())


def draw_populations(path: Path, generator: Generator) -> Iterator[Population]:
    """One for each dimension and coupling."""
    for d in DIMENSIONS:
        for coupling in COUPLINGS:
            flow = draw_flow(d, generator, coupling)
            x0, x1 = flow.pairs(STATES, generator)
            t = torch.rand(STATES, generator=generator, dtype=torch.float64)
            x = paths.sample(path, t, x0, x1, None)
            drawn = torch.randn(STATES, d, generator=generator, dtype=torch.float64)
            yield Population(t, flow.velocity(t, x), retarget(flow, generator).velocity(t, x), drawn)


def least_at(error: Callable[[float], float]) -> float:
    """The place where a parabola is least, by its values at -1, 0 and 1/2."""
    r = torch.tensor([-1.0, 0.0, 0.5], dtype=torch.float64)
    values = torch.tensor([error(one) for one in r.tolist()], dtype=torch.float64)
    _, linear, square = torch.linalg.solve(torch.stack([r**0, r, r**2], 1), values).tolist()
    return -linear / (2 * square)


SWAPPED = Lagging(blend=lambda fitted, anchor, beta: blend(anchor, fitted, beta))
UNBOUNDED = Lagging(blend=lambda fitted, anchor, beta: fitted + beta * (anchor - fitted))


@claim(
    "T20-error-with-lag",
    statement=(
        "For b = b_tgt + c Delta + zeta with E<zeta, Delta> = 0 the blend b + r (b_pre - b) has the error (c + r (1 - "
        "c))^2 |Delta|^2 + (1 - r)^2 F, least at r* = (F - c (1 - c) |Delta|^2)/((1 - c)^2 |Delta|^2 + F)."
    ),
    reference="theory, T20",
    subject=Lagging(),
    bound=exact(1e-8),
    mutants={
        "fit and anchor swapped": SWAPPED,
        "beta for r": UNBOUNDED,
        "lag not damped": Lagging(error=lambda r, gap, noise, c: (c + r) ** 2 * gap**2 + (1 - r) ** 2 * noise),
        "noise not damped": Lagging(error=lambda r, gap, noise, c: (c + r * (1 - c)) ** 2 * gap**2 + noise),
        "lag left out": Lagging(best=lambda gap, noise, c: best_retention(gap, noise)),  # noqa: ARG005
        "the lag's sign": Lagging(best=lambda gap, noise, c: best_retention(gap, noise, -c)),
        "c for c (1 - c)": Lagging(best=lambda gap, noise, c: (noise - c * gap**2) / ((1 - c) ** 2 * gap**2 + noise)),
    },
    conditions=f"{CONDITIONS} Noise of 0.7 times the gap; retentions {', '.join(f'{r:g}' for r in RETENTIONS)}.",
    seeds=1,
    axes=("retention", "E|b - b_tgt|^2"),
    scales=("linear", "linear"),
    uses={"path": registered("path", "linear")},
)
def error_difference(subject: Lagging, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference of errors from prediction, and distance of their least place from it."""
    worst = 0.0
    lines: dict[str, Line] = {}
    for population in draw_populations(path, cpu_generator(generator)):
        size = math.sqrt(mean_product(population.gap, population.gap))
        zeta = population.orthogonal(0.7 * size)
        noise = mean_product(zeta, zeta)
        for lag in LAGS:
            fitted = population.target + lag * population.gap + zeta

            def error(r: float) -> float:
                return population.error(subject.blend(fitted, population.anchor, temperature_of(r)))  # noqa: B023

            measured = [error(r) for r in RETENTIONS]
            theory = [subject.error(r, size, noise, lag) for r in RETENTIONS]
            worst = max(worst, *map(relative_error, measured, theory))
            worst = max(worst, abs(least_at(error) - subject.best(size, noise, lag)))
            lines = lines or {"measured": (RETENTIONS, measured), "theory": (RETENTIONS, theory)}
    return Measurement(worst, lines)


@claim(
    "T20-lag-undone",
    statement=(
        "Without noise the blend at r* = -c/(1 - c) is the target drift itself, exactly; with a lag c(t) for each flow "
        "time, at r*(t). A lag above 0 needs a retention below 0."
    ),
    reference="theory, T20",
    subject=Lagging(),
    bound=exact(1e-9),
    mutants={
        "fit and anchor swapped": SWAPPED,
        "the sign": Lagging(best=lambda gap, noise, c: c / (1 - c)),  # noqa: ARG005
        "c for c/(1 - c)": Lagging(best=lambda gap, noise, c: -c),  # noqa: ARG005
        "half of it": Lagging(best=lambda gap, noise, c: -c / (1 - c) / 2),  # noqa: ARG005
        "1 - c in the lag": Lagging(lag=lambda r: -r),
    },
    conditions=f"{CONDITIONS} c(t) = c (1 - 2 t).",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def distance_from_target(subject: Lagging, generator: Generator, *, path: Path) -> float:
    """|blend - b_tgt| relative to the gap, with one lag and with one for each flow time; and the lag from r*."""
    worst = 0.0
    for population in draw_populations(path, cpu_generator(generator)):
        size = math.sqrt(mean_product(population.gap, population.gap))
        for lag in LAGS:
            r = subject.best(size, 0.0, lag)
            by_time = lag * (1 - 2 * population.t)
            rs = torch.tensor([subject.best(size, 0.0, c) for c in by_time.tolist()], dtype=torch.float64)
            for c, beta in ((torch.full_like(by_time, lag), temperature_of(r)), (by_time, temperature_of(rs))):
                fitted = population.target + c[:, None] * population.gap
                left = population.error(subject.blend(fitted, population.anchor, beta))
                worst = max(worst, math.sqrt(left) / size)
            worst = max(worst, abs(subject.lag(r) - lag))
    return worst


@claim(
    "T20-correlated-noise-counterexample",
    statement=(
        "Where E<zeta, Delta> = k |Delta|^2 is not 0 the best retention is that of the lag c + k and the noise F - k^2 "
        "|Delta|^2, and r* of c and F misses it."
    ),
    reference="theory, T20",
    subject=Lagging(),
    bound=exact(1e-8),
    mutants={
        "fit and anchor swapped": SWAPPED,
        "beta for r": UNBOUNDED,
        "noise as it is": Lagging(best=lambda gap, noise, c: best_retention(gap, noise + 0.16 * gap**2, c)),
    },
    conditions=f"{CONDITIONS} Noise of 0.6 times the gap, and 0.4 Delta beside it.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def least_place_difference(subject: Lagging, generator: Generator, *, path: Path) -> float:
    """The distance of the error's least place from its prediction; infinite where T20 would hold as it stands."""
    worst, k = 0.0, 0.4
    for population in draw_populations(path, cpu_generator(generator)):
        size = math.sqrt(mean_product(population.gap, population.gap))
        zeta = population.orthogonal(0.6 * size) + k * population.gap
        noise = mean_product(zeta, zeta)
        for lag in LAGS:
            fitted = population.target + lag * population.gap + zeta
            least = least_at(
                lambda r: population.error(subject.blend(fitted, population.anchor, temperature_of(r)))  # noqa: B023
            )
            worst = max(worst, abs(least - subject.best(size, noise - k**2 * size**2, lag + k)))
            if abs(least - best_retention(size, noise, lag)) < 0.02:
                worst = math.inf
    return worst


Fit = Callable[..., RetentionFit]
"""As ``fit_retention``."""


def _reversed(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: Any) -> RetentionFit:
    return fit_retention(drift, target, anchor, 1 - t, **{**options, "edges": EDGES})


def _swapped(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: Any) -> RetentionFit:
    return fit_retention(drift, anchor, target, t, **options)


def _by_labels(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: Any) -> RetentionFit:
    whole = fit_retention(drift, target, anchor, t, **options)
    return RetentionFit(whole.edges, whole.along, fit_retention(target, target, anchor, t, **options).moved)


def _averaged(drift: Tensor, target: Tensor, anchor: Tensor, t: Tensor, **options: Any) -> RetentionFit:
    """The average of the weights for the weights: it lags more."""
    return fit_retention(drift + 0.25 * (anchor - drift), target, anchor, t, **options)


@claim(
    "T20-lag-from-pairs",
    statement=(
        "Over pairs in a part of flow time E<b - b_t, b - b_pre>/E|b - b_pre|^2 estimates -c/(1 - c) of a drift that "
        "lags by c there, and r* of lag and noise where it has some."
    ),
    reference="theory, T20",
    subject=fit_retention,
    bound=statistical(degrees=BATCHES - BATCHES // 2 - 1),
    mutants={
        "flow time reversed": _reversed,
        "target and anchor swapped": _swapped,
        "labels in the denominator": _by_labels,
        "the average's lag": _averaged,
    },
    conditions=(
        f"Gaussian flows, d = 2, 3, independent coupling; lags -0.2, 0.1 and 0.4 for t below 0.25, 0.6 and 1; "
        f"{BATCHES} batches of {SIZE} pairs; without noise, and with noise orthogonal to Delta of half its size."
    ),
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def estimate_error(fit: Fit, generator: Generator, *, path: Path) -> float:
    """Standard errors of the estimates, over problems, parts of flow time, and both kinds of drift."""
    generator = cpu_generator(generator)
    lags, columns = torch.tensor([-0.2, 0.1, 0.4], dtype=torch.float64), []
    for d in (2, 3):
        flow = draw_flow(d, generator)  # under optimal coupling labels have no noise
        other, turn = retarget(flow, generator), torch.randn(d, d, generator=generator, dtype=torch.float64)
        turn = turn - turn.mT  # <turn Delta, Delta> = 0
        x0, x1 = flow.pairs(BATCHES * SIZE, generator)
        t = torch.rand(len(x0), generator=generator, dtype=torch.float64)
        x = paths.sample(path, t, x0, x1, None)
        target, anchor = flow.velocity(t, x), other.velocity(t, x)
        gap, c = anchor - target, lags[(t >= EDGES[1]).long() + (t >= EDGES[2]).long()]
        labels = paths.drift(path, t, x0, x1, None)
        for share in (0.0, 0.5):
            zeta = gap @ turn.mT
            zeta = zeta * (share * gap.norm(dim=1) / zeta.norm(dim=1))[:, None]
            found = fit(target + c[:, None] * gap + zeta, labels, anchor, t, batches=BATCHES, edges=EDGES)
            best = torch.stack([lags.new_tensor(best_retention(1.0, share**2, one)) for one in lags.tolist()])
            columns.append((found.along - best * found.moved) / found.moved.mean(0))
    return standardised_error(torch.cat(columns, 1))
