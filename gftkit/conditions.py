"""Conditions: what a drift is told beside time and state, taken from the samples of a batch."""

from collections.abc import Mapping
from typing import Any

from torch import Tensor

from gftkit.contracts import Batch
from gftkit.errors import DataError

LABEL = "label"
"""The condition that is a class: whole numbers, held apart in a batch since couplings pair within each class."""


def names(drift: Any) -> tuple[str, ...]:
    """The conditions that a drift uses, in its own order; none where it declares none."""
    return tuple(getattr(drift, "conditions", ()))


def of(drift: Any, batch: Batch) -> dict[str, Tensor]:
    """What a drift is given with these samples: the keywords that it declares, each (batch, ...).

    The loop, the anchor, the monitors and the evaluation all ask here, so that they give the same.

    Raises:
        DataError: for a condition that the samples don't have.
    """
    have: Mapping[str, Tensor] = batch.conditions if batch.label is None else {**batch.conditions, LABEL: batch.label}
    wanted = names(drift)
    missing = [name for name in wanted if name not in have]
    if missing:
        raise DataError(
            f"the drift is given {', '.join(map(repr, wanted))}, and the samples come without "
            f"{', '.join(map(repr, missing))} (they have: {', '.join(map(repr, have)) or 'none'}). "
            f"Give every sample these conditions, or use another drift."
        )
    return {name: have[name] for name in wanted}
