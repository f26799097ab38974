"""The optimum of a temperature, its risk, and its objective's three forms: T1 to T3 on closed forms."""

import math
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import partial
from itertools import pairwise
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow, objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim, Line, Measurement, exact, order
from gftkit_verification.oracles.affine import Blend
from gftkit_verification.testbeds.moments import (
    DIMENSIONS,
    TEMPERATURES,
    FineTune,
    cpu_generator,
    draw_fine_tunes,
    gauss_legendre,
    rho_of,
    sigma_points,
)

CONDITIONS = (
    f"Gaussian problems of dimension {', '.join(map(str, DIMENSIONS))}; independent and optimal coupling; linear path; "
    f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}. Expectations are exact."
)
SCALE = 0.8
"""Noise scale of the bridge."""

Loss = Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]
"""(drift, target, anchor, temperature, weight) -> per sample."""
Risk = Callable[[Tensor, Tensor, float, Tensor], Tensor]
Share = Callable[[float], float]
"""Of the anchor, by temperature."""


@dataclass(frozen=True)
class Shipped:
    """The functions of the objective and their predictions, as the training loop and the monitors call them."""

    blend: Blend = objective.blend
    penalty: Loss = objective.penalty_loss
    blended: Loss = objective.blended_loss
    excess: Risk = objective.excess_risk
    least: Risk = objective.least_risk
    form_gap: Risk = objective.form_gap
    conditional: Callable[[Path, Tensor, Tensor, Tensor, Tensor], Tensor] = flow.drift
    drift_error: Callable[[float, float, float], float] = predictions.drift_error
    drift_error_range: Callable[[float, float, float], tuple[float, float]] = predictions.drift_error_range
    step: Callable[[float, float, float], float] = predictions.step_between_optima


SHIPPED = Shipped()


def variants(shipped: Any, **wrong: Mapping[str, Any]) -> dict[str, Any]:
    """A dataclass of functions with one replaced: by field, the mutants' names and wrong functions."""
    return {
        f"{field.replace('_', ' ')}: {name}": replace(shipped, **{field: function})
        for field, functions in wrong.items()
        for name, function in functions.items()
    }


mutants: Callable[..., dict[str, Shipped]] = partial(variants, SHIPPED)


SHARES: Mapping[str, Share] = {
    "1/(1 + beta) for rho": lambda beta: 1 / (1 + beta),
    "beta for rho": lambda beta: beta,
    "rho squared": lambda beta: rho_of(beta) ** 2,
}


def keeping(share: Share) -> Blend:
    """A blend that keeps another share of the anchor."""
    return lambda target, anchor, beta: target + share(beta) * (anchor - target)


def punishing(share: Share) -> Loss:
    """A penalty form with another strength of the penalty."""
    return lambda drift, target, anchor, beta, weight: (
        weight * (squared_norm(drift - target) + share(beta) * squared_norm(drift - anchor))
    )


def toward(blend: Blend) -> Loss:
    """A blended form with another goal."""
    return lambda drift, target, anchor, beta, weight: weight * squared_norm(drift - blend(target, anchor, beta))


def risk(factor: Share, power: float = 1) -> Risk:
    """A multiple of |drift - other|^(2 power), weighted."""
    return lambda drift, other, beta, weight: weight * factor(beta) * squared_norm(drift - other) ** power


def unscaled(target: Tensor, anchor: Tensor, beta: float) -> Tensor:
    """The sum that 1 + beta forgot to divide."""
    return target + beta * anchor


def detached(drift: Tensor, target: Tensor, anchor: Tensor, beta: float, weight: Tensor) -> Tensor:
    """The penalty form's values, without the penalty's gradient."""
    free = weight * squared_norm(drift - target)
    return free + (objective.penalty_loss(drift, target, anchor, beta, weight) - free).detach()


