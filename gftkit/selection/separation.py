"""Data that choose a profile must be neither those that train a run nor those that judge it: compared by content."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gftkit.data.samples import Samples
from gftkit.kernel.errors import DataError

CHUNK = 4096
"""Samples that are read at once."""
TOLERANCE = 1e-5
"""Largest difference of equal samples, in root mean squares of the data: two formats may round differently."""


def check_separate(held_out: Tensor, other: Samples, what: str) -> None:
    """Refuse held-out data that share a sample with another set, whatever the sets are called.

    A law, of which fresh samples are drawn, shares none.

    Args:
        held_out: the data that are used, scaled, (n, *event).
        other: the other set.
        what: the other set is, for the error.

    Raises:
        DataError: with the number of samples that are in both.
    """
    if count := shared_with(held_out, other):
        raise DataError(
            f"--data: {count} of {len(held_out)} held-out samples are among {what}. Choose a profile by data of their "
            f"own, for example another part of the set by `count`, `skip` and `seed`, or leave --data out: the "
            f"training data alone can choose, too."
        )


def shared_with(x: Tensor, other: Samples) -> int:
    """How many events of x, scaled, (n, *event), are in a set; none of a law's."""
    shared = torch.zeros(len(x), dtype=torch.bool)
    for chunk in _chunks(other):
        shared |= contained(x, chunk)
    return int(shared.sum())


def contained(x: Tensor, others: Tensor) -> Tensor:
    """Which events of x, (n, *event), are among others, (m, *event), up to rounding: (n,) of bool.

    Example:
        >>> x = torch.tensor([[1.0, 2.0], [3.0, 4.0]])
        >>> contained(x, torch.tensor([[3.0, 4.0 + 1e-6], [1.0, 2.1]])).tolist()
        [False, True]
    """
    one, other = (each.flatten(1).double() for each in (x, others))
    tolerance = TOLERANCE * float(one.square().mean().sqrt())
    direction = torch.randn(one.shape[1], generator=torch.Generator().manual_seed(0), dtype=torch.float64)
    # Equal events have nearly equal projections: only those are compared as a whole.
    near = tolerance * float(direction.abs().sum())
    places, order = (other @ direction).sort()
    at = one @ direction
    low, high = torch.searchsorted(places, at - near), torch.searchsorted(places, at + near, right=True)
    found = torch.zeros(len(one), dtype=torch.bool)
    for row in (high > low).nonzero().flatten().tolist():
        candidates = other[order[low[row] : high[row]]]
        found[row] = bool(((candidates - one[row]).abs().amax(1) <= tolerance).any())
    return found


def _chunks(samples: Samples) -> Iterator[Tensor]:
    """All events of a finite set, scaled, some at a time."""
    if samples.size is not None:
        for first in range(0, samples.size, CHUNK):
            yield samples.at(torch.arange(first, min(first + CHUNK, samples.size))).x1
