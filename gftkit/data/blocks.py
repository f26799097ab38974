"""The order of a large data set that is cheap to read in stretches: blocks shuffled, then samples within windows."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.errors import PluginError
from gftkit.runtime.randomness import stream

SHUFFLE_BUFFER = 2**14
"""Samples of a data set in blocks that are shuffled together where nobody says how many."""


class Blocks:
    """Random permutations of a set of consecutive blocks, each computable from its number alone.

    In every epoch the blocks come in a random order. Neighbours in that order make a window of about
    ``shuffle_buffer`` samples, at least one block, and the samples of a window come in a random order. So an epoch
    visits every sample once, a reader stays within a few blocks for a long while, and the memory is
    O(blocks + window), whatever the number of samples. A window that holds the whole set is a uniform permutation.

    Args:
        sizes: of the blocks, each at least 1, in the order of the set's indices.
        seed: of the permutations.
        shuffle_buffer: samples that are shuffled together, about.

    Example:
        >>> blocks = Blocks([2, 3, 1], seed=0, shuffle_buffer=2)
        >>> sorted(torch.cat([blocks.indices(0, 0, 4), blocks.indices(0, 4, 2)]).tolist())
        [0, 1, 2, 3, 4, 5]
    """

    def __init__(self, sizes: Sequence[int] | Tensor, seed: int, shuffle_buffer: int) -> None:
        self.sizes = torch.as_tensor(sizes, dtype=torch.int64)
        self.starts = self.sizes.cumsum(0) - self.sizes
        self.total = int(self.sizes.sum())
        self.seed = seed
        self._windows = max(1, round(self.total / shuffle_buffer))
        self._epoch: tuple[int, Tensor, Tensor, Tensor] | None = None
        self._window: tuple[int, int, Tensor] | None = None

    def indices(self, epoch: int, offset: int, n: int) -> Tensor:
        """Positions ``offset`` to ``offset + n`` of an epoch's permutation, none beyond its end: at most n of int64."""
        _, bounds, _, _ = self._epoch_of(epoch)
        parts = []
        end = min(offset + n, self.total)
        while offset < end:
            window = int(torch.searchsorted(bounds, offset, right=True)) - 1
            first, last = int(bounds[window]), int(bounds[window + 1])
            parts.append(self._window_of(epoch, window)[offset - first : end - first])
            offset = min(last, end)
        return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64)

    def _epoch_of(self, epoch: int) -> tuple[int, Tensor, Tensor, Tensor]:
        """(epoch, where each window starts, number of blocks before each window, the blocks in their order)."""
        # One epoch and one window are kept: a run reads them in order, and a resumed one computes them again.
        if self._epoch is None or self._epoch[0] != epoch:
            order = torch.randperm(len(self.sizes), generator=stream(self.seed, "blocks", epoch))
            sizes = self.sizes[order]
            starts = sizes.cumsum(0) - sizes
            # A block belongs to the window in which it starts; a window in which none starts isn't there.
            _, counts = torch.unique_consecutive(starts * self._windows // self.total, return_counts=True)
            before = torch.cat([torch.zeros(1, dtype=torch.int64), counts.cumsum(0)])
            bounds = torch.cat([starts, torch.tensor([self.total])])[before]
            self._epoch = epoch, bounds, before, order
        return self._epoch

    def _window_of(self, epoch: int, window: int) -> Tensor:
        """The samples of a window, in their order."""
        if self._window is None or self._window[:2] != (epoch, window):
            _, _, before, order = self._epoch_of(epoch)
            blocks = order[before[window] : before[window + 1]].tolist()
            samples = torch.cat([torch.arange(int(self.sizes[k])) + self.starts[k] for k in blocks])
            shuffled = torch.randperm(len(samples), generator=stream(self.seed, "window", epoch, window))
            self._window = epoch, window, samples[shuffled]
        return self._window[2]


def blocks_of(dataset: Any, who: str = "the data set") -> Tensor | None:
    """The sizes of a data set's blocks, int64, or None where it declares none.

    Raises:
        PluginError: where they aren't positive whole numbers that add up to the size of the set.
    """
    declared = getattr(dataset, "blocks", None)
    if declared is None:
        return None
    sizes = torch.as_tensor(declared)
    size = len(dataset)
    if sizes.ndim != 1 or sizes.is_floating_point() or not (sizes > 0).all() or int(sizes.sum()) != size:
        raise PluginError(
            f"{who}: wanted blocks of at least 1 sample that add up to {size}, the size of the set, got "
            f"{sizes.numel()} that add up to {float(sizes.sum()):g}."
        )
    return sizes.to(torch.int64)
