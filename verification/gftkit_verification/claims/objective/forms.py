"""The objective's three forms, marginal, conditional and blended, on closed forms: T3."""

import math
from itertools import pairwise

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow
from gftkit.theory.objective import squared_norm
from gftkit.verify import Line, Measurement, claim, exact, order, registered
from gftkit_verification.testbeds.measuring.differences import relative_difference, relative_error
from gftkit_verification.testbeds.problems.moments import (
    TEMPERATURES,
    FineTune,
    cpu_generator,
    draw_fine_tunes,
    gauss_legendre,
    sigma_points,
)
from gftkit_verification.testbeds.slips.objective import (
    CONDITIONS,
    GOALS,
    OBJECTIVE,
    SHARES,
    STRENGTHS,
    Loss,
    ObjectiveFunctions,
    cases,
    detached_penalty,
    objective_slips,
    risk,
)

SCALE = 0.8
"""Noise scale of the bridge."""
DELTA = 0.001
"""The last part of the time, which the bridge's training leaves out."""

BRIDGE = registered("path", "brownian-bridge", scale=SCALE, delta=DELTA)

DRIFT_SLIPS = {
    "endpoints swapped": lambda path, t, x0, x1, noise: flow.drift(path, t, x1, x0, noise),
    "stale pair": lambda path, t, x0, x1, noise: flow.drift(path, t, x0.roll(1, 0), x1.roll(1, 0), noise),
    "source forgotten": lambda path, t, x0, x1, noise: flow.drift(path, t, 0 * x0, x1, noise),
}
NOISE_SLIPS = {
    "score dropped": lambda path, t, x0, x1, noise: flow.velocity(path, t, x0, x1, noise),
    "g^2 for g^2/2": lambda path, t, x0, x1, noise: (
        2 * flow.drift(path, t, x0, x1, noise) - flow.velocity(path, t, x0, x1, noise)
    ),
    "noise forgotten": lambda path, t, x0, x1, noise: flow.drift(path, t, x0, x1, 0 * noise),
}


