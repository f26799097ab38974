"""How far the optimum of a temperature is, and the way along a schedule: T4, T7 and T8 on closed forms."""

import math
from collections.abc import Iterator
from dataclasses import replace
from functools import partial
from itertools import pairwise

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import objective
from gftkit.verify.claims import Claim, Line, Measurement, exact, order
from gftkit_verification.claims.objective.closed_forms import (
    BLENDS,
    CONDITIONS,
    GOALS,
    SHIPPED,
    SIGN,
    STRENGTHS,
    Shipped,
    cases,
    gradient,
    mutants,
    off,
    unscaled,
)
from gftkit_verification.oracles import affine
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.moments import TEMPERATURES, FineTune, draw_fine_tunes, rho_of


def slopes(xs: list[float], ys: list[float]) -> list[float]:
    """Slopes of log y on log x between neighbors; infinite where a y is 0 or not a number."""
    if not all(y > 0 for y in ys):
        return [math.inf]
    return [math.log(y2 / y1) / math.log(x2 / x1) for (x1, y1), (x2, y2) in pairwise(zip(xs, ys, strict=True))]


def error_of(problem: FineTune, shipped: Shipped, beta: float) -> float:
    """|b_beta - b_tgt|_w with w = 1, by the closed form of affine drifts."""
    target = problem.target.affine
    best = affine.blend_drifts(target, problem.pretrained.affine, beta, shipped.blend)
    return affine.drift_gap(best, target, problem.target.marginal)


