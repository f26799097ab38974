"""Likely slips that several claims must reject: of the blended loss, and of the loop around it."""

from collections.abc import Callable
from typing import Any

from torch import Tensor

from gftkit.theory.objective import blended_loss, retention, squared_norm
from gftkit.training.steps import Steps
from gftkit_verification.testbeds.loops.shipped import build_loop

Loss = Callable[..., Tensor]
"""(drift, target, anchor, temperature) -> (batch,), like ``gftkit.theory.objective.blended_loss``."""


def swapped(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """Target and anchor change places: rho for 1 - rho."""
    return blended_loss(drift, anchor, target, temperature)


def beta_for_rho(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """The share of the anchor is the temperature."""
    return squared_norm(drift - target - temperature * (anchor - target))


def flipped(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """The gap's sign."""
    return squared_norm(drift - target + retention(temperature) * (anchor - target))


def unanchored(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:  # noqa: ARG001
    """Plain flow matching."""
    return squared_norm(drift - target)


def shared(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:  # noqa: ARG001
    """The anchor follows the weights that are trained: only the learning rate is scaled, by 1 - rho (theory, T18)."""
    return blended_loss(drift, target, drift.detach(), temperature)


def doubled(drift: Tensor, target: Tensor, anchor: Tensor, temperature: float) -> Tensor:
    """Twice the loss."""
    return 2 * blended_loss(drift, target, anchor, temperature)


def penalty_form(**options: Any) -> Steps:
    """The loop with the penalty form, where the blended one is meant."""
    return build_loop(**{**options, "form": "penalty"})


def sharing_anchor(**options: Any) -> Steps:
    """The loop with an anchor that follows the weights that are trained."""
    loop = build_loop(**options)
    loop.anchor = lambda t, x: loop.drift(t, x).detach()  # type: ignore[assignment]
    return loop


def rho_for_beta(**options: Any) -> Steps:
    """The loop at the temperature rho."""
    loop = build_loop(**options)
    temperature = loop.temperature
    loop.temperature = lambda step: retention(temperature(step))  # type: ignore[method-assign]
    return loop


def never_cooling(**options: Any) -> Steps:
    """The loop at its first temperature throughout: stale progress."""
    loop = build_loop(**options)
    first = loop.temperature(0)
    loop.temperature = lambda step: first  # type: ignore[method-assign]  # noqa: ARG005
    return loop
