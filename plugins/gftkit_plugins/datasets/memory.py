"""Samples held in memory, shared by the data sets that are small enough."""

import torch
from torch import Tensor

from gftkit.kernel import Batch


class InMemory:
    """Samples in one tensor, given out as float32.

    Args:
        values: (n, *event), of any real dtype; uint8 keeps images at a quarter of float32's size.
        labels: (n,) of int64 in [0, classes), or None.
        range: (low, high) of the values, or None.
        classes: how many classes there are, None without labels.

    Example:
        >>> import torch
        >>> data = InMemory(torch.tensor([[0], [255]], dtype=torch.uint8), range=(0.0, 255.0))
        >>> data.batch(torch.tensor([1])).x1
        tensor([[255.]])
    """

    def __init__(
        self,
        values: Tensor,
        labels: Tensor | None = None,
        range: tuple[float, float] | None = None,
        classes: int | None = None,
    ) -> None:
        self.values, self.labels, self.range, self.classes = values, labels, range, classes
        self.event_shape = tuple(values.shape[1:])

    def __len__(self) -> int:
        return len(self.values)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices, (batch,) of int64."""
        label = None if self.labels is None else self.labels[indices]
        return Batch(self.values[indices].to(torch.float32), label)
