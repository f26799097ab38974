"""Classifier-free guidance: a drift pushed away from what it would be without its conditions."""

from typing import Any

import torch
from torch import Tensor

from gftkit.data.conditions import check_null, condition_names, condition_nulls, without_conditions
from gftkit.kernel.contracts import Drift
from gftkit.kernel.errors import ConfigError


class Guided:
    """b_null + scale (b - b_null), where b_null is the drift with its null in place of the conditions.

    Scale 1 is the drift itself, 0 ignores the conditions, above 1 overstates them: samples keep closer to their
    condition and vary less. Beyond 1 the flow ends in no law that is known in closed form, and in particular not in
    p(x|c)^scale p(x)^(1 - scale). Both drifts come from one call of the network, on twice the batch.

    Args:
        drift: a conditional drift with a null, trained with condition dropout.
        scale: the guidance scale, >= 0.

    Reference: Ho, Salimans (2022), Eq. 6 with scale = 1 + w, arXiv:2207.12598; for flows Zheng et al. (2023), Eq. 6,
    arXiv:2311.13443.

    Example:
        >>> import torch
        >>> class Towards(torch.nn.Module):
        ...     conditions, null = ("c",), {"c": 0.0}
        ...     def forward(self, t, x, c):
        ...         return c - x
        >>> Guided(Towards(), 3.0)(torch.zeros(1), torch.zeros(1, 1), c=torch.ones(1, 1))
        tensor([[3.]])
    """

    def __init__(self, drift: Drift, scale: float) -> None:
        self.drift, self.scale = drift, scale
        self.conditions, self.null = condition_names(drift), condition_nulls(drift)

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        nulls = without_conditions(self.drift, conditions)
        both = {name: torch.cat([nulls[name], values]) for name, values in conditions.items()}
        unconditional, conditional = self.drift(torch.cat([t, t]), torch.cat([x, x]), **both).chunk(2)
        return unconditional + self.scale * (conditional - unconditional)


def with_guidance(drift: Drift, scale: float) -> Drift:
    """The drift under guidance; at scale 1 the very drift, which costs nothing more."""
    return drift if scale == 1 else Guided(drift, scale)


def check_guidance(scale: float, drift: Any, dropout: float, where: str) -> None:
    """Refuse guidance of a drift that never learned what it is without conditions.

    Args:
        scale: the guidance scale.
        drift: what would be guided.
        dropout: ``train.condition_dropout`` of the run that trained it.
        where: the key, for the message.

    Raises:
        ConfigError: with the reason.
    """
    if scale == 1:
        return
    if scale < 0 or scale != scale or scale == float("inf"):
        raise ConfigError(f"{where}: wanted a finite scale >= 0, got {scale}.")
    check_null(drift, type(drift).__name__, where)
    if dropout == 0:
        raise ConfigError(
            f"{where}: {scale:g} requires the drift without conditions, and this run didn't train it "
            f"(train.condition_dropout is 0). Train with, say, train.condition_dropout: 0.1, or use guidance 1."
        )