@claim(
    "T03-forms-gaussian",
    statement="Sample by sample, C = (1 + beta) B + rho w |b_t(x|z) - b_pre|^2.",
    reference="theory, T3",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(
        form_gap={name: risk(share) for name, share in SHARES.items()}, blended=GOALS, penalty=STRENGTHS
    ),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear")},
)
def form_difference(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """C = (1 + beta) B + gap, sample by sample, with the quadrature's weights."""

    def difference(problem: FineTune, beta: float) -> float:
        arguments = problem.conditional, problem.b_pre, beta, problem.weight
        by_blended = (1 + beta) * functions.blended(problem.other, *arguments) + functions.form_gap(*arguments)
        return relative_difference(by_blended, functions.penalty(problem.other, *arguments))

    return max(difference(*case) for case in cases(path, generator))


@claim(
    "T03-gradients-network",
    statement="Sample by sample, grad C = (1 + beta) grad B by the weights of a network.",
    reference="theory, T3",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(penalty={**STRENGTHS, "penalty detached": detached_penalty}, blended=GOALS),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear")},
)
def network_gradient_difference(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """grad C = (1 + beta) grad B by the weights of a network, for random shares of the samples: so for every sample."""
    worst, generator = 0.0, cpu_generator(generator)
    for problem, beta in cases(path, generator):
        n, d = problem.x.shape
        network = [torch.randn(size, generator=generator, dtype=torch.float64) for size in ((d, 7), (7,), (7, d), (d,))]
        first, shift, second, last = (weights.requires_grad_() for weights in network)
        drift = torch.tanh(problem.x @ first + shift) @ second + last
        shares = torch.randn(n, generator=generator, dtype=torch.float64)

        def by_weights(loss: Loss) -> Tensor:
            values = loss(drift, problem.conditional, problem.b_pre, beta, problem.weight)  # noqa: B023
            grads = torch.autograd.grad(values @ shares, network, retain_graph=True)  # noqa: B023
            return torch.cat([grad.flatten() for grad in grads])

        by_blended = (1 + beta) * by_weights(functions.blended)
        worst = max(worst, relative_difference(by_weights(functions.penalty), by_blended))
    return worst


def marginal_drift(problem: FineTune, scale: float, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor]:
    """E[b_t(x|z) | x_t = x] and tr Cov(b_t(x|z) | x_t) of the bridge of any scale >= 0 (theory, section 4).

    With D = Cov(x1 - x0, x_t): slope (D - scale^2 t I)(S_t + scale^2 t (1 - t) I)^(-1), and the variance that it
    leaves of tr Cov(x1 - x0) + d scale^2 t/(1 - t).
    """
    gaussian = problem.target
    eye = torch.eye(x.shape[1], dtype=torch.float64)
    mean, cov = gaussian.marginal(t)
    variance = (scale**2 * t)[:, None, None]
    spread = cov + variance * (1 - t)[:, None, None] * eye
    slope = torch.linalg.solve(spread, gaussian.affine(t)[0] @ cov - variance * eye, left=False)
    whole = gaussian.cov0 + gaussian.cov1 - gaussian.cross - gaussian.cross.mT
    left = whole.trace() + x.shape[1] * scale**2 * t / (1 - t) - ((slope @ spread) * slope).sum((-1, -2))
    return gaussian.mean1 - gaussian.mean0 + (slope @ (x - mean)[..., None])[..., 0], left


@claim(
    "T03-conditional-marginal-gaussian",
    statement="C_beta - L_beta = E w tr Cov(b_t(x|z) | t, x) for every drift; in the blended form (1 - rho)^2 of it.",
    reference="theory, T3",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(conditional=DRIFT_SLIPS, blended=GOALS),
    seeds=1,
    conditions=CONDITIONS,
    uses={"path": registered("path", "linear"), "scale": 0.0},
)
@claim(
    "T03-conditional-marginal-bridge",
    statement="C_beta - L_beta = E w tr Cov(b_t(x|z) | t, x) for every drift, for the bridge on [0, 1 - delta].",
    reference="theory, T3",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(conditional=NOISE_SLIPS, blended=GOALS),
    seeds=1,
    conditions=f"{CONDITIONS} Brownian bridge of scale {SCALE:g}, delta = {DELTA:g}.",
    component="path:brownian-bridge",
    uses={"path": BRIDGE, "scale": SCALE},
)
def conditional_variance(functions: ObjectiveFunctions, generator: Generator, *, path: Path, scale: float) -> float:
    """C - L = E w tr Cov(b_t(x|z) | t, x) at three drifts, and (1 - rho)^2 of it in the blended form."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator):
        at = problem.states
        marginal, variance = marginal_drift(problem, scale, at.t, problem.x)
        conditional = functions.conditional(path, at.t, at.x0, at.x1, at.noise)
        expected, size = problem.mean(variance), problem.mean(squared_norm(problem.conditional))
        for beta in TEMPERATURES:
            for loss, factor in ((functions.penalty, 1.0), (functions.blended, 1 / (1 + beta) ** 2)):
                for drift in (marginal, problem.b_pre, problem.other):
                    rest = problem.b_pre, beta, problem.weight
                    least = loss(drift, marginal, *rest).sum()
                    difference = float(loss(drift, conditional, *rest).sum() - least)
                    worst = max(worst, abs(difference - factor * expected) / (factor * size + float(least)))
    return worst


def loss_by_decade(
    functions: ObjectiveFunctions, problem: FineTune, path: Path, scale: float, decades: range
) -> list[float]:
    """C - L of the drift 0 on [0, 1 - delta] for delta = 1, 1/10, ..."""
    losses = [0.0]
    for decade in decades:  # over log(1 - t), where the integrand is smooth
        u, weights = gauss_legendre(12, math.log(10))
        t = 1 - 10.0 ** (1 - decade) * torch.exp(-u)
        at = sigma_points(problem.target, t, weights * (1 - t))
        x = flow.sample(path, at.t, at.x0, at.x1, at.noise)
        marginal, _ = marginal_drift(problem, scale, at.t, x)
        conditional = functions.conditional(path, at.t, at.x0, at.x1, at.noise)
        drift = torch.zeros_like(x)
        rest = drift, 0.0, at.weight
        difference = functions.penalty(drift, conditional, *rest) - functions.penalty(drift, marginal, *rest)
        losses.append(losses[-1] + float(difference.sum()))
    return losses


@claim(
    "T03-bridge-counterexample",
    statement="With w = 1 up to t = 1 the bridge's C_beta - L_beta is infinite: it grows as d scale^2 log(1/delta).",
    reference="theory, T3",
    subject=OBJECTIVE,
    bound=order(0.02),
    mutants=objective_slips(conditional=NOISE_SLIPS),
    seeds=1,
    conditions=f"{CONDITIONS} Brownian bridge of scale {SCALE:g} on [0, 1 - delta], delta from 0.1 to 1e-6.",
    component="path:brownian-bridge",
    axes=("1/delta", "int E tr Cov(b_t(x|z) | x) dt"),
    scales=("log", "linear"),
    uses={"path": BRIDGE, "scale": SCALE},
)
def divergence(functions: ObjectiveFunctions, generator: Generator, *, path: Path, scale: float) -> Measurement:
    """The growth of C - L on [0, 1 - delta] with every decade of delta, off d scale^2 log 10: it has no end."""
    decades = range(1, 7)
    worst = 0.0
    lines: dict[str, Line] = {}
    for problem in draw_fine_tunes(path, generator):
        losses = loss_by_decade(functions, problem, path, scale, decades)
        slope = scale**2 * len(problem.target.mean0) * math.log(10)
        last_rises = [after - before for before, after in pairwise(losses)][3:]  # where the rest has vanished
        worst = max(worst, *(relative_error(rise, slope) for rise in last_rises))
        inverse = [10.0**decade for decade in decades]
        theory = [losses[-1] - slope * (decades[-1] - decade) for decade in decades]
        lines = lines or {"measured": (inverse, losses[1:]), "d scale^2 log(1/delta) + constant": (inverse, theory)}
    return Measurement(worst, lines)
