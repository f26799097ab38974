"""Data as gftkit uses them: scaled, checked, in consecutive random permutations."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.data.blocks import SHUFFLE_BUFFER, Blocks, blocks_of
from gftkit.kernel.contracts import Batch, Dataset, Sampler
from gftkit.kernel.errors import DataError
from gftkit.runtime.randomness import stream

RESERVED = ("t", "x", "label", "x0", "x1")
"""Names that mean something else to a drift or a data set, so that no condition has them."""

Source = Callable[[int, Generator], Tensor]
"""Draws n source samples, (n, *event), with a CPU generator."""


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


class Samples:
    """A data set or law as gftkit reads it: float32, scaled to [-1, 1], checked.

    Args:
        data: the component.
        where: its key in the config, for errors.
        event_shape: the shape that its events must have, or None to take what comes.
        condition_shapes: the named conditions that it must have, or None to take what comes.

    Raises:
        DataError: for an empty set, or events or conditions of another shape.
    """

    def __init__(
        self,
        data: Dataset | Sampler,
        where: str,
        event_shape: tuple[int, ...] | None = None,
        condition_shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        self.data, self.where = data, where
        self.event_shape = tuple(data.event_shape)
        self.scaling = Scaling(None if data.range is None else (float(data.range[0]), float(data.range[1])))
        self.condition_shapes = condition_shapes_of(data)
        self.classes = classes_of(data)
        self.size = len(data) if isinstance(data, Dataset) else None
        if self.size == 0:
            raise DataError(f"{where}: the data set is empty. Give at least one sample.")
        if event_shape is not None and self.event_shape != event_shape:
            raise DataError(
                f"{where}: wanted samples of shape {event_shape}, like the rest of the run, got {self.event_shape}. "
                f"Resize or crop them (image sets have the option `size`)."
            )
        if condition_shapes is not None and self.condition_shapes != condition_shapes:
            raise DataError(
                f"{where}: wanted the conditions of the training data, {_list_shapes(condition_shapes)}, got "
                f"{_list_shapes(self.condition_shapes)}. Give every sample these conditions."
            )
        for name in self.condition_shapes:
            if not name.isidentifier() or name in RESERVED:
                raise DataError(
                    f"{where}: wanted a condition's name of letters, digits and underscores, other than "
                    f"{', '.join(RESERVED)}, got '{name}'. Rename it."
                )

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples: fresh ones from a law; from a finite set, consecutive random permutations of it."""
        if isinstance(self.data, Dataset):
            return self.at(permuted_indices(n, len(self.data), generator))
        return self._check_batch(self.data.draw(n, generator), n)

    def at(self, indices: Tensor) -> Batch:
        """The samples of a finite set at these indices."""
        assert isinstance(self.data, Dataset)
        return self._check_batch(self.data.batch(indices), len(indices), indices)

    def some(self, count: int, generator: Generator) -> Batch:
        """At most ``count`` different samples."""
        return self.draw(count if self.size is None else min(count, self.size), generator)

    def _check_batch(self, batch: Batch, n: int, indices: Tensor | None = None) -> Batch:
        self._check("x1", batch.x1, n, self.event_shape, indices)
        if batch.x0 is not None:
            self._check("x0", batch.x0, n, self.event_shape, indices)
        if set(batch.conditions) != set(self.condition_shapes):
            raise DataError(
                f"{self.where}: wanted the conditions in its `condition_shapes`, {sorted(self.condition_shapes)}, got "
                f"{sorted(batch.conditions)}."
            )
        for name, values in batch.conditions.items():
            self._check(f"condition '{name}'", values, n, self.condition_shapes[name], indices)
        if batch.label is not None:
            self._check_label(batch.label, n)
        x0 = None if batch.x0 is None else self.scaling.scale(batch.x0.float())
        conditions = {name: values.float() for name, values in batch.conditions.items()}
        return Batch(self.scaling.scale(batch.x1.float()), batch.label, x0, conditions)

    def _check_label(self, label: Tensor, n: int) -> None:
        """Refuse labels that aren't one class for each sample."""
        if label.shape != (n,) or label.dtype != torch.int64:
            raise DataError(
                f"{self.where}: wanted labels of shape ({n},) and type int64, got {tuple(label.shape)} {label.dtype}."
            )
        if n and (int(label.min()) < 0 or (self.classes is not None and int(label.max()) >= self.classes)):
            last = "" if self.classes is None else f" to {self.classes - 1}"
            raise DataError(
                f"{self.where}: wanted labels from 0{last}, got {int(label.min())} to {int(label.max())}. "
                f"Number the classes from 0."
            )

    def _check(self, name: str, values: Tensor, n: int, shape: tuple[int, ...], indices: Tensor | None) -> None:
        """Refuse values of another shape or type, and numbers that aren't finite, naming the sample."""
        if values.shape != (n, *shape) or not values.is_floating_point():
            raise DataError(
                f"{self.where}: wanted {name} of shape {(n, *shape)} and a floating type, got "
                f"{tuple(values.shape)} {values.dtype}."
            )
        # The sum is a quick first check: it isn't finite where a value isn't. It may overflow, hence the second.
        if not values.sum().isfinite() and not torch.isfinite(values).all():
            row = int((~torch.isfinite(values)).reshape(n, -1).any(1).nonzero()[0])
            which = row if indices is None else int(indices[row])
            inside = "" if name == "x1" else f", in its {name}"
            raise DataError(f"{self.where}: sample {which} contains NaN or infinity{inside}. Remove or correct it.")


