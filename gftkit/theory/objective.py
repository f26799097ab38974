"""The objectives of Gradual Fine-Tuning: one pure function per equation of the theory page, section 2.

Drifts are (batch, *event), weights (batch,) or None for 1. A temperature is a number above -1, or (batch,) of them
where it depends on flow time (T19). Every loss is per sample, (batch,): the squared norm is summed over the event, so a
mean over the batch estimates the integral.

Reference: Gradual Fine-Tuning for Flow Matching Models, arXiv:2601.22495.
"""

from typing import Literal, overload

from torch import Tensor

Form = Literal["blended", "penalty"]
Temperature = float | Tensor
"""beta > -1: one for all samples, or (batch,)."""


@overload
def retention(temperature: float) -> float: ...
@overload
def retention(temperature: Tensor) -> Tensor: ...
@overload
def retention(temperature: Temperature) -> Temperature: ...
def retention(temperature: Temperature) -> Temperature:
    """rho = beta/(1 + beta) in (-inf, 1): the share of the pretrained drift that is kept.

    Below 0 the optimum lies beyond the target drift, as seen from the pretrained one (T20).

    Raises:
        ValueError: for a number that isn't above -1 or not finite; the values of a tensor are not looked at.

    Example:
        >>> retention(1.0), retention(0.0), retention(-0.2)
        (0.5, 0.0, -0.25)
    """
    if not isinstance(temperature, Tensor) and not -1 < temperature < float("inf"):
        raise ValueError(f"temperature: wanted a finite number above -1, got {temperature}.")
    return temperature / (1 + temperature)


@overload
def temperature_of(retention: float) -> float: ...
@overload
def temperature_of(retention: Tensor) -> Tensor: ...
def temperature_of(retention: float | Tensor) -> float | Tensor:
    """beta = rho/(1 - rho) in (-1, inf): the temperature at which the optimum keeps a share of the pretrained drift.

    Raises:
        ValueError: for a number that isn't below 1 or not finite; the values of a tensor are not looked at.

    Example:
        >>> temperature_of(0.5), temperature_of(-0.25)
        (1.0, -0.2)
    """
    if not isinstance(retention, Tensor) and not -float("inf") < retention < 1:
        raise ValueError(f"retention: wanted a finite number below 1, got {retention}.")
    return retention / (1 - retention)


def squared_norm(x: Tensor) -> Tensor:
    """|x|^2 summed over the event: (batch, *event) -> (batch,)."""
    return x.flatten(1).square().sum(1)


def blend(target: Tensor, anchor: Tensor, temperature: Temperature) -> Tensor:
    """(b_t(x|z) + beta b_pre)/(1 + beta): y_beta of the blended form.

    With the target flow's drift for ``target`` it is T1, the optimum b_beta = b_tgt + rho (b_pre - b_tgt).
    """
    rho = retention(temperature)
    share = rho.reshape(-1, *[1] * (target.ndim - 1)) if isinstance(rho, Tensor) else rho
    # In this form temperature 0 gives the target itself, bit for bit.
    return target + share * (anchor - target)


def penalty_loss(
    drift: Tensor, target: Tensor, anchor: Tensor | None, temperature: Temperature, weight: Tensor | None = None
) -> Tensor:
    """w (|b - b_t(x|z)|^2 + beta |b - b_pre|^2): the conditional objective C_beta.

    With the target flow's drift for ``target`` it is the marginal objective L_beta. At temperature 0 the anchor is
    not used and may be None: plain flow matching.
    """
    loss = squared_norm(drift - target)
    if _is_anchored(temperature):
        loss = loss + temperature * squared_norm(drift - _require_anchor(anchor))
    return loss if weight is None else weight * loss


def blended_loss(
    drift: Tensor, target: Tensor, anchor: Tensor | None, temperature: Temperature, weight: Tensor | None = None
) -> Tensor:
    """w |b - y_beta|^2 with y_beta = (b_t(x|z) + beta b_pre)/(1 + beta): the blended objective B_beta.

    Its gradient is C_beta's divided by 1 + beta (T3). At temperature 0 the anchor may be None.
    """
    goal = blend(target, _require_anchor(anchor), temperature) if _is_anchored(temperature) else target
    loss = squared_norm(drift - goal)
    return loss if weight is None else weight * loss


def shared_loss(
    drift: Tensor,
    target: Tensor,
    anchor: Tensor,
    indices: Tensor,
    share: float,
    temperature: Temperature,
    weight: Tensor | None = None,
) -> Tensor:
    """w (|b - b_t(x|z)|^2 + (beta/share) 1_chosen |b - b_pre|^2): C_beta with the anchor on a part of the batch.

    With k of n samples chosen at random, all choices equally likely, and share = k/n, its mean over the batch has the
    penalty form's expectation, and so has its gradient. The choice adds to the gradient of that mean the covariance
    (1/k - 1/n) Cov(w beta grad |b - b_pre|^2), the covariance being that within the batch (divided by n - 1).

    Args:
        drift: b, (batch, *event).
        target: b_t(x|z), (batch, *event).
        anchor: b_pre of the chosen samples, (chosen, *event).
        indices: their places in the batch, (chosen,) of int64.
        share: k/n, in (0, 1].
        temperature: beta, of the whole batch.
        weight: w, (batch,), or None for 1.
    """
    loss = squared_norm(drift - target)
    # index_add takes one type, and under autocast a norm of the part may come in another one.
    pull = squared_norm(drift[indices] - anchor).to(loss.dtype)
    if isinstance(temperature, Tensor):
        loss = loss.index_add(0, indices, temperature[indices] * pull, alpha=1 / share)
    else:
        loss = loss.index_add(0, indices, pull, alpha=temperature / share)
    return loss if weight is None else weight * loss


LOSSES = {"blended": blended_loss, "penalty": penalty_loss}
"""The two forms by the name that a config gives them."""


def excess_risk(drift: Tensor, optimum: Tensor, temperature: Temperature, weight: Tensor | None = None) -> Tensor:
    """T2: L_beta(b) - L_beta(b_beta) = (1 + beta) |b - b_beta|_w^2, per sample."""
    loss = (1 + temperature) * squared_norm(drift - optimum)
    return loss if weight is None else weight * loss


def least_risk(target: Tensor, anchor: Tensor, temperature: Temperature, weight: Tensor | None = None) -> Tensor:
    """T2: L_beta(b_beta) = rho |b_pre - b_tgt|_w^2, per sample."""
    loss = retention(temperature) * squared_norm(anchor - target)
    return loss if weight is None else weight * loss


def form_gap(target: Tensor, anchor: Tensor, temperature: Temperature, weight: Tensor | None = None) -> Tensor:
    """T3: C - (1 + beta) B = rho w |b_t(x|z) - b_pre|^2, per sample: constant in the drift that is trained."""
    return least_risk(target, anchor, temperature, weight)


def _is_anchored(temperature: Temperature) -> bool:
    """True where the anchor takes part."""
    return isinstance(temperature, Tensor) or temperature != 0


def _require_anchor(anchor: Tensor | None) -> Tensor:
    if anchor is None:
        raise ValueError("anchor: wanted its drift, which a temperature other than 0 requires, got None.")
    return anchor
