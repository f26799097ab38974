"""The functions of the objective and their predictions, as training calls them, and likely slips in their place."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow, objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit_verification.oracles.affine import Blend
from gftkit_verification.testbeds.problems.moments import DIMENSIONS, TEMPERATURES, FineTune, draw_fine_tunes, rho_of

CONDITIONS = (
    f"Gaussian problems of dimension {', '.join(map(str, DIMENSIONS))}; independent and optimal coupling; linear path; "
    f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}. Expectations are exact."
)
"""Those of ``cases``."""

Loss = Callable[[Tensor, Tensor, Tensor, float, Tensor], Tensor]
"""(drift, target, anchor, temperature, weight) -> per sample."""
Risk = Callable[[Tensor, Tensor, float, Tensor], Tensor]
Share = Callable[[float], float]
"""Of the anchor, by temperature."""


@dataclass(frozen=True)
class ObjectiveFunctions:
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


OBJECTIVE = ObjectiveFunctions()


def replace_each(functions: Any, **slips: Mapping[str, Any]) -> dict[str, Any]:
    """Mutants of a dataclass of functions, each with one function replaced: by field, the slips."""
    return {
        f"{field.replace('_', ' ')}: {name}": replace(functions, **{field: function})
        for field, wrong in slips.items()
        for name, function in wrong.items()
    }


def objective_slips(**slips: Mapping[str, Any]) -> dict[str, ObjectiveFunctions]:
    """Mutants of the objective: by field of ``ObjectiveFunctions``, the slips' names and functions."""
    return replace_each(OBJECTIVE, **slips)


def scale_states(factor: Any, values: Tensor) -> Tensor:
    """A factor, or one for each state, (batch,), times values, (batch, *event)."""
    if isinstance(factor, Tensor):
        factor = factor.reshape(-1, *[1] * (values.ndim - 1))
    return factor * values


def keep_share(share: Share) -> Blend:
    """A blend that keeps another share of the anchor."""
    return lambda target, anchor, beta: target + scale_states(share(beta), anchor - target)


def penalty_of_strength(strength: Share) -> Loss:
    """A penalty form with another strength of the penalty."""
    return lambda drift, target, anchor, beta, weight: (
        weight * (squared_norm(drift - target) + strength(beta) * squared_norm(drift - anchor))
    )


def blended_toward(blend: Blend) -> Loss:
    """A blended form with another goal."""
    return lambda drift, target, anchor, beta, weight: weight * squared_norm(drift - blend(target, anchor, beta))


def risk(factor: Share, power: float = 1) -> Risk:
    """A multiple of |drift - other|^(2 power), weighted."""
    return lambda drift, other, beta, weight: weight * factor(beta) * squared_norm(drift - other) ** power


def undivided(target: Tensor, anchor: Tensor, beta: float) -> Tensor:
    """The sum that 1 + beta forgot to divide."""
    return target + scale_states(beta, anchor)


def detached_penalty(drift: Tensor, target: Tensor, anchor: Tensor, beta: float, weight: Tensor) -> Tensor:
    """The penalty form's values, without the penalty's gradient."""
    flow_matching = weight * squared_norm(drift - target)
    penalty = objective.penalty_loss(drift, target, anchor, beta, weight) - flow_matching
    return flow_matching + penalty.detach()


SHARES: Mapping[str, Share] = {
    "1/(1 + beta) for rho": lambda beta: 1 / (1 + beta),
    "beta for rho": lambda beta: beta,
    "rho squared": lambda beta: rho_of(beta) ** 2,
}
BLENDS: Mapping[str, Blend] = {name: keep_share(share) for name, share in SHARES.items()}
SIGN: Mapping[str, Blend] = {"the gap's sign": keep_share(lambda beta: -rho_of(beta))}
GOALS: Mapping[str, Loss] = {
    "not divided": blended_toward(undivided),
    "1/(1 + beta) for rho": blended_toward(keep_share(lambda beta: 1 / (1 + beta))),
}
STRENGTHS: Mapping[str, Loss] = {"rho for beta": penalty_of_strength(rho_of)}


def cases(path: Path, generator: Generator) -> Iterator[tuple[FineTune, float]]:
    """Every problem at every temperature."""
    for problem in draw_fine_tunes(path, generator):
        for beta in TEMPERATURES:
            yield problem, beta


def drift_gradient(loss: Loss, drift: Tensor, target: Tensor, problem: FineTune, beta: float) -> Tensor:
    """d loss/d drift at every state, (n, d)."""
    drift = drift.detach().requires_grad_()
    total = loss(drift, target, problem.b_pre, beta, problem.weight).sum()
    return torch.autograd.grad(total, drift)[0]
