"""A temperature that depends on flow time, and may be below zero: T19 on closed forms, for every registered profile."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import predictions
from gftkit.theory.objective import squared_norm
from gftkit.theory.temperature import temperatures_of
from gftkit.verify import claim_for_each, exact, registered
from gftkit_verification.oracles.affine import gaussian_kl
from gftkit_verification.oracles.gaussian import Affine, AffineDrift
from gftkit_verification.testbeds.measuring.differences import relative_difference
from gftkit_verification.testbeds.problems.moments import NODES, FineTune, draw_fine_tunes
from gftkit_verification.testbeds.problems.retentions import (
    SIGN,
    Cooling,
    Retentions,
    Temperatures,
    cooled_profiles,
    temperature_slips,
)
from gftkit_verification.testbeds.slips.blend_laws import chain_law, drifts_of, start_of
from gftkit_verification.testbeds.slips.objective import (
    BLENDS,
    GOALS,
    SHARES,
    STRENGTHS,
    Loss,
    ObjectiveFunctions,
    replace_each,
    risk,
)

CONDITIONS = (
    "Gaussian problems of dimension 2 and 3; independent and optimal coupling; linear path; the retentions of "
    "schedule exponential at progress 0.02, 0.3 and 1, where it ends at the profile. Expectations are exact."
)
STEPS = 3
"""Of the chains whose laws are compared."""
CHAINS = 2
"""Largest dimension of their states."""
G = 0.8
"""Noise scale of the chains."""


@dataclass(frozen=True)
class TimedFunctions(ObjectiveFunctions):
    """The functions of the objective at temperatures by flow time, and the predictions about them."""

    temperatures: Temperatures = temperatures_of
    by_time: Callable[[Sequence[float], Sequence[float]], float] = predictions.drift_error_by_time
    path_kl: Callable[[Sequence[float], Sequence[float]], float] = predictions.path_kl_by_time
    label_noise: Callable[[float, float], float] = predictions.label_noise


TIMED = TimedFunctions()


def slips(**wrong: Mapping[str, Any]) -> Callable[[Cooling], dict[str, Any]]:
    """Mutants of ``TIMED``: those functions, and temperatures that are wrong for a profile."""
    return lambda cooling: replace_each(TIMED, temperatures=temperature_slips(cooling), **wrong)


@dataclass(frozen=True)
class Timed:
    """A fine-tune at retentions by flow time.

    Attributes:
        problem: the fine-tune.
        profile: the retentions.
        rho: of each state, (n,).
    """

    problem: FineTune
    profile: Retentions
    rho: Tensor

    @property
    def optimum(self) -> Tensor:
        """b_tgt + rho(t) Delta."""
        return self.problem.b_tgt + self.rho[:, None] * (self.problem.b_pre - self.problem.b_tgt)

    def beta(self, functions: TimedFunctions) -> Tensor:
        """The temperature of each state."""
        return functions.temperatures(self.profile, self.problem.states.t)

    def by_node(self, values: Tensor) -> list[float]:
        """The part of an integral, (n,) values, at each node of the quadrature in t."""
        parts = (self.problem.weight * values).chunk(NODES)
        return [float(part.sum()) for part in parts]

    @property
    def rho_by_node(self) -> list[float]:
        """The retention at each node."""
        return [float(part[0]) for part in self.rho.chunk(NODES)]


def timed_cases(cooling: Cooling, path: Path, generator: Generator) -> Iterator[Timed]:
    """Every problem at every retention."""
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        for profile in cooling.profiles:
            yield Timed(problem, profile, profile.retention(problem.states.t))


def slope_of(loss: Loss, drift: Tensor, target: Tensor, problem: FineTune, beta: Tensor) -> Tensor:
    """d loss/d drift at every state, (n, d), without the quadrature's weights."""
    drift = drift.detach().requires_grad_()
    ones: Any = torch.ones_like(beta)
    total = loss(drift, target, problem.b_pre, beta, ones).sum()  # type: ignore[arg-type]
    return torch.autograd.grad(total, drift)[0]


