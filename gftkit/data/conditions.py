"""Conditions of a drift beside time and state: taken from the samples of a batch, and left out of some."""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Batch, Coupling
from gftkit.kernel.errors import ConfigError, DataError

LABEL = "label"
"""The condition that is a class: whole numbers, a field of a batch since couplings pair within each class."""


def condition_names(drift: Any) -> tuple[str, ...]:
    """The conditions that a drift uses, in its own order; none where it declares none."""
    return tuple(getattr(drift, "conditions", ()))


def conditions_of(drift: Any, batch: Batch) -> dict[str, Tensor]:
    """The conditions of these samples that a drift declares, as its keywords, each (batch, ...).

    The loop, the anchor, the monitors and the evaluation all ask here, so that they give the same.

    Raises:
        DataError: for a condition that the samples don't have.
    """
    have: Mapping[str, Tensor] = batch.conditions if batch.label is None else {**batch.conditions, LABEL: batch.label}
    wanted = condition_names(drift)
    missing = [name for name in wanted if name not in have]
    if missing:
        raise DataError(
            f"the drift uses the conditions {', '.join(map(repr, wanted))}, and the samples lack "
            f"{', '.join(map(repr, missing))} (they have: {', '.join(map(repr, have)) or 'none'}). Give every sample "
            f"these conditions, or use another drift."
        )
    return {name: have[name] for name in wanted}


def condition_nulls(drift: Any) -> dict[str, Any]:
    """The values that stand for "not given", by condition: the drift's member ``null``; empty where it has none."""
    return dict(getattr(drift, "null", None) or {})


def without_conditions(drift: Any, conditions: Mapping[str, Tensor], where: Tensor | None = None) -> dict[str, Tensor]:
    """The conditions with the drift's null in place of each that has one.

    Args:
        drift: has the null of each condition.
        conditions: of the drift, (batch, ...) each.
        where: (batch,) of bool, the samples whose conditions are left out, all of a sample together; None for all.
    """
    replaced = dict(conditions)
    for name, value in condition_nulls(drift).items():
        values = conditions[name]
        null = torch.as_tensor(value, dtype=values.dtype, device=values.device).expand_as(values)
        if where is None:
            replaced[name] = null
        else:
            here = where.reshape(-1, *[1] * (values.ndim - 1)).to(values.device)
            replaced[name] = torch.where(here, null, values)
    return replaced


def draw_dropped(count: int, share: float, generator: Generator) -> Tensor:
    """(count,) of bool: whose conditions condition dropout leaves out, each with probability ``share``."""
    return torch.rand(count, generator=generator, device=generator.device) < share


def check_null(drift: Any, who: str, where: str) -> None:
    """Refuse a drift that doesn't say what stands for "not given".

    Raises:
        ConfigError: with the reason.
    """
    if condition_nulls(drift):
        return
    reason = "has no `null`, the value for a condition that isn't given"
    raise ConfigError(
        f"{where}: the drift '{who}' {reason if condition_names(drift) else 'uses no condition'}. Use a conditional "
        f"drift with a null (mlp and unet have one), or leave this key out."
    )


def check_nulls(drift: Any, shapes: Mapping[str, tuple[int, ...]]) -> None:
    """Refuse a null that doesn't fit its condition.

    Args:
        drift: has the null of each condition.
        shapes: of the named conditions of a sample.

    Raises:
        ConfigError: for a null that is neither a number nor of the condition's shape.
    """
    for name, value in condition_nulls(drift).items():
        shape, wanted = tuple(getattr(value, "shape", ())), shapes.get(name, ())
        if shape not in ((), wanted):
            raise ConfigError(
                f"convention.null.{name}: wanted a number, or a tensor of the condition's shape {wanted}, got {shape}. "
                f"Use the null of the same tokenizer and encoder, with the same number of tokens."
            )


def check_coupling(coupling: Coupling, name: str, named: tuple[str, ...]) -> list[str]:
    """A warning where a coupling keeps x0 only nearly independent of named conditions.

    Raises:
        ConfigError: for one that doesn't keep it so at all (theory, T10).
    """
    if not named or getattr(coupling, "independent", False):
        return []
    shown = ", ".join(map(repr, named))
    if not getattr(coupling, "conditional", False):
        raise ConfigError(
            f"coupling: '{name}' makes x0 depend on the conditions {shown}. Sampling starts from one source under "
            f"every condition, so the model would be biased (T10). Use conditional-optimal-transport or independent."
        )
    return [
        f"coupling '{name}': x0 given {shown} has the source's law only approximately, and sampling starts from that "
        f"law (T10). A larger `weight` brings it closer; `independent` is exact."
    ]
