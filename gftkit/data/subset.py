"""Options that every data set takes: a split, some classes, some of the samples."""

from collections.abc import Callable
from typing import Annotated, Literal

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gftkit.data.blocks import blocks_of
from gftkit.data.samples import classes_of, condition_shapes_of
from gftkit.kernel.contracts import Batch, Dataset, Sampler
from gftkit.kernel.errors import DataError
from gftkit.kernel.hooks import hookimpl

TEST_SHARE = 1 / 3
"""Share of a data set that ``split: test`` takes; ``split: train`` is the rest."""

_DRAWS_AT_MOST = 200
"""Rounds of drawing from a law before a class is called absent."""


class Subset:
    """Chosen samples of a data set, in a chosen order.

    Args:
        dataset: the whole set.
        indices: (n,) of int64, which of its samples; ascending for a set in blocks, which then stays in blocks.
    """

    def __init__(self, dataset: Dataset, indices: Tensor) -> None:
        self.dataset = dataset
        self.indices = indices
        self.event_shape = dataset.event_shape
        self.range = dataset.range
        labels = getattr(dataset, "labels", None)
        self.labels: Tensor | None = None if labels is None else labels[indices]
        self.classes: int | None = classes_of(dataset)
        self.condition_shapes = condition_shapes_of(dataset)
        self.blocks = _block_counts(blocks_of(dataset), indices)

    def __len__(self) -> int:
        return len(self.indices)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices of the subset."""
        return self.dataset.batch(self.indices[indices])


class Fixed:
    """A finite set of samples held in memory.

    Args:
        samples: the samples.
        like: the data set that they came from.
    """

    def __init__(self, samples: Batch, like: Dataset | Sampler) -> None:
        self.samples = samples
        self.event_shape = like.event_shape
        self.range = like.range
        self.labels = samples.label
        self.classes: int | None = classes_of(like)
        self.condition_shapes = condition_shapes_of(like)

    def __len__(self) -> int:
        return len(self.samples)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices."""
        return self.samples[indices]


def _block_counts(blocks: Tensor | None, indices: Tensor) -> Tensor | None:
    """The number of these ascending indices in each block; blocks without any are left out."""
    if blocks is None:
        return None
    counts = torch.searchsorted(indices, blocks.cumsum(0)).diff(prepend=torch.zeros(1, dtype=torch.int64))
    return counts[counts > 0]


def select_subset(
    dataset: Dataset | Sampler,
    classes: list[Annotated[int, Field(ge=0)]] | None = None,
    count: Annotated[int, Field(gt=0)] | None = None,
    seed: Annotated[int, Field(ge=0, lt=2**31)] = 0,
    split: Literal["all", "train", "test"] = "all",
    skip: Annotated[int, Field(ge=0)] = 0,
) -> Dataset:
    """A part of a data set: first the split, then the classes, then a random ``count`` of what is left.

    With one ``seed`` the samples of a smaller count are among those of a larger one, and ``skip: N`` begins after the
    first N of them: `count: 80` and `count: 20, skip: 80` share none, and make up `count: 100`.

    Labels keep their numbers. From a synthetic set ``count`` samples are drawn once; its splits differ in their seed.

    Args:
        dataset: what to choose from.
        classes: keep only these labels.
        count: how many samples; all by default.
        seed: which random ``count``. The split doesn't depend on it, so train and test never overlap.
        skip: of a finite set, leave out the first so many of the random order that ``seed`` gives; with a ``count``.
        split: "train" takes two thirds, "test" the other third, the same on every machine.

    Raises:
        DataError: where nothing or too little is left, or labels are missing.
    """
    known = classes_of(dataset)
    if classes is not None and known is not None and any(label >= known for label in classes):
        raise DataError(f"classes: wanted numbers from 0 to {known - 1}, got {classes}. Leave the others out.")
    if isinstance(dataset, Sampler) and not isinstance(dataset, Dataset):
        if skip:
            raise DataError(
                "skip: a synthetic data set has no order. Use another `seed` for other samples, and leave `skip` out."
            )
        return _draw_subset(dataset, classes, count, seed, split)
    indices = np.arange(len(dataset))
    if split != "all":
        # Always seed 0, whatever `seed` is: else a train split with one seed would overlap a test split with another.
        shuffled = np.random.default_rng(0).permutation(len(dataset))
        cut = round(TEST_SHARE * len(dataset))
        indices = np.sort(shuffled[:cut] if split == "test" else shuffled[cut:])
    if classes is not None:
        labels = getattr(dataset, "labels", None)
        if labels is None:
            raise DataError("classes: this data set has no labels to choose by. Leave `classes` out.")
        indices = indices[np.isin(labels.numpy()[indices], classes)]
    if skip and count is None:
        raise DataError(f"skip: {skip} requires `count`. Set `count`, or leave `skip` out.")
    if count is not None:
        left = len(indices) - skip
        if count > left:
            raise DataError(f"count: {count} samples wanted, {max(0, left)} available. Lower `count`.")
        indices = np.random.default_rng(seed).permutation(indices)[skip : skip + count]
        if blocks_of(dataset) is not None:  # else the subset's blocks would be scattered over the files
            indices = np.sort(indices)
    if len(indices) == 0:
        raise DataError(
            f"no sample is left (split: {split}, classes: {classes}). Choose another split, or other classes."
        )
    return Subset(dataset, torch.from_numpy(indices))


def _draw_subset(law: Sampler, classes: list[int] | None, count: int | None, seed: int, split: str) -> Dataset:
    if count is None:
        raise DataError("a synthetic data set is infinite. Set `count` to take a part of it.")
    # Three streams for each seed, one for each split, so that no seed of one split draws another's samples.
    generator = torch.Generator().manual_seed(3 * seed + ("all", "train", "test").index(split))
    kept: list[Batch] = []
    for _ in range(_DRAWS_AT_MOST):
        drawn = law.draw(count, generator)
        if classes is not None:
            if drawn.label is None:
                raise DataError("classes: this data set has no labels to choose by. Leave `classes` out.")
            drawn = drawn[torch.isin(drawn.label, torch.tensor(classes))]
        kept.append(drawn)
        if sum(map(len, kept)) >= count:
            break
    else:
        raise DataError(
            f"classes: {_DRAWS_AT_MOST * count} draws contain fewer than {count} samples of {classes}. Choose more "
            f"frequent classes."
        )
    labels = [batch.label for batch in kept if batch.label is not None]
    partners = [batch.x0 for batch in kept if batch.x0 is not None]
    joined = Batch(
        torch.cat([batch.x1 for batch in kept]),
        torch.cat(labels) if labels else None,
        torch.cat(partners) if partners else None,
        {name: torch.cat([batch.conditions[name] for batch in kept]) for name in kept[0].conditions},
    )
    return Fixed(joined[slice(count)], law)


@hookimpl
def gftkit_dataset_wrapper() -> Callable[..., Dataset]:
    """The options of ``select_subset``, for every data set."""
    return select_subset