@claim_for_each(
    cooled_profiles,
    "T19-optimum-{name}",
    statement=(
        "b_tgt + rho(t) Delta is the one minimum of the marginal, the conditional and the blended objective at "
        "temperatures beta(t) = rho(t)/(1 - rho(t)) > -1: its gradient is 0, its Hessian 2 (1 + beta(t)) w, or 2 w."
    ),
    reference="theory, T19",
    subject=lambda cooling: TIMED,  # noqa: ARG005
    bound=exact(1e-9),
    mutants=slips(blend=BLENDS, penalty=STRENGTHS, blended=GOALS),
    seeds=1,
    conditions=CONDITIONS,
    component="profile:{name}",
    uses={"path": registered("path", "linear")},
    item_as="cooling",
)
def slope_at_optimum(functions: TimedFunctions, generator: Generator, *, path: Path, cooling: Cooling) -> float:
    """The gradient at the optimum, in the mean over labels at each time, and away from it, less its value."""
    worst = 0.0
    for case in timed_cases(cooling, path, generator):
        problem, beta, optimum = case.problem, case.beta(functions), case.optimum
        worst = max(worst, relative_difference(functions.blend(problem.b_tgt, problem.b_pre, beta), optimum))  # type: ignore[arg-type]
        away = optimum + problem.other
        for loss, curvature in ((functions.penalty, 1 / (1 - case.rho)), (functions.blended, torch.ones_like(beta))):
            expected = 2 * curvature[:, None] * problem.other
            worst = max(worst, relative_difference(slope_of(loss, away, problem.b_tgt, problem, beta), expected))
            # The conditional drift has the mean b_tgt given x: products with functions of x alone vanish.
            slope = slope_of(loss, optimum, problem.conditional, problem, beta)
            along = case.by_node((slope * problem.other).sum(1))
            worst = max(worst, max(map(abs, along)) / problem.gap**2)
    return worst


@claim_for_each(
    cooled_profiles,
    "T19-risks-{name}",
    statement=(
        "At each (t, x) L(b) - L(b_beta) = (1 + beta(t)) w |b - b_beta|^2, L(b_beta) = rho(t) w |Delta|^2, also below "
        "zero, and C = (1 + beta(t)) B + rho(t) w |b_t(x|z) - b_pre|^2."
    ),
    reference="theory, T19 with T2 and T3",
    subject=lambda cooling: TIMED,  # noqa: ARG005
    bound=exact(1e-9),
    mutants=slips(
        excess={"1 + beta dropped": risk(lambda beta: 1.0)},  # noqa: ARG005
        least={name: risk(share) for name, share in SHARES.items()},
        form_gap={name: risk(share) for name, share in SHARES.items()},
        penalty=STRENGTHS,
        blended=GOALS,
    ),
    seeds=1,
    conditions=CONDITIONS,
    component="profile:{name}",
    uses={"path": registered("path", "linear")},
    item_as="cooling",
)
def risk_difference(functions: TimedFunctions, generator: Generator, *, path: Path, cooling: Cooling) -> float:
    """Excess risk, least risk and the difference of the forms at every state, less their values."""
    worst = 0.0
    for case in timed_cases(cooling, path, generator):
        problem, optimum, other = case.problem, case.optimum, case.problem.other
        beta: Any = case.beta(functions)
        rest = problem.b_pre, beta, problem.weight
        least = functions.penalty(optimum, problem.b_tgt, *rest)
        excess = functions.penalty(other, problem.b_tgt, *rest) - least
        by_blended = (1 + beta) * functions.blended(other, problem.conditional, *rest)
        by_blended = by_blended + functions.form_gap(problem.conditional, *rest)
        by_hand = problem.weight * case.rho * squared_norm(problem.b_pre - problem.b_tgt)
        worst = max(
            worst,
            relative_difference(functions.excess(other, optimum, beta, problem.weight), excess),
            relative_difference(functions.least(problem.b_tgt, *rest), least),
            float((least - by_hand).abs().max() / excess.max()),
            relative_difference(by_blended, functions.penalty(other, problem.conditional, *rest)),
        )
    return worst


def _blended_by_time(target: AffineDrift, anchor: AffineDrift, case: Timed, functions: TimedFunctions) -> AffineDrift:
    """The optimum at retentions by flow time, by the shipped blend."""

    def drift(t: Tensor) -> Affine:
        beta: Any = functions.temperatures(case.profile, t)
        (slope, shift), (slope0, shift0) = target(t), anchor(t)
        return functions.blend(slope, slope0, beta), functions.blend(shift, shift0, beta)

    return drift


def _anchored_in(target: AffineDrift, anchor: AffineDrift, step: int) -> AffineDrift:
    """The target drift, but the pretrained one in one step of a chain."""

    def drift(t: Tensor) -> Affine:
        here = torch.arange(len(t)) == step
        pairs = zip(target(t), anchor(t), strict=True)
        slope, shift = (torch.where(here.view(-1, *[1] * (one.ndim - 1)), other, one) for one, other in pairs)
        return slope, shift

    return drift


def _errors_added(rhos: Sequence[float], gaps: Sequence[float]) -> float:
    return sum(abs(rho) * gap for rho, gap in zip(rhos, gaps, strict=True))


def _mean_outside(rhos: Sequence[float], gaps: Sequence[float]) -> float:
    return abs(sum(rhos)) / len(rhos) * predictions.drift_error_by_time([1.0] * len(gaps), gaps)


