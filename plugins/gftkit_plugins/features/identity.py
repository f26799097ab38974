"""Events as they are."""

from torch import Tensor


class Identity:
    """The flattened event itself, (n, *event) -> (n, size).

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("feature", "identity")(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """

    def __call__(self, x: Tensor) -> Tensor:
        """(n, *event) -> (n, size)."""
        return x.flatten(1)
