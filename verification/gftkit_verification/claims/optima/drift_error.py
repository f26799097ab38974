"""The drift error of a temperature's optimum, and of a drift near it: T4 and T7 on closed forms."""

import math
from dataclasses import replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import objective
from gftkit.verify import Line, Measurement, claim, exact, order, registered
from gftkit_verification.oracles import affine
from gftkit_verification.testbeds.measuring.differences import log_slopes, relative_error
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, FineTune, draw_fine_tunes, rho_of
from gftkit_verification.testbeds.slips.objective import (
    BLENDS,
    CONDITIONS,
    GOALS,
    OBJECTIVE,
    STRENGTHS,
    Loss,
    ObjectiveFunctions,
    cases,
    drift_gradient,
    objective_slips,
    undivided,
)


def error_by_closed_form(problem: FineTune, functions: ObjectiveFunctions, beta: float) -> float:
    """|b_beta - b_tgt|_w with w = 1, by the closed form of affine drifts."""
    target = problem.target.affine
    optimum = affine.blend_drifts(target, problem.pretrained.affine, beta, functions.blend)
    return affine.drift_gap(optimum, target, problem.target.marginal)


@claim(
    "T04-drift-error-gaussian",
    statement="|b_beta - b_tgt| is proportional to rho: the slope of its logarithm on log rho is 1.",
    reference="theory, T4",
    subject=OBJECTIVE,
    bound=order(0.01),
    mutants=objective_slips(blend={**BLENDS, "not divided": undivided}),
    seeds=1,
    conditions=f"{CONDITIONS} Dimensions 2 and 5 alone.",
    axes=("temperature", "drift error |b_beta - b_tgt|"),
    uses={"path": registered("path", "linear")},
)
def slope_on_retention(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> Measurement:
    """The slope of log |b_beta - b_tgt| on log rho, between neighboring temperatures, is 1."""
    worst = 0.0
    lines: dict[str, Line] = {}
    rhos = [rho_of(beta) for beta in TEMPERATURES]
    for problem in draw_fine_tunes(path, generator, (2, 5)):
        errors = [error_by_closed_form(problem, functions, beta) for beta in TEMPERATURES]
        worst = max(worst, *(abs(slope - 1) for slope in log_slopes(rhos, errors)))
        gap = affine.drift_gap(problem.pretrained.affine, problem.target.affine, problem.target.marginal)
        theory = [rho * gap for rho in rhos]
        lines = lines or {"measured": (TEMPERATURES, errors), "rho |Delta|": (TEMPERATURES, theory)}
        fitted = log_slopes([rhos[0], rhos[-1]], [errors[0], errors[-1]])[0]
    return Measurement(worst, lines, f"Fitted slope of log error on log rho: {fitted:.6f}.")


@claim(
    "T04-drift-error-value",
    statement="|b_beta - b_tgt| = rho |b_pre - b_tgt|.",
    reference="theory, T4",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(
        blend=BLENDS,
        drift_error={
            "rho squared": lambda rho, gap, floor: math.hypot(rho**2 * gap, floor),
            "gap squared": lambda rho, gap, floor: math.hypot(rho * gap**2, floor),
            "1 - rho for rho": lambda rho, gap, floor: math.hypot((1 - rho) * gap, floor),
        },
    ),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear")},
)
def error_difference(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """|b_beta - b_tgt|_w against the prediction."""

    def difference(problem: FineTune, beta: float) -> float:
        error = problem.norm(functions.blend(problem.b_tgt, problem.b_pre, beta) - problem.b_tgt)
        return relative_error(error, functions.drift_error(rho_of(beta), problem.gap, 0.0))

    return max(difference(*case) for case in cases(path, generator))


@claim(
    "T04-drift-error-temperature-slope",
    statement=(
        "Against the temperature the slope of log |b_beta - b_tgt| is 1/(1 + beta), not 1: fit slopes against rho."
    ),
    reference="theory, T4",
    subject=OBJECTIVE,
    bound=order(1e-3),
    mutants=objective_slips(blend=BLENDS),
    seeds=1,
    conditions=CONDITIONS,
    axes=("temperature", "slope of log drift error on log temperature"),
    uses={"path": registered("path", "linear")},
)
def slope_on_temperature(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> Measurement:
    """The local slope of log |b_beta - b_tgt| on log beta is 1/(1 + beta): below 1 where beta isn't small."""
    step, worst = 1e-4, 0.0
    lines: dict[str, Line] = {}
    theory = [1 / (1 + beta) for beta in TEMPERATURES]
    for problem in draw_fine_tunes(path, generator):

        def error(beta: float) -> float:
            return problem.norm(functions.blend(problem.b_tgt, problem.b_pre, beta) - problem.b_tgt)  # noqa: B023

        slopes = [log_slopes([b, b * (1 + step)], [error(b), error(b * (1 + step))])[0] for b in TEMPERATURES]
        worst = max(worst, *map(relative_error, slopes, theory))
        lines = lines or {"measured": (TEMPERATURES, slopes), "1/(1 + beta)": (TEMPERATURES, theory)}
    return Measurement(worst, lines)


def fit_in_class(loss: Loss, problem: FineTune, basis: Tensor, beta: float) -> Tensor:
    """b_pre + F theta where a conditional form is least: theta by one Newton step from 0, (n, d)."""

    def slope(theta: Tensor) -> Tensor:
        gradient = drift_gradient(loss, problem.b_pre + basis @ theta, problem.conditional, problem, beta)
        return torch.einsum("nd,ndk->k", gradient, basis)

    start = slope(torch.zeros(3, dtype=torch.float64))
    curvature = torch.stack([slope(unit) - start for unit in torch.eye(3, dtype=torch.float64)], -1)
    return problem.b_pre - basis @ torch.linalg.solve(curvature, start)


@claim(
    "T04-capacity-floor",
    statement="The best b_pre + F theta has error^2 = rho^2 |Pi Delta|^2 + |(I - Pi) Delta|^2, Pi the projection on F.",
    reference="theory, T4",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(
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
    uses={"path": registered("path", "linear")},
)
def capacity_floor(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """The error of b_pre + F theta, theta by a conditional form, with F of three affine drifts, against prediction."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator, (3,)):
        basis = torch.stack([replace(problem, seed=problem.seed + k).other for k in range(3)], -1)  # (n, d, 3)
        root = problem.weight.sqrt()[:, None]
        delta = problem.b_pre - problem.b_tgt
        projection = torch.linalg.lstsq((root[..., None] * basis).flatten(0, 1), (root * delta).flatten()[:, None])
        inside = (basis @ projection.solution)[..., 0]
        gap, floor = problem.norm(inside), problem.norm(delta - inside)
        for beta in TEMPERATURES:
            predicted = functions.drift_error(rho_of(beta), gap, floor)
            for loss in (functions.penalty, functions.blended):
                fitted = fit_in_class(loss, problem, basis, beta)
                worst = max(worst, relative_error(problem.norm(fitted - problem.b_tgt), predicted))
    return worst


@claim(
    "T07-inexact-gaussian",
    statement=(
        "With excess risk eps in B form |b - b_tgt| lies within rho |Delta| +- sqrt(eps), both ends "
        "attained along the gap; once rho |Delta| <= sqrt(eps) the error is at most 2 sqrt(eps)."
    ),
    reference="theory, T7",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(
        drift_error_range={
            "square root forgotten": lambda rho, gap, eps: (abs(rho * gap - eps), rho * gap + eps),
            "sign": lambda rho, gap, eps: (rho * gap - math.sqrt(eps), rho * gap + math.sqrt(eps)),
            "squares added": lambda rho, gap, eps: (abs(rho * gap - math.sqrt(eps)), math.hypot(rho * gap, eps**0.5)),
            "gap for rho gap": lambda rho, gap, eps: (abs(gap - math.sqrt(eps)), gap + math.sqrt(eps)),  # noqa: ARG005
        },
        penalty=STRENGTHS,
        blended=GOALS,
    ),
    seeds=1,
    conditions=f"{CONDITIONS} sqrt(eps) is 0.03, 0.4 and 5 times the gap.",
    uses={"path": registered("path", "linear")},
)
def range_violation(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """Drifts off b_beta with a known excess risk: any lies in the range, those along the gap are its two ends."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        optimum = objective.blend(problem.b_tgt, problem.b_pre, beta)
        delta = problem.b_pre - problem.b_tgt
        arguments = problem.conditional, problem.b_pre, beta, problem.weight
        for size in (0.03, 0.4, 5.0):
            for direction, end in ((problem.other, None), (delta, 1), (-delta, 0)):
                drift = optimum + size * direction
                for loss, factor in ((functions.blended, 1.0), (functions.penalty, 1 + beta)):
                    excess = float((loss(drift, *arguments) - loss(optimum, *arguments)).sum()) / factor
                    low, high = functions.drift_error_range(rho_of(beta), problem.gap, max(excess, 0.0))
                    error = problem.norm(drift - problem.b_tgt)
                    violation = max(0.0, error / high - 1, (low - error) / high)
                    off_end = 0.0 if end is None else abs(error - (low, high)[end]) / high
                    cooled = rho_of(beta) * problem.gap <= size * problem.gap  # rho |Delta| <= sqrt(eps)
                    above_twice = max(0.0, error / (2 * size * problem.gap) - 1) if cooled else 0.0
                    off_high = relative_error(high, (rho_of(beta) + size) * problem.gap)
                    worst = max(worst, violation, off_end, above_twice, off_high)
    return worst
