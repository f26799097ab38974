"""Blocks of neighbours, for sets whose files can be read anywhere."""

import torch
from torch import Tensor

MOST = 1024
"""Samples in a block, at most."""


def blocks_of_neighbours(n: int) -> Tensor:
    """Sizes of blocks of at most ``MOST`` neighbours that make n >= 1 samples, as even as can be.

    Example:
        >>> blocks_of_neighbours(3000).tolist()
        [1000, 1000, 1000]
    """
    count = -(-n // MOST)
    return torch.full((count,), n // count) + (torch.arange(count) < n % count)
