"""Pairs (x0, x1): which set is paired, and with what randomness. gftkit's part of every coupling."""

import copy
from collections.abc import Mapping
from dataclasses import replace
from typing import Any, Literal

import torch
from torch import Tensor

from gftkit.data.samples import Source, VisitOrder
from gftkit.data.transport import Transport
from gftkit.kernel.contracts import Batch, Coupling, TransportMap
from gftkit.kernel.errors import PluginError
from gftkit.runtime.randomness import stream

Within = Literal["global", "process"]
"""Over which set the coupling pairs: the batch of all processes, or each process's share of it."""


class Pairs:
    """The batches of a run: every one is a function of seed and step, so that a run resumes exactly.

    Of several processes each makes the whole global batch and takes its share: pairing is over the global batch, and
    the pairs don't depend on the number of processes. Where reading costs more than it helps, ``within`` has each
    process read and pair its share by itself: then the pairs do.

    Args:
        order: the data in the order of the run.
        source: draws x0.
        coupling: pairs them. A transport map isn't asked before its ``transport`` is fitted.
        batch_size: pairs in a step.
        pairing_batch: pairs made at once, a multiple of batch_size.
        seed: of source and coupling.
        within_labels: pair each label by itself, as a conditional drift needs (theory, T10).
        process: which of the processes this is, and how many there are; both sizes are multiples of their number.
        within: pair within the process, "process", or over all of them, "global".
        conditions: names of the conditions that the drift is given, for couplings that heed them.
    """

    def __init__(
        self,
        order: VisitOrder,
        source: Source,
        coupling: Coupling | TransportMap,
        batch_size: int,
        pairing_batch: int,
        seed: int,
        *,
        within_labels: bool,
        process: tuple[int, int] = (0, 1),
        within: Within = "global",
        conditions: tuple[str, ...] = (),
    ) -> None:
        self.order, self.source, self.coupling = order, source, coupling
        self.batch_size, self.pairing_batch = batch_size, pairing_batch
        self.seed, self.within_labels = seed, within_labels
        self.process, self.within, self.conditions = process, within, conditions
        self.transport = (
            Transport(coupling, order.samples, source, seed, within_labels=within_labels)
            if isinstance(coupling, TransportMap)
            else None
        )
        self._latest: tuple[int, Batch] | None = None

    def shared(self, process: tuple[int, int], within: Within) -> "Pairs":
        """The same pairs as one of several processes sees them."""
        changed = copy.copy(self)  # shares data and coupling, which may be large
        changed.process, changed.within, changed._latest = process, within, None
        return changed

    def number(self, step: int) -> int:
        """The number of the set, made at once, that a step's pairs are part of."""
        return step * self.batch_size // self.pairing_batch

    def at(self, step: int) -> Batch:
        """This process's pairs of one step, (batch_size / processes, *event) each, with x0 set."""
        number = self.number(step)
        # A set serves several steps where pairing_batch is larger than batch_size.
        if self._latest is None or self._latest[0] != number:
            self._latest = number, self.make(number)
        return self.part(self._latest[1], step)

    def part(self, pairs: Batch, step: int) -> Batch:
        """This process's pairs of one step, of the set that they were made in."""
        index, count = self.process
        offset, size = step * self.batch_size % self.pairing_batch, self.batch_size // count
        first = offset // count if self.within == "process" else offset + index * size
        return pairs[first : first + size]

    def make(self, number: int) -> Batch:
        """A set of pairs: the global one, or this process's own."""
        index, count = self.process if self.within == "process" else (0, 1)
        size = self.pairing_batch // count
        first = number * self.pairing_batch + index * size
        # Named by the set's number and not drawn one after another: any set can be made by itself, by a worker ahead of
        # the loop or after a resume. Pairing by process adds the process, else all would draw the same sources.
        whose = (number, index) if count > 1 else (number,)
        generator = stream(self.seed, "coupling", *whose)
        if self.transport is not None:
            labels = self.transport.labels
            label = None if labels is None else labels[self.order.indices(first, size)]
            return self.transport.pair(self.source(size, stream(self.seed, "source", *whose)), generator, label)
        batch = self.order.take(first, size)
        if batch.x0 is not None:  # the data set comes with its own pairs
            return batch
        x0 = self.source(size, stream(self.seed, "source", *whose))
        named = {name: batch.conditions[name] for name in self.conditions}
        assert not isinstance(self.coupling, TransportMap)
        order = pair(
            self.coupling, x0, batch.x1, generator, batch.label, within_labels=self.within_labels, conditions=named
        )
        return replace(batch, x0=x0[order])


def pair(
    coupling: Coupling,
    x0: Tensor,
    x1: Tensor,
    generator: torch.Generator,
    label: Tensor | None = None,
    *,
    within_labels: bool = False,
    conditions: Mapping[str, Tensor] | None = None,
) -> Tensor:
    """The permutation of a coupling, for the whole set or within each label.

    Args:
        coupling: pairs.
        x0: source samples, (n, *event).
        x1: data, (n, *event).
        generator: of the coupling's randomness.
        label: (n,), or None.
        within_labels: pair each label by itself.
        conditions: named conditions that x0 shall not depend on, (n, *shape) each; for couplings that heed them.

    Raises:
        PluginError: where the coupling doesn't give a permutation.
    """
    heeded = conditions if conditions and getattr(coupling, "conditional", False) else {}

    def ask(rows: Any) -> Tensor:
        more: Any = {"conditions": {name: values[rows] for name, values in heeded.items()}} if heeded else {}
        mine = None if label is None else label[rows]
        order: Tensor = coupling.pair(x0[rows], x1[rows], generator, mine, **more)
        return _check_permutation(order, len(x0[rows]), coupling)

    if not within_labels or label is None:
        return ask(slice(None))
    order = torch.empty(len(x0), dtype=torch.int64)
    for value in torch.unique(label):
        rows = (label == value).nonzero()[:, 0]
        order[rows] = rows[ask(rows)]
    return order


def _check_permutation(order: Tensor, n: int, coupling: Coupling) -> Tensor:
    if order.shape != (n,) or not torch.equal(order.sort().values, torch.arange(n)):
        raise PluginError(
            f"coupling {type(coupling).__name__}: wanted a permutation of {n} indices, got shape {tuple(order.shape)} "
            f"with {len(torch.unique(order))} different indices."
        )
    return order