def _error_slips(cooling: Cooling) -> dict[str, TimedFunctions]:
    by_time = {"errors added": _errors_added}
    if cooling.varies:
        by_time["the mean retention outside the norm"] = _mean_outside
    temperatures = temperature_slips(cooling)
    temperatures.pop(SIGN)  # of which a norm knows nothing
    return replace_each(
        TIMED,
        temperatures=temperatures,
        blend=BLENDS,
        by_time=by_time,
        path_kl={
            "rho for rho squared": _errors_added,
            "rho^4": lambda rhos, kls: predictions.path_kl_by_time([rho**2 for rho in rhos], kls),
        },
    )


@claim_for_each(
    cooled_profiles,
    "T19-drift-error-{name}",
    statement=(
        "|b_beta - b_tgt|_w^2 = int w rho(t)^2 E|Delta|^2 dt, rho inside the norm, and KL(P_tgt || P_beta) = 1/2 int "
        "rho(t)^2 E|Delta|^2/g^2 dt."
    ),
    reference="theory, T19 with T4 and T5",
    subject=lambda cooling: TIMED,  # noqa: ARG005
    bound=exact(1e-9),
    mutants=_error_slips,
    seeds=1,
    conditions=(
        f"{CONDITIONS} Path KL: joint laws of chains of {STEPS} Euler steps in dimension {CHAINS}, independent "
        f"coupling, for which it is exact; g = {G:g}."
    ),
    component="profile:{name}",
    uses={"path": registered("path", "linear")},
    item_as="cooling",
)
def error_difference(functions: TimedFunctions, generator: Generator, *, path: Path, cooling: Cooling) -> float:
    """The drift error, and the path KL of chains, less what their parts by flow time predict."""
    worst = 0.0
    for case in timed_cases(cooling, path, generator):
        problem = case.problem
        beta: Any = case.beta(functions)
        error = problem.norm(functions.blend(problem.b_tgt, problem.b_pre, beta) - problem.b_tgt)
        gaps = [square**0.5 for square in case.by_node(squared_norm(problem.b_pre - problem.b_tgt))]
        worst = max(worst, abs(error - functions.by_time(case.rho_by_node, gaps)) / problem.gap)
        if len(problem.target.mean0) > CHAINS or problem.target.coupling != "independent":
            continue
        target, anchor = drifts_of(problem, G)
        law = chain_law(target, G, start_of(problem), STEPS)
        blended = _blended_by_time(target, anchor, case, functions)
        divergence = gaussian_kl(*law, *chain_law(blended, G, start_of(problem), STEPS))
        parts = [
            gaussian_kl(*law, *chain_law(_anchored_in(target, anchor, step), G, start_of(problem), STEPS))
            for step in range(STEPS)
        ]
        rhos = case.profile.retention(torch.arange(STEPS, dtype=torch.float64) / STEPS).tolist()
        worst = max(worst, abs(divergence - functions.path_kl(rhos, parts)) / sum(parts))
    return worst


@claim_for_each(
    cooled_profiles,
    "T19-label-noise-{name}",
    statement="At each t the blended form's label noise is (1 - rho(t))^2 that of plain flow matching: more below 0.",
    reference="theory, T19 with T9",
    subject=lambda cooling: TIMED,  # noqa: ARG005
    bound=exact(1e-9),
    mutants=slips(
        label_noise={
            "1 - rho not squared": lambda rho, plain: (1 - rho) * plain,
            "1 - rho^2": lambda rho, plain: (1 - rho**2) * plain,
            "plain": lambda rho, plain: plain,  # noqa: ARG005
        },
        blended=GOALS,
    ),
    seeds=1,
    conditions=CONDITIONS,
    component="profile:{name}",
    uses={"path": registered("path", "linear")},
    item_as="cooling",
)
def noise_difference(functions: TimedFunctions, generator: Generator, *, path: Path, cooling: Cooling) -> float:
    """The blended loss's variance by labels at each t, less its prediction from plain flow matching's."""
    worst = 0.0
    for case in timed_cases(cooling, path, generator):
        problem = case.problem
        beta: Any = case.beta(functions)
        ones = torch.ones_like(problem.weight)

        def noise(loss: Loss, beta: Any) -> list[float]:
            rest = problem.b_pre, beta, ones  # noqa: B023
            of_labels = loss(problem.other, problem.conditional, *rest)  # noqa: B023
            return case.by_node(of_labels - loss(problem.other, problem.b_tgt, *rest))  # noqa: B023

        plain = noise(functions.penalty, 0.0)
        predicted = [functions.label_noise(*pair) for pair in zip(case.rho_by_node, plain, strict=True)]
        size = problem.mean(squared_norm(problem.conditional)) + problem.gap**2
        found = noise(functions.blended, beta)
        worst = max(worst, *(abs(one - other) / size for one, other in zip(found, predicted, strict=True)))
    return worst