BLENDS: Mapping[str, Blend] = {name: keeping(share) for name, share in SHARES.items()}
SIGN: Mapping[str, Blend] = {"the gap's sign": keeping(lambda beta: -rho_of(beta))}
GOALS: Mapping[str, Loss] = {
    "not divided": toward(unscaled),
    "1/(1 + beta) for rho": toward(keeping(lambda beta: 1 / (1 + beta))),
}
STRENGTHS: Mapping[str, Loss] = {"rho for beta": punishing(rho_of)}


def apart(found: Tensor, wanted: Tensor) -> float:
    """The largest difference, relative to the largest wanted value."""
    return float((found - wanted).abs().max() / wanted.abs().max())


def off(found: float, wanted: float) -> float:
    """|found/wanted - 1|."""
    return abs(found / wanted - 1)


def cases(path: Path, generator: Generator) -> Iterator[tuple[FineTune, float]]:
    """Every problem at every temperature."""
    for problem in draw_fine_tunes(path, generator):
        for beta in TEMPERATURES:
            yield problem, beta


def gradient(loss: Loss, drift: Tensor, target: Tensor, problem: FineTune, beta: float) -> Tensor:
    """d loss/d drift at every state, (n, d)."""
    drift = drift.detach().requires_grad_()
    total = loss(drift, target, problem.b_pre, beta, problem.weight).sum()
    return torch.autograd.grad(total, drift)[0]


def retained(retention: Share, generator: Generator) -> float:
    """rho (1 + beta) = beta over six decades."""
    betas = 10 ** (6 * torch.rand(20, generator=cpu_generator(generator), dtype=torch.float64) - 3)
    return max(off(retention(beta) * (1 + beta), beta) for beta in betas.tolist())


def optimum(path: Path, shipped: Shipped, generator: Generator) -> float:
    """The slope of L, C and B at b_beta along an affine drift, relative to plain flow matching's at b_pre."""

    def slope(problem: FineTune, beta: float, loss: Loss, target: Tensor) -> float:
        best = shipped.blend(problem.b_tgt, problem.b_pre, beta)
        found = (gradient(loss, best, target, problem, beta) * problem.other).sum()
        return abs(float(found)) / (2 * problem.gap**2)

    return max(
        slope(problem, beta, loss, target)
        for problem, beta in cases(path, generator)
        for loss in (shipped.penalty, shipped.blended)
        for target in (problem.b_tgt, problem.conditional)
    )


def risks(path: Path, shipped: Shipped, generator: Generator) -> float:
    """L(b) - L(b_beta) and L(b_beta), sample by sample, with the quadrature's weights."""
    worst = 0.0
    for problem, beta in cases(path, generator):
        best = objective.blend(problem.b_tgt, problem.b_pre, beta)
        on = problem.b_tgt, problem.b_pre, beta, problem.weight
        least = shipped.penalty(best, *on)
        excess = shipped.penalty(problem.other, *on) - least
        found = shipped.excess(problem.other, best, beta, problem.weight)
        worst = max(worst, apart(found, excess), apart(shipped.least(*on), least))
    return worst


def forms(path: Path, shipped: Shipped, generator: Generator) -> float:
    """C = (1 + beta) B + gap, sample by sample, with the quadrature's weights."""

    def difference(problem: FineTune, beta: float) -> float:
        on = problem.conditional, problem.b_pre, beta, problem.weight
        found = (1 + beta) * shipped.blended(problem.other, *on) + shipped.form_gap(*on)
        return apart(found, shipped.penalty(problem.other, *on))

    return max(difference(*case) for case in cases(path, generator))


def network_gradients(path: Path, shipped: Shipped, generator: Generator) -> float:
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

        worst = max(worst, apart(by_weights(shipped.penalty), (1 + beta) * by_weights(shipped.blended)))
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