class VisitOrder:
    """The order in which a run visits its data: a function of seed and position, so that it resumes exactly.

    A data set that declares ``blocks`` is shuffled block by block, another one as a whole; either way every epoch
    visits every sample once.

    Args:
        samples: the data.
        seed: of the permutations.
        shuffle_buffer: samples of a set in blocks that are shuffled together.

    Raises:
        PluginError: for blocks that don't add up to the set.
    """

    def __init__(self, samples: Samples, seed: int, shuffle_buffer: int = SHUFFLE_BUFFER) -> None:
        self.samples, self.seed = samples, seed
        sizes = blocks_of(samples.data, samples.where)
        self._blocks = None if sizes is None else Blocks(sizes, seed, shuffle_buffer)
        self._permutation: tuple[int, Tensor] | None = None

    def take(self, first: int, n: int) -> Batch:
        """Samples ``first`` to ``first + n`` of the endless sequence of random permutations."""
        if self.samples.size is None:
            # Seeded by the position, so that a resumed run draws the same samples without those before them.
            return self.samples.draw(n, stream(self.seed, "data", first))
        return self.samples.at(self.indices(first, n))

    def indices(self, first: int, n: int) -> Tensor:
        """Of a finite set, the indices of the samples that ``take`` gives."""
        size = self.samples.size
        assert size is not None
        parts = []
        while n > 0:
            part = self._part(*divmod(first, size), n)
            parts.append(part)
            first, n = first + len(part), n - len(part)
        return torch.cat(parts)

    def _part(self, epoch: int, offset: int, n: int) -> Tensor:
        """At most n indices of an epoch's permutation, from ``offset`` on."""
        if self._blocks is not None:
            return self._blocks.indices(epoch, offset, n)
        if self._permutation is None or self._permutation[0] != epoch:
            size = self.samples.size or 0
            self._permutation = epoch, torch.randperm(size, generator=stream(self.seed, "data", epoch))
        return self._permutation[1][offset : offset + n]


MANY = 2**24
"""Above so many samples a few are drawn without a permutation of the whole set."""


def condition_shapes_of(data: Dataset | Sampler) -> dict[str, tuple[int, ...]]:
    """The named conditions of a data set's samples, each with its shape for one sample."""
    declared = getattr(data, "condition_shapes", None) or {}
    return {name: tuple(shape) for name, shape in declared.items()}


def classes_of(data: Dataset | Sampler) -> int | None:
    """The number of classes of a data set, None where it has no labels."""
    declared = getattr(data, "classes", None)
    if declared is not None:
        return int(declared)
    labels = getattr(data, "labels", None)
    return None if labels is None or len(labels) == 0 else int(labels.max()) + 1


def _list_shapes(shapes: Mapping[str, tuple[int, ...]]) -> str:
    return ", ".join(f"'{name}' of shape {shape}" for name, shape in shapes.items()) or "none"


def permuted_indices(n: int, size: int, generator: Generator) -> Tensor:
    """n indices below ``size``: consecutive random permutations, so that n may exceed size."""
    # Up to half of the set: beyond, ever more draws of a random sequence would repeat earlier ones.
    if size > MANY and n <= size // 2:
        return _few(n, size, generator)
    rounds = [torch.randperm(size, generator=generator) for _ in range(-(-n // size))]
    return torch.cat(rounds)[:n]


def _few(n: int, size: int, generator: Generator) -> Tensor:
    """n different indices below ``size``, in memory O(n): the first n different ones of a random sequence."""
    drawn = torch.empty(0, dtype=torch.int64)
    while True:
        drawn = torch.cat([drawn, torch.randint(size, (n,), generator=generator)])
        values, inverse = torch.unique(drawn, return_inverse=True)
        if len(values) >= n:
            places = torch.arange(len(drawn))
            first = torch.full((len(values),), len(drawn)).scatter_reduce(0, inverse, places, "amin")
            return drawn[first.sort().values[:n]]


def source_of(samples: Samples) -> Source:
    """A data set as a source: a function that draws x0."""
    return lambda n, generator: samples.draw(n, generator).x1
