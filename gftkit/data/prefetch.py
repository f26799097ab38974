"""Pairs made ahead of the loop by worker processes, so that the device waits for neither data nor coupling."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol

import torch
from torch.utils.data import DataLoader, Dataset

from gftkit.data.pairing import Pairs
from gftkit.kernel.contracts import Batch
from gftkit.kernel.errors import GftkitError

SETS_AHEAD = 2
"""Sets of pairs that each worker keeps ready."""


class Batches(Protocol):
    """This process's pairs, step by step."""

    def at(self, step: int) -> Batch:
        """The pairs of one step."""


@contextmanager
def prefetch(pairs: Pairs, first: int, steps: int, workers: int | None, *, pin: bool) -> Iterator[Batches]:
    """The pairs of steps ``first`` to ``steps``, in that order, made by worker processes; by this one for 0 workers.

    The workers make the same pairs as this process would, because every set is a function of seed and number.

    Args:
        pairs: makes them.
        first: the first step.
        steps: one more than the last step.
        workers: how many processes; None for 2 with ``pin`` and 0 without. A transport map on a GPU needs none.
        pin: copy them to page-locked memory, from which a GPU reads without a wait.
    """
    if workers is None:
        workers = 2 if pin else 0
    if pairs.transport is not None and pin:
        workers = 0  # the map is on the GPU, which no worker may use, and reads nothing
    if workers == 0 or first >= steps:
        yield pairs
        return
    numbers = range(pairs.number(first), pairs.number(steps - 1) + 1)
    loader = DataLoader(
        _Sets(pairs),
        batch_size=None,  # a set is a batch already
        sampler=numbers,
        num_workers=workers,
        multiprocessing_context="fork",  # pairs hold functions, which no other start hands on
        prefetch_factor=SETS_AHEAD,
        pin_memory=pin,
        generator=torch.Generator().manual_seed(0),  # else one number of torch's global generator would be used up
    )
    reader = _Ahead(pairs, iter(loader))
    try:
        yield reader
    finally:
        reader.close()


class _Sets(Dataset["Batch | GftkitError"]):
    """Sets of pairs by number. An error of the data comes back as it is: raised, it would reach the user as a trace."""

    def __init__(self, pairs: Pairs) -> None:
        self.pairs = pairs

    def __getitem__(self, number: int) -> Batch | GftkitError:
        try:
            return self.pairs.make(number)
        except GftkitError as error:
            return error


class _Ahead:
    """The sets of a loader, one after another."""

    def __init__(self, pairs: Pairs, sets: Iterator[Batch | GftkitError]) -> None:
        self._pairs, self._sets = pairs, sets
        self._number = -1
        self._set: Batch | None = None

    def at(self, step: int) -> Batch:
        """The pairs of one step; steps are asked for in order."""
        number = self._pairs.number(step)
        if number != self._number:
            pairs = next(self._sets)
            if isinstance(pairs, GftkitError):
                raise pairs
            self._number, self._set = number, pairs
        assert self._set is not None
        return self._pairs.part(self._set, step)

    def close(self) -> None:
        """End the workers."""
        self._sets = iter(())  # the loader's iterator ends its workers when nothing refers to it