def error_slope(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """The slope of log |b_beta - b_tgt| on log rho, between neighboring temperatures, is 1."""
    worst = 0.0
    lines: dict[str, Line] = {}
    rhos = [rho_of(beta) for beta in TEMPERATURES]
    for problem in draw_fine_tunes(path, generator, (2, 5)):
        errors = [error_of(problem, shipped, beta) for beta in TEMPERATURES]
        worst = max(worst, *(abs(slope - 1) for slope in slopes(rhos, errors)))
        gap = affine.drift_gap(problem.pretrained.affine, problem.target.affine, problem.target.marginal)
        theory = [rho * gap for rho in rhos]
        lines = lines or {"measured": (TEMPERATURES, errors), "rho |Delta|": (TEMPERATURES, theory)}
        fitted = slopes([rhos[0], rhos[-1]], [errors[0], errors[-1]])[0]
    return Measurement(worst, lines, f"Fitted slope of log error on log rho: {fitted:.6f}.")


def error_value(path: Path, shipped: Shipped, generator: Generator) -> float:
    """|b_beta - b_tgt|_w against the prediction."""

    def difference(problem: FineTune, beta: float) -> float:
        found = problem.norm(shipped.blend(problem.b_tgt, problem.b_pre, beta) - problem.b_tgt)
        return off(found, shipped.drift_error(rho_of(beta), problem.gap, 0.0))

    return max(difference(*case) for case in cases(path, generator))


def temperature_slope(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """The local slope of log |b_beta - b_tgt| on log beta is 1/(1 + beta): below 1 where beta isn't small."""
    step, worst = 1e-4, 0.0
    lines: dict[str, Line] = {}
    for problem in draw_fine_tunes(path, generator):

        def error(beta: float) -> float:
            return problem.norm(shipped.blend(problem.b_tgt, problem.b_pre, beta) - problem.b_tgt)  # noqa: B023

        found = [slopes([b, b * (1 + step)], [error(b), error(b * (1 + step))])[0] for b in TEMPERATURES]
        wanted = [1 / (1 + beta) for beta in TEMPERATURES]
        worst = max(worst, *map(off, found, wanted))
        lines = lines or {"measured": (TEMPERATURES, found), "1/(1 + beta)": (TEMPERATURES, wanted)}
    return Measurement(worst, lines)


def capacity_floor(path: Path, shipped: Shipped, generator: Generator) -> float:
    """b_pre + F theta, theta by one Newton step on a conditional form, with F of three affine drifts."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator, (3,)):
        basis = torch.stack([replace(problem, seed=problem.seed + k).other for k in range(3)], -1)  # (n, d, 3)
        root = problem.weight.sqrt()[:, None]
        delta = problem.b_pre - problem.b_tgt
        solved = torch.linalg.lstsq((root[..., None] * basis).flatten(0, 1), (root * delta).flatten()[:, None])
        inside = (basis @ solved.solution)[..., 0]
        gap, floor = problem.norm(inside), problem.norm(delta - inside)
        for beta in TEMPERATURES:
            wanted = shipped.drift_error(rho_of(beta), gap, floor)
            for loss in (shipped.penalty, shipped.blended):

                def slope(theta: Tensor) -> Tensor:
                    drift = problem.b_pre + basis @ theta  # noqa: B023
                    found = gradient(loss, drift, problem.conditional, problem, beta)  # noqa: B023
                    return torch.einsum("nd,ndk->k", found, basis)  # noqa: B023

                start = slope(torch.zeros(3, dtype=torch.float64))
                curvature = torch.stack([slope(unit) - start for unit in torch.eye(3, dtype=torch.float64)], -1)
                fitted = problem.b_pre - basis @ torch.linalg.solve(curvature, start)
                worst = max(worst, off(problem.norm(fitted - problem.b_tgt), wanted))
    return worst


def inexact(path: Path, shipped: Shipped, generator: Generator) -> float:
    """Drifts off b_beta with a known excess risk: any lies in the range, those along the gap are its two ends."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        best = objective.blend(problem.b_tgt, problem.b_pre, beta)
        delta = problem.b_pre - problem.b_tgt
        on = problem.conditional, problem.b_pre, beta, problem.weight
        for size in (0.03, 0.4, 5.0):
            for along, end in ((problem.other, None), (delta, 1), (-delta, 0)):
                drift = best + size * along
                for loss, factor in ((shipped.blended, 1.0), (shipped.penalty, 1 + beta)):
                    excess = float((loss(drift, *on) - loss(best, *on)).sum()) / factor
                    low, high = shipped.drift_error_range(rho_of(beta), problem.gap, max(excess, 0.0))
                    error = problem.norm(drift - problem.b_tgt)
                    violation = max(0.0, error / high - 1, (low - error) / high)
                    missed = 0.0 if end is None else abs(error - (low, high)[end]) / high
                    cooled = rho_of(beta) * problem.gap <= size * problem.gap  # rho |Delta| <= sqrt(eps)
                    twice = max(0.0, error / (2 * size * problem.gap) - 1) if cooled else 0.0
                    worst = max(worst, violation, missed, twice, off(high, (rho_of(beta) + size) * problem.gap))
    return worst


def steps(problem: FineTune, shipped: Shipped, temperatures: list[float]) -> tuple[float, list[float]]:
    """The worst difference of a step's length from its prediction, and the way's lengths, relative to the gap."""
    drifts = [problem.b_pre, *(shipped.blend(problem.b_tgt, problem.b_pre, beta) for beta in temperatures)]
    rhos = [1.0, *map(rho_of, temperatures)]
    found = [problem.norm(after - before) / problem.gap for before, after in pairwise(drifts)]
    wanted = [shipped.step(before, after, problem.gap) / problem.gap for before, after in pairwise(rhos)]
    return max(abs(one - other) for one, other in zip(found, wanted, strict=True)), found


def gradual_steps(registry: Registry, shipped: Shipped, generator: Generator) -> float:
    """Every step along every registered schedule; a monotone one's add up; each optimum lies on the segment."""
    schedules = [schedule for _, schedule in components(registry, "schedule")]
    progress = [k / 16 for k in range(17)]
    worst = 0.0
    for problem in draw_fine_tunes(registry.create("path", "linear"), generator):
        for schedule in schedules:
            temperatures = [schedule.temperature(s) for s in progress]
            each, way = steps(problem, shipped, temperatures)
            rhos = [1.0, *map(rho_of, temperatures)]
            monotone = all(after <= before for before, after in pairwise(rhos))
            total = abs(sum(way) - (1 - rhos[-1])) if monotone else 0.0
            worst = max(worst, each, total, *(bend(problem, shipped, beta) for beta in temperatures))
    return worst


def bend(problem: FineTune, shipped: Shipped, beta: float) -> float:
    """By how much the way from b_pre to b_tgt over b_beta is longer than the gap, relative to it."""
    best = shipped.blend(problem.b_tgt, problem.b_pre, beta)
    return (problem.norm(best - problem.b_pre) + problem.norm(best - problem.b_tgt)) / problem.gap - 1


def detour(path: Path, shipped: Shipped, generator: Generator) -> float:
    """Reheating: the way of optima is longer than that of a monotone schedule, by twice what rho rises."""
    temperatures = [10.0, 0.3, 3.0, 0.1, 30.0, 1.0, 0.01]
    rhos = list(map(rho_of, temperatures))
    rise = sum(max(0.0, after - before) for before, after in pairwise(rhos))
    found = [steps(problem, shipped, temperatures) for problem in draw_fine_tunes(path, generator)]
    return max(max(each, off(sum(way), 1 - rhos[-1] + 2 * rise)) for each, way in found)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path, round_off = registry.create("path", "linear"), exact(1e-9)
    yield Claim(
        name="T04-drift-error-gaussian",
        statement="|b_beta - b_tgt| is proportional to rho: the slope of its logarithm on log rho is 1.",
        reference="theory, T4",
        subject=SHIPPED,
        measure=partial(error_slope, path),
        bound=order(0.01),
        mutants=mutants(blend={**BLENDS, "not divided": unscaled}),
        seeds=1,
        conditions=f"{CONDITIONS} Dimensions 2 and 5 alone.",
        axes=("temperature", "drift error |b_beta - b_tgt|"),
    )
    yield Claim(
        name="T04-drift-error-value",
        statement="|b_beta - b_tgt| = rho |b_pre - b_tgt|.",
        reference="theory, T4",
        subject=SHIPPED,
        measure=partial(error_value, path),
        bound=round_off,
        mutants=mutants(
            blend=BLENDS,
            drift_error={
                "rho squared": lambda rho, gap, floor: math.hypot(rho**2 * gap, floor),
                "gap squared": lambda rho, gap, floor: math.hypot(rho * gap**2, floor),
                "1 - rho for rho": lambda rho, gap, floor: math.hypot((1 - rho) * gap, floor),
            },
        ),
        seeds=1,
        conditions=CONDITIONS,
    )
    yield Claim(
        name="T04-drift-error-temperature-slope",
        statement=(
            "Against the temperature the slope of log |b_beta - b_tgt| is 1/(1 + beta), not 1: fit slopes against rho."
        ),
        reference="theory, T4",
        subject=SHIPPED,
        measure=partial(temperature_slope, path),
        bound=order(1e-3),
        mutants=mutants(blend=BLENDS),
        seeds=1,
        conditions=CONDITIONS,
        axes=("temperature", "slope of log drift error on log temperature"),
    )
    yield Claim(
        name="T04-capacity-floor",
        statement=(
            "The best b_pre + F theta has error^2 = rho^2 |Pi Delta|^2 + |(I - Pi) Delta|^2, Pi the projection on F."
        ),
        reference="theory, T4",
        subject=SHIPPED,
        measure=partial(capacity_floor, path),
        bound=round_off,
        mutants=mutants(
            drift_error={
                "floor dropped": lambda rho, gap, floor: rho * gap,  # noqa: ARG005
                "errors added": lambda rho, gap, floor: rho * gap + floor,
                "floor scaled by rho": lambda rho, gap, floor: rho * math.hypot(gap, floor),
            },
            penalty=STRENGTHS,
            blended=GOALS,
        ),
        seeds=1,
        conditions=f"{CONDITIONS} Dimension 3 alone; F spans three random affine drifts.",
    )
    yield Claim(
        name="T07-inexact-gaussian",
        statement="With excess risk eps in B form |b - b_tgt| lies within rho |Delta| +- sqrt(eps), both ends "
        "attained along the gap; once rho |Delta| <= sqrt(eps) the error is at most 2 sqrt(eps).",
        reference="theory, T7",
        subject=SHIPPED,
        measure=partial(inexact, path),
        bound=round_off,
        mutants=mutants(
            drift_error_range={
                "square root forgotten": lambda rho, gap, eps: (abs(rho * gap - eps), rho * gap + eps),
                "sign": lambda rho, gap, eps: (rho * gap - math.sqrt(eps), rho * gap + math.sqrt(eps)),
                "squares added": lambda rho, gap, eps: (
                    abs(rho * gap - math.sqrt(eps)),
                    math.hypot(rho * gap, eps**0.5),
                ),
                "gap for rho gap": lambda rho, gap, eps: (abs(gap - math.sqrt(eps)), gap + math.sqrt(eps)),  # noqa: ARG005
            },
            penalty=STRENGTHS,
            blended=GOALS,
        ),
        seeds=1,
        conditions=f"{CONDITIONS} sqrt(eps) is 0.03, 0.4 and 5 times the gap.",
    )
    lengths = {
        "temperatures for retentions": lambda before, after, gap: abs(after / (1 - after) - _odds(before)) * gap,
        "gap squared": lambda before, after, gap: abs(after - before) * gap**2,
        "sum for difference": lambda before, after, gap: (after + before) * gap,
    }
    yield Claim(
        name="T08-gradual-steps-gaussian",
        statement=(
            "Successive optima are |rho_(k+1) - rho_k| |Delta| apart on one straight segment; from b_pre along a "
            "monotone schedule the steps add up to (1 - rho_K) |Delta|."
        ),
        reference="theory, T8",
        subject=SHIPPED,
        measure=partial(gradual_steps, registry),
        bound=round_off,
        mutants=mutants(step=lengths, blend={**BLENDS, **SIGN}),
        seeds=1,
        conditions=f"Every registered schedule at 17 times. {CONDITIONS}",
    )
    yield Claim(
        name="T08-reheating-counterexample",
        statement="Along a schedule that isn't monotone the way of the optima is longer, by twice what rho rises.",
        reference="theory, T8",
        subject=SHIPPED,
        measure=partial(detour, path),
        bound=round_off,
        mutants=mutants(step=lengths, blend={**BLENDS, **SIGN}),
        seeds=1,
        conditions=f"Temperatures 10, 0.3, 3, 0.1, 30, 1, 0.01. {CONDITIONS}",
    )


def _odds(rho: float) -> float:
    """beta of rho; 0 for b_pre itself, whose temperature is infinite."""
    return rho / (1 - rho) if rho < 1 else 0.0
