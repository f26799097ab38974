"""Facts about a run's data."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor

from gftkit.data.conditions import LABEL
from gftkit.kernel.errors import ConfigError


@dataclass(frozen=True)
class Facts:
    """Facts about a run's data, kept with the weights so that sampling needs no data.

    Attributes:
        event_shape: shape of one sample.
        classes: number of classes, None without labels.
        range: (low, high) of the data's values, None where they weren't scaled.
        condition_shapes: the named conditions of a sample, each with its shape.
        paired: whether the data have fixed partners x0, so that no coupling was used.
    """

    event_shape: tuple[int, ...]
    classes: int | None
    range: tuple[float, float] | None
    condition_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    paired: bool = False

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> "Facts":
        """The facts from a file's metadata."""
        span = notes["range"]
        shapes = {name: tuple(shape) for name, shape in notes.get("condition_shapes", {}).items()}
        scaled = None if span is None else (span[0], span[1])
        return cls(tuple(notes["event_shape"]), notes["classes"], scaled, shapes, bool(notes.get("paired", False)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata."""
        return {
            "event_shape": list(self.event_shape),
            "classes": self.classes,
            "range": self.range,
            "condition_shapes": {name: list(shape) for name, shape in self.condition_shapes.items()},
            "paired": self.paired,
        }

    def zeros(self, names: Sequence[str], count: int) -> dict[str, Tensor]:
        """Conditions of these names for ``count`` samples, all zero.

        Raises:
            ConfigError: for a condition that the data don't have.
        """
        unknown = [name for name in names if name not in self.condition_shapes and name != LABEL]
        if unknown:
            raise ConfigError(
                f"the drift uses the conditions {', '.join(map(repr, unknown))}, and the data have "
                f"{', '.join(map(repr, self.condition_shapes)) or 'none'}. Give every sample these conditions, or use "
                f"another drift."
            )
        return {
            name: torch.zeros(count, dtype=torch.int64)
            if name == LABEL
            else torch.zeros(count, *self.condition_shapes[name])
            for name in names
        }
