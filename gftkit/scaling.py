"""The map between a data set's values and the interval [-1, 1] that drifts are trained on."""

from dataclasses import dataclass

from torch import Tensor


@dataclass(frozen=True)
class Scaling:
    """x -> 2 (x - low)/(high - low) - 1 and back; the identity where the data declare no range.

    Attributes:
        range: (low, high) of the data's values, or None.
    """

    range: tuple[float, float] | None = None

    def scale(self, x: Tensor) -> Tensor:
        """Data values to training values."""
        if self.range is None:
            return x
        low, high = self.range
        return (x - low) * (2 / (high - low)) - 1

    def unscale(self, x: Tensor) -> Tensor:
        """Training values to data values."""
        if self.range is None:
            return x
        low, high = self.range
        return (x + 1) * ((high - low) / 2) + low
