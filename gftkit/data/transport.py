"""The data of a run whose coupling is a map from the source: kept in memory, in the parts that have a map each."""

import math
from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.data.samples import Samples, Source, permuted_indices
from gftkit.kernel.contracts import Batch, Coupling, TransportMap
from gftkit.kernel.errors import ConfigError, DataError, PluginError
from gftkit.runtime.randomness import stream
from gftkit.storage.tensors import State, digest

BLOCK = 1024
"""Samples that are read at once."""
PROBE = 8
"""Samples that are read again, to see whether they are the same."""


class Transport:
    """A transport map of a run, with its data. ``read``, then ``fit`` or ``load``, come before the first pairs.

    Where ``within_labels``, each label has a map to its own samples: x0 then doesn't depend on the label (theory, T10).

    Args:
        coupling: the map.
        samples: the data.
        source: draws x0.
        seed: of the fit.
        within_labels: fit each label by itself.

    Raises:
        ConfigError: for data that are a law, or take more memory than the coupling's ``memory``.
    """

    def __init__(
        self, coupling: TransportMap, samples: Samples, source: Source, seed: int, *, within_labels: bool
    ) -> None:
        if samples.size is None:
            raise ConfigError(
                f"{samples.where}: the coupling {type(coupling).__name__} maps the source to the samples of a finite "
                f"set, got a law to draw from. Give its `count`, or use another coupling."
            )
        needed = samples.size * math.prod(samples.event_shape) * 4 / 1e9
        if needed > coupling.memory:
            raise ConfigError(
                f"{samples.where}: the coupling {type(coupling).__name__} keeps all samples in memory: "
                f"{samples.size:,} of shape {samples.event_shape} take {needed:.3g} GB, and coupling.memory is "
                f"{coupling.memory:g}. Raise it, take fewer samples by `count`, or use another coupling."
            )
        self.coupling, self.samples, self.source, self.seed = coupling, samples, source, seed
        self.within_labels = within_labels
        self.labels: Tensor | None = None
        self._parts: dict[int | None, Batch] = {}
        self._fitted: dict[int | None, State] = {}
        self.hash = ""
        """SHA-256 of the fitted maps."""
        self.numbers: dict[str, dict[str, float]] = {}
        """What users see of them: the numbers of each, by the label that it belongs to, or "all"."""

    def read(self) -> None:
        """Read all samples, in blocks, and divide them by label.

        Raises:
            DataError: for data with fixed partners x0, and data that change from reading to reading.
        """
        size = self.samples.size or 0
        blocks = [self.samples.at(torch.arange(first, min(first + BLOCK, size))) for first in range(0, size, BLOCK)]
        for block in blocks:
            check_no_partners(self.coupling, block, self.samples.where)
        probe = blocks[0].x1[:PROBE]
        if not torch.equal(self.samples.at(torch.arange(len(probe))).x1, probe):
            raise DataError(
                f"{self.samples.where}: the samples are augmented, since reading them twice gives different ones, and "
                f"the coupling {type(self.coupling).__name__} maps the source to fixed ones. Switch the augmentation "
                f"off, or use another coupling."
            )
        labels = [block.label for block in blocks if block.label is not None]
        self.labels = torch.cat(labels) if labels else None
        if not self.within_labels or self.labels is None:
            self._parts = {None: Batch(torch.cat([block.x1 for block in blocks]), self.labels)}
            return
        for value in torch.unique(self.labels).tolist():
            x1 = torch.cat([block.x1[block.label == value] for block in blocks])
            self._parts[value] = Batch(x1, torch.full((len(x1),), value))

    @property
    def digest(self) -> str:
        """SHA-256 of the data, as they were read."""
        return digest({f"{part}.{name}": x for part, data in self._parts.items() for name, x in data.tensors().items()})

    def fit(self, device: torch.device | str, show: Callable[[int, str], Any]) -> State:
        """Fit every map on a device: tensors by name, for ``load``. ``show`` is given draws so far and a text."""
        self.place(device)
        state: State = {}
        for value, data in self._parts.items():
            which = "all" if value is None else str(value)
            generator = stream(self.seed, "transport", which)
            fitted = self.coupling.fit(data.x1, self.source, generator, show)
            state |= {f"{which}.{name}": tensor.cpu() for name, tensor in fitted.items()}
        return state

    def load(self, state: State, device: torch.device | str) -> None:
        """Take up what ``fit`` gave; data and maps are then on this device."""
        self.place(device)
        self.hash, self.numbers = digest(state), numbers_of(state)
        for value in self._parts:
            prefix = "all." if value is None else f"{value}."
            named = {name.removeprefix(prefix): x for name, x in state.items() if name.startswith(prefix)}
            self._fitted[value] = {name: x.to(device) for name, x in named.items()}

    def place(self, device: torch.device | str) -> None:
        """Move the data to a device."""
        self._parts = {value: data.to(device) for value, data in self._parts.items()}

    def pair(self, x0: Tensor, generator: Generator, label: Tensor | None = None) -> Batch:
        """Each x0 with its datum; of its ``label``, (n,), where each label has a map of its own.

        Raises:
            PluginError: for indices that aren't those of data.
        """
        if None in self._parts:
            return self._pair(None, x0, generator)
        assert label is not None  # the data have labels, or there would be no parts
        device = next(iter(self._parts.values())).x1.device
        x1, x0 = torch.empty(x0.shape, device=device), x0.to(device)
        for value in torch.unique(label).tolist():
            rows = (label == value).nonzero()[:, 0]
            x1[rows.to(device)] = self._pair(value, x0[rows.to(device)], generator).x1
        return Batch(x1, label.to(device), x0)

    def draw(self, count: int, generator: Generator) -> Batch:
        """Fresh pairs; labels in the shares that the data have."""
        label = None
        if None not in self._parts:
            assert self.labels is not None
            label = self.labels[permuted_indices(count, len(self.labels), generator)]
        return self.pair(self.source(count, generator), generator, label)

    def _pair(self, value: int | None, x0: Tensor, generator: Generator) -> Batch:
        data = self._parts[value]
        x0 = x0.to(data.x1.device)
        index = self.coupling.assign(x0, data.x1, self._fitted[value], generator)
        return replace(data[check_indices(index, len(x0), len(data), self.coupling)], x0=x0)


