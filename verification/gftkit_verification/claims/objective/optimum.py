"""The optimum of a temperature and its risk on closed forms: T1 and T2."""

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import objective
from gftkit.verify import claim, exact, registered
from gftkit_verification.testbeds.measuring.differences import relative_difference, relative_error
from gftkit_verification.testbeds.problems.moments import FineTune, cpu_generator
from gftkit_verification.testbeds.slips.objective import (
    BLENDS,
    CONDITIONS,
    GOALS,
    OBJECTIVE,
    SHARES,
    SIGN,
    STRENGTHS,
    Loss,
    ObjectiveFunctions,
    Share,
    cases,
    drift_gradient,
    objective_slips,
    risk,
)


@claim(
    "T01-retention",
    statement="The share of the pretrained drift that is kept is rho = beta/(1 + beta).",
    reference="theory, section 0",
    subject=objective.retention,
    bound=exact(1e-9),
    mutants=SHARES,
    seeds=1,
    conditions="Random temperatures from 0.001 to 1000.",
)
def retained_share(retention: Share, generator: Generator) -> float:
    """rho (1 + beta) = beta over six decades."""
    betas = 10 ** (6 * torch.rand(20, generator=cpu_generator(generator), dtype=torch.float64) - 3)
    return max(relative_error(retention(beta) * (1 + beta), beta) for beta in betas.tolist())


@claim(
    "T01-optimum-gaussian",
    statement=(
        "b_beta = (b_tgt + beta b_pre)/(1 + beta) minimizes the marginal, the conditional and the blended objective."
    ),
    reference="theory, T1",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(blend={**BLENDS, **SIGN}, penalty=STRENGTHS, blended=GOALS),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear")},
)
def slope_at_optimum(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """The slope of L, C and B at b_beta along an affine drift, relative to plain flow matching's at b_pre."""

    def slope(problem: FineTune, beta: float, loss: Loss, target: Tensor) -> float:
        optimum = functions.blend(problem.b_tgt, problem.b_pre, beta)
        along = (drift_gradient(loss, optimum, target, problem, beta) * problem.other).sum()
        return abs(float(along)) / (2 * problem.gap**2)

    return max(
        slope(problem, beta, loss, target)
        for problem, beta in cases(path, generator)
        for loss in (functions.penalty, functions.blended)
        for target in (problem.b_tgt, problem.conditional)
    )


@claim(
    "T02-excess-risk-gaussian",
    statement="L_beta(b) - L_beta(b_beta) = (1 + beta) |b - b_beta|^2 and L_beta(b_beta) = rho |b_pre - b_tgt|^2.",
    reference="theory, T2",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(
        excess={
            "1 + beta dropped": risk(lambda beta: 1.0),  # noqa: ARG005
            "not squared": risk(lambda beta: 1 + beta, 0.5),
            "weight dropped": lambda drift, optimum, beta, weight: objective.excess_risk(drift, optimum, beta),  # noqa: ARG005
        },
        least={name: risk(share) for name, share in SHARES.items()},
        penalty=STRENGTHS,
    ),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear")},
)
def risk_difference(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """L(b) - L(b_beta) and L(b_beta), sample by sample, with the quadrature's weights."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        optimum = objective.blend(problem.b_tgt, problem.b_pre, beta)
        arguments = problem.b_tgt, problem.b_pre, beta, problem.weight
        least = functions.penalty(optimum, *arguments)
        excess = functions.penalty(problem.other, *arguments) - least
        predicted = functions.excess(problem.other, optimum, beta, problem.weight)
        of_least = relative_difference(functions.least(*arguments), least)
        worst = max(worst, relative_difference(predicted, excess), of_least)
    return worst
