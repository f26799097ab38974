"""Pairs (x0, x1): which set is paired, and with what randomness. The kernel's part of every coupling."""

from dataclasses import replace

import torch
from torch import Tensor

from gftkit.contracts import Batch, Coupling
from gftkit.data import Order, Source
from gftkit.errors import PluginError
from gftkit.randomness import stream


class Pairs:
    """The batches of a run: every one is a function of seed and step, so that a run resumes exactly.

    Each process makes the whole global batch and takes its share: pairing is over the global batch, and the pairs
    don't depend on the number of processes.

    Args:
        order: the data in the order of the run.
        source: draws x0.
        coupling: pairs them.
        batch_size: pairs in a step.
        pairing_batch: pairs made at once, a multiple of batch_size.
        seed: of source and coupling.
        within_labels: pair each label by itself, as a conditional drift needs (theory, T10).
    """

    def __init__(
        self,
        order: Order,
        source: Source,
        coupling: Coupling,
        batch_size: int,
        pairing_batch: int,
        seed: int,
        within_labels: bool,
    ) -> None:
        self.order, self.source, self.coupling = order, source, coupling
        self.batch_size, self.pairing_batch = batch_size, pairing_batch
        self.seed, self.within_labels = seed, within_labels
        self._made: tuple[int, Batch] | None = None

    def at(self, step: int) -> Batch:
        """The pairs of one step, (batch_size, *event) each, with x0 set."""
        number, offset = divmod(step * self.batch_size, self.pairing_batch)
        if self._made is None or self._made[0] != number:
            self._made = number, self._pair(number)
        return self._made[1][offset : offset + self.batch_size]

    def _pair(self, number: int) -> Batch:
        batch = self.order.take(number * self.pairing_batch, self.pairing_batch)
        if batch.x0 is not None:  # the data set comes with its own pairs
            return batch
        x0 = self.source(self.pairing_batch, stream(self.seed, "source", number))
        generator = stream(self.seed, "coupling", number)
        order = pair(self.coupling, x0, batch.x1, generator, batch.label, self.within_labels)
        return replace(batch, x0=x0[order])


def pair(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    generator: torch.Generator,
    label: Tensor | None = None,
    within_labels: bool = False,
) -> Tensor:
    """The permutation of a coupling, for the whole set or within each label.

    Raises:
        PluginError: where the coupling doesn't give a permutation.
    """
    if not within_labels or label is None:
        return _checked(coupling.pair(x0, x1, generator, label), len(x0), coupling)
    order = torch.empty(len(x0), dtype=torch.int64)
    for value in torch.unique(label):
        chosen = (label == value).nonzero()[:, 0]
        inner = coupling.pair(x0[chosen], x1[chosen], generator, label[chosen])
        order[chosen] = chosen[_checked(inner, len(chosen), coupling)]
    return order


def _checked(order: Tensor, n: int, coupling: Coupling) -> Tensor:
    if order.shape != (n,) or not torch.equal(order.sort().values, torch.arange(n)):
        raise PluginError(
            f"coupling {type(coupling).__name__}: wanted a permutation of {n} indices, which keeps every sample once, "
            f"got {tuple(order.shape)} with {len(torch.unique(order))} different ones."
        )
    return order