def check_no_partners(coupling: Coupling | TransportMap, batch: Batch, where: str) -> None:
    """Refuse samples with fixed partners x0 under a transport map, which would not be used.

    Raises:
        DataError: for such samples.
    """
    if batch.x0 is not None and isinstance(coupling, TransportMap):
        raise DataError(
            f"{where}: the samples come with x0, their partners in the source, and the coupling "
            f"{type(coupling).__name__} would choose others. Leave x0 out, or use another coupling, which isn't asked."
        )


def numbers_of(state: Mapping[str, Tensor]) -> dict[str, dict[str, float]]:
    """The numbers among a state's tensors, by label and name."""
    numbers: dict[str, dict[str, float]] = {}
    for key, tensor in state.items():
        which, _, name = key.partition(".")
        if tensor.ndim == 0:
            numbers.setdefault(which, {})[name] = float(tensor)
    return numbers


def check_indices(index: Tensor, n: int, size: int, coupling: TransportMap) -> Tensor:
    """The indices of data that a map gives n samples of the source.

    Raises:
        PluginError: for others than n whole numbers from 0 to ``size`` - 1.
    """
    fits = index.shape == (n,) and index.dtype == torch.int64
    # On a GPU to look at the values would make every step wait: there the indexing itself refuses most of them.
    if fits and (index.device.type != "cpu" or not ((index < 0) | (index >= size)).any()):
        return index
    raise PluginError(
        f"coupling {type(coupling).__name__}: wanted {n} indices of int64 from 0 to {size - 1}, got shape "
        f"{tuple(index.shape)} of {index.dtype}" + (f" from {index.min()} to {index.max()}." if index.numel() else ".")
    )
