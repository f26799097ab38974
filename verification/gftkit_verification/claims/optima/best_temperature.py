"""The best final temperature on closed forms: T15."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow as paths
from gftkit.theory.objective import blend, retention, squared_norm
from gftkit.theory.predictions import best_temperature, error_with_noise
from gftkit.verify import Measurement, claim, exact, registered
from gftkit_verification.testbeds.measuring.differences import relative_error
from gftkit_verification.testbeds.measuring.sgd import TEMPERATURES
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator

DIMENSIONS = (2, 3, 5)
CONDITIONS = "50 states of Gaussian flows as the population, d = 2, 3, 5, both couplings; beta 0.01 to 30."
AXES = ("temperature", "E|b - b_tgt|^2")


@dataclass(frozen=True)
class Best:
    """The blend that is a fit at a temperature, and the predictions of its error and of the best temperature."""

    blend: Callable[[Tensor, Tensor, float], Tensor] = blend
    error: Callable[[float, float, float], float] = error_with_noise
    best: Callable[[float, float], float] = best_temperature


SWAPPED = Best(blend=lambda target, anchor, beta: blend(anchor, target, beta))
UNBOUNDED = Best(blend=lambda target, anchor, beta: target + beta * (anchor - target))


def mean_product(left: Tensor, right: Tensor) -> float:
    """``E<left, right>``."""
    return float((left * right).sum(1).mean())


def error_of_blend(subject: Best, fitted: Tensor, target: Tensor, anchor: Tensor) -> Callable[[float], float]:
    """E|b - b_tgt|^2 of the blend at a temperature."""
    return lambda beta: float(squared_norm(subject.blend(fitted, anchor, beta) - target).mean())


def least_at(error: Callable[[float], float]) -> float:
    """The temperature where a quadratic in rho is least, by its values at rho = 0, 1/2 and 3/4."""
    rho = torch.tensor([0.0, 0.5, 0.75], dtype=torch.float64)
    values = torch.tensor([error(beta) for beta in (0.0, 1.0, 3.0)], dtype=torch.float64)
    _, linear, square = torch.linalg.solve(torch.stack([rho**0, rho, rho**2], 1), values).tolist()
    best_rho = -linear / (2 * square)
    return best_rho / (1 - best_rho)


def draw_populations(path: Path, generator: Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
    """Target drift, anchor and a random error, at 50 states: the whole population."""
    for d in DIMENSIONS:
        for coupling in COUPLINGS:
            flow = draw_flow(d, generator, coupling)
            x0, x1 = flow.pairs(50, generator)
            t = torch.rand(50, generator=generator, dtype=torch.float64)
            x = paths.sample(path, t, x0, x1, None)
            zeta = torch.randn(50, d, generator=generator, dtype=torch.float64)
            yield flow.velocity(t, x), retarget(flow, generator).velocity(t, x), zeta


@claim(
    "T15-best-temperature",
    statement=(
        "E|b - b_tgt|^2 = rho^2 |Delta|^2 + (1 - rho)^2 F for b = b_beta + (1 - rho) zeta with F = E|zeta|^2 and "
        "E<zeta, Delta> = 0; it is least at beta* = F/|Delta|^2."
    ),
    reference="theory, T15",
    subject=Best(),
    bound=exact(1e-8),
    mutants={
        "target and anchor swapped": SWAPPED,
        "beta for rho": UNBOUNDED,
        "noise not damped": Best(error=lambda rho, gap, noise: rho**2 * gap**2 + noise),
        "1 - rho not squared": Best(error=lambda rho, gap, noise: rho**2 * gap**2 + (1 - rho) * noise),
        "gap not squared": Best(best=lambda gap, noise: noise / gap),
        "rho for beta": Best(best=lambda gap, noise: noise / (noise + gap**2)),
    },
    conditions=CONDITIONS,
    axes=AXES,
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def orthogonal_error(subject: Best, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference of errors and of their least place from prediction, zeta orthogonal to Delta."""
    worst, lines = 0.0, {}
    for target, anchor, drawn in draw_populations(path, cpu_generator(generator)):
        gap = anchor - target
        zeta = drawn - mean_product(drawn, gap) / mean_product(gap, gap) * gap
        noise, size = mean_product(zeta, zeta), math.sqrt(mean_product(gap, gap))
        error = error_of_blend(subject, target + zeta, target, anchor)
        best = subject.best(size, noise)
        temperatures = sorted((*TEMPERATURES, best))
        measured = [error(beta) for beta in temperatures]
        theory = [subject.error(retention(beta), size, noise) for beta in temperatures]
        worst = max(worst, relative_error(least_at(error), best), *map(relative_error, measured, theory))
        lines = {"measured": (temperatures, measured), "theory": (temperatures, theory)}
    return Measurement(worst, lines)


@claim(
    "T15-best-temperature-counterexample",
    statement=(
        "Where c = E<zeta, Delta> is not 0 the best temperature is (F - c)/(|Delta|^2 - c), and F/|Delta|^2 misses it."
    ),
    reference="theory, T15",
    subject=Best(),
    bound=exact(1e-8),
    mutants={
        "target and anchor swapped": SWAPPED,
        "beta for rho": UNBOUNDED,
        "half the anchor's share": Best(blend=lambda target, anchor, beta: (target + blend(target, anchor, beta)) / 2),
    },
    conditions=f"{CONDITIONS} zeta is noise plus 0.3 Delta: plain fine-tuning that stopped early.",
    axes=AXES,
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def correlated_error(subject: Best, generator: Generator, *, path: Path) -> Measurement:
    """The largest relative difference of the error's least place from (F - c)/(|Delta|^2 - c)."""
    worst, lines = 0.0, {}
    for target, anchor, drawn in draw_populations(path, cpu_generator(generator)):
        gap = anchor - target
        zeta = 0.7 * drawn * gap.norm() / drawn.norm() + 0.3 * gap  # plain fine-tuning that stopped early
        noise, squared, cross = mean_product(zeta, zeta), mean_product(gap, gap), mean_product(zeta, gap)
        error = error_of_blend(subject, target + zeta, target, anchor)
        best, formula = (noise - cross) / (squared - cross), subject.best(math.sqrt(squared), noise)
        worst = max(worst, relative_error(least_at(error), best))
        if relative_error(formula, best) < 0.05:  # then T15 would hold here
            worst = math.inf
        measured = [error(beta) for beta in TEMPERATURES]
        theory = [error_with_noise(retention(beta), math.sqrt(squared), noise) for beta in TEMPERATURES]
        lines = {"measured": (TEMPERATURES, measured), "E<zeta, Delta> = 0": (TEMPERATURES, theory)}
    return Measurement(worst, lines)