def conditional_variance(path: Path, scale: float, shipped: Shipped, generator: Generator) -> float:
    """C - L = E w tr Cov(b_t(x|z) | t, x) at three drifts, and (1 - rho)^2 of it in the blended form."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator):
        at = problem.states
        marginal, variance = marginal_drift(problem, scale, at.t, problem.x)
        conditional = shipped.conditional(path, at.t, at.x0, at.x1, at.noise)
        wanted, size = problem.mean(variance), problem.mean(squared_norm(problem.conditional))
        for beta in TEMPERATURES:
            for loss, factor in ((shipped.penalty, 1.0), (shipped.blended, 1 / (1 + beta) ** 2)):
                for drift in (marginal, problem.b_pre, problem.other):
                    rest = problem.b_pre, beta, problem.weight
                    least = loss(drift, marginal, *rest).sum()
                    found = float(loss(drift, conditional, *rest).sum() - least)
                    worst = max(worst, abs(found - factor * wanted) / (factor * size + float(least)))
    return worst


def divergence(path: Path, scale: float, shipped: Shipped, generator: Generator) -> Measurement:
    """How much C - L grows with every decade of delta, on [0, 1 - delta]: d scale^2 log 10, without end."""
    decades = range(1, 7)
    worst = 0.0
    lines: dict[str, Line] = {}
    for problem in draw_fine_tunes(path, generator):
        d = len(problem.target.mean0)
        grown = [0.0]
        for decade in decades:  # over log(1 - t), where the integrand is smooth
            u, weights = gauss_legendre(12, math.log(10))
            t = 1 - 10.0 ** (1 - decade) * torch.exp(-u)
            at = sigma_points(problem.target, t, weights * (1 - t))
            x = flow.sample(path, at.t, at.x0, at.x1, at.noise)
            marginal, _ = marginal_drift(problem, scale, at.t, x)
            conditional = shipped.conditional(path, at.t, at.x0, at.x1, at.noise)
            drift = torch.zeros_like(x)
            rest = drift, 0.0, at.weight
            difference = shipped.penalty(drift, conditional, *rest) - shipped.penalty(drift, marginal, *rest)
            grown.append(grown[-1] + float(difference.sum()))
        slope = scale**2 * d * math.log(10)
        last = [after - before for before, after in pairwise(grown)][3:]  # where the rest has vanished
        worst = max(worst, *(off(rise, slope) for rise in last))
        inverse = [10.0**decade for decade in decades]
        theory = [grown[-1] - slope * (decades[-1] - decade) for decade in decades]
        lines = lines or {"measured": (inverse, grown[1:]), "d scale^2 log(1/delta) + constant": (inverse, theory)}
    return Measurement(worst, lines)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path, bridge = registry.create("path", "linear"), registry.create("path", "brownian-bridge", scale=SCALE)
    round_off = exact(1e-9)

    yield Claim(
        name="T01-retention",
        statement="The share of the pretrained drift that is kept is rho = beta/(1 + beta).",
        reference="theory, section 0",
        subject=objective.retention,
        measure=retained,
        bound=round_off,
        mutants=SHARES,
        seeds=1,
        conditions="Random temperatures from 0.001 to 1000.",
    )
    yield Claim(
        name="T01-optimum-gaussian",
        statement=(
            "b_beta = (b_tgt + beta b_pre)/(1 + beta) minimizes the marginal, the conditional and the blended "
            "objective."
        ),
        reference="theory, T1",
        subject=SHIPPED,
        measure=partial(optimum, path),
        bound=round_off,
        mutants=mutants(blend={**BLENDS, **SIGN}, penalty=STRENGTHS, blended=GOALS),
        seeds=1,
        conditions=CONDITIONS,
    )
    yield Claim(
        name="T02-excess-risk-gaussian",
        statement="L_beta(b) - L_beta(b_beta) = (1 + beta) |b - b_beta|^2 and L_beta(b_beta) = rho |b_pre - b_tgt|^2.",
        reference="theory, T2",
        subject=SHIPPED,
        measure=partial(risks, path),
        bound=round_off,
        mutants=mutants(
            excess={
                "1 + beta dropped": risk(lambda beta: 1.0),  # noqa: ARG005
                "not squared": risk(lambda beta: 1 + beta, 0.5),
                "weight dropped": lambda drift, best, beta, weight: objective.excess_risk(drift, best, beta),  # noqa: ARG005
            },
            least={name: risk(share) for name, share in SHARES.items()},
            penalty=STRENGTHS,
        ),
        seeds=1,
        conditions=CONDITIONS,
    )
    yield Claim(
        name="T03-forms-gaussian",
        statement="Sample by sample, C = (1 + beta) B + rho w |b_t(x|z) - b_pre|^2.",
        reference="theory, T3",
        subject=SHIPPED,
        measure=partial(forms, path),
        bound=round_off,
        mutants=mutants(
            form_gap={name: risk(share) for name, share in SHARES.items()}, blended=GOALS, penalty=STRENGTHS
        ),
        seeds=1,
        conditions=CONDITIONS,
    )
    yield Claim(
        name="T03-gradients-network",
        statement="Sample by sample, grad C = (1 + beta) grad B by the weights of a network.",
        reference="theory, T3",
        subject=SHIPPED,
        measure=partial(network_gradients, path),
        bound=round_off,
        mutants=mutants(penalty={**STRENGTHS, "penalty detached": detached}, blended=GOALS),
        seeds=1,
        conditions=CONDITIONS,
    )
    drifts = {
        "endpoints swapped": lambda path, t, x0, x1, noise: flow.drift(path, t, x1, x0, noise),
        "stale pair": lambda path, t, x0, x1, noise: flow.drift(path, t, x0.roll(1, 0), x1.roll(1, 0), noise),
        "source forgotten": lambda path, t, x0, x1, noise: flow.drift(path, t, 0 * x0, x1, noise),
    }
    yield Claim(
        name="T03-conditional-marginal-gaussian",
        statement=(
            "C_beta - L_beta = E w tr Cov(b_t(x|z) | t, x) for every drift; in the blended form (1 - rho)^2 of it."
        ),
        reference="theory, T3",
        subject=SHIPPED,
        measure=partial(conditional_variance, path, 0.0),
        bound=round_off,
        mutants=mutants(conditional=drifts, blended=GOALS),
        seeds=1,
        conditions=CONDITIONS,
    )
    noises = {
        "score dropped": lambda path, t, x0, x1, noise: flow.velocity(path, t, x0, x1, noise),
        "g^2 for g^2/2": lambda path, t, x0, x1, noise: (
            2 * flow.drift(path, t, x0, x1, noise) - flow.velocity(path, t, x0, x1, noise)
        ),
        "noise forgotten": lambda path, t, x0, x1, noise: flow.drift(path, t, x0, x1, 0 * noise),
    }
    yield Claim(
        name="T03-conditional-marginal-bridge",
        statement="C_beta - L_beta = E w tr Cov(b_t(x|z) | t, x) for every drift, for the bridge on [0, 1 - delta].",
        reference="theory, T3",
        subject=SHIPPED,
        measure=partial(conditional_variance, bridge, SCALE),
        bound=round_off,
        mutants=mutants(conditional=noises, blended=GOALS),
        seeds=1,
        conditions=f"{CONDITIONS} Brownian bridge of scale {SCALE:g}, delta = {1 - flow.t_end(bridge):g}.",
        component="path:brownian-bridge",
    )
    yield Claim(
        name="T03-bridge-counterexample",
        statement=(
            "With w = 1 up to t = 1 the bridge's C_beta - L_beta is infinite: it grows as d scale^2 log(1/delta)."
        ),
        reference="theory, T3",
        subject=SHIPPED,
        measure=partial(divergence, bridge, SCALE),
        bound=order(0.02),
        mutants=mutants(conditional=noises),
        seeds=1,
        conditions=f"{CONDITIONS} Brownian bridge of scale {SCALE:g} on [0, 1 - delta], delta from 0.1 to 1e-6.",
        component="path:brownian-bridge",
        axes=("1/delta", "int E tr Cov(b_t(x|z) | x) dt"),
        scales=("log", "linear"),
    )
