"""Wrong anchors and what they do to the optimum: T18 on closed forms."""

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import objective
from gftkit.theory.objective import penalty_loss
from gftkit.verify import claim, exact, registered
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, draw_fine_tunes, rho_of
from gftkit_verification.testbeds.slips.objective import (
    BLENDS,
    CONDITIONS,
    GOALS,
    OBJECTIVE,
    SIGN,
    STRENGTHS,
    ObjectiveFunctions,
    cases,
    objective_slips,
)


@claim(
    "T18-anchor-error",
    statement="An anchor that is off by delta shifts the optimum by rho delta.",
    reference="theory, T18",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(blend={**BLENDS, **SIGN}, penalty=STRENGTHS, blended=GOALS),
    seeds=1,
    conditions=f"{CONDITIONS} delta is as large as the gap.",
    uses={"path": registered("path", "linear")},
)
def shifted_optimum(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """With b_pre + delta for b_pre every form is stationary at b_beta + rho delta, and the blend is that drift."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        anchor = problem.b_pre + problem.other  # an error as large as the gap
        optimum = objective.blend(problem.b_tgt, problem.b_pre, beta)
        shifted = (optimum + rho_of(beta) * problem.other).requires_grad_()
        for loss in (functions.penalty, functions.blended):
            total = loss(shifted, problem.conditional, anchor, beta, problem.weight).sum()
            (slope,) = torch.autograd.grad(total, shifted)
            worst = max(worst, abs(float((slope * problem.other).sum())) / (2 * problem.gap**2))
        blend = functions.blend(problem.b_tgt, anchor, beta)
        worst = max(worst, relative_difference(blend, shifted.detach()))
    return worst


@claim(
    "T18-shared-anchor-counterexample",
    statement=(
        "An anchor that shares the trained weights retains nothing: grad B is (1 - rho) times that of plain flow "
        "matching at every weight, and grad C equals it."
    ),
    reference="theory, T18",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(
        blended=GOALS,
        penalty={
            "half the anchor's pull left": lambda drift, target, anchor, beta, weight: penalty_loss(
                drift, target, anchor / 2, beta, weight
            ),
        },
    ),
    seeds=1,
    conditions=f"{CONDITIONS} A drift linear in its parameters, with random weights.",
    uses={"path": registered("path", "linear")},
)
def gradient_with_shared_anchor(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """With the drift itself for anchor, grad B is (1 - rho) times, and grad C once, that of plain flow matching."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        d = problem.x.shape[1]
        weight = torch.randn(d, 2 + 2 * d, generator=torch.Generator().manual_seed(problem.seed))
        model = LinearModel(d, 1, weight).double()
        drift = model(problem.states.t, problem.x)

        def by_weights(values: Tensor) -> Tensor:
            (gradient,) = torch.autograd.grad(values.sum(), model.weight, retain_graph=True)  # noqa: B023
            return gradient

        flow_matching = by_weights(penalty_loss(drift, problem.conditional, None, 0.0, problem.weight))
        arguments = drift, problem.conditional, drift.detach(), beta, problem.weight
        worst = max(
            worst,
            relative_difference(by_weights(functions.blended(*arguments)), flow_matching * (1 - rho_of(beta))),
            relative_difference(by_weights(functions.penalty(*arguments)), flow_matching),
        )
    return worst


@claim(
    "T18-reset-anchor",
    statement="An anchor reset to each stage's optimum leaves the error (rho_1 rho_2 ... rho_K) (b_pre - b_tgt).",
    reference="theory, T18",
    subject=OBJECTIVE,
    bound=exact(1e-8),  # the error is 1e-5 of the gap, and so is what round-off is compared with
    mutants=objective_slips(blend={**BLENDS, **SIGN}),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear")},
)
def error_of_resets(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """Each stage's optimum is the next one's anchor: b - b_tgt = rho_1 ... rho_K Delta."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator):
        drift, product = problem.b_pre, 1.0
        for beta in sorted(TEMPERATURES, reverse=True):
            drift = functions.blend(problem.b_tgt, drift, beta)
            product *= rho_of(beta)
            expected = product * (problem.b_pre - problem.b_tgt)
            worst = max(worst, relative_difference(drift - problem.b_tgt, expected))
    return worst
