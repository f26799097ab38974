"""Samples in tar shards, as WebDataset writes them."""

from pathlib import Path
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gftkit.kernel import Batch, DataError
from gftkit_plugins.datasets.archives.members import is_picture, is_readable, values_of
from gftkit_plugins.datasets.archives.tar_index import Fields, find_member, position, read_index, read_samples
from gftkit_plugins.datasets.images.pictures import Decoder, Mode
from gftkit_plugins.datasets.neighbours import blocks_of_neighbours
from gftkit_plugins.datasets.patterns import files_of
from gftkit_plugins.datasets.stretches import Stretches, unreadable_file_error


class Shards:
    """Samples in tar files (WebDataset): pictures (3, h, w) or (1, h, w) with values in [0, 255], or arrays.

    A sample is a run of members whose names are the same up to the first dot: ``0001.png``, ``0001.cls``. Values of
    arrays (.npy, .safetensors) are given out as float32 and never rescaled.

    Shards are read where they lie. At the first use their headers are read once, and where each member lies is kept in
    the cache folder (``GFTKIT_CACHE``): 8 bytes a sample, and 4 for its label. Any sample can then be read without
    unpacking, so splits and an exact resume work as for any other set, and memory doesn't grow with the shards.
    Training visits blocks of up to 1,024 neighbours (``train.shuffle_buffer``).

    Args:
        files: the shards: a pattern such as ``train-{000..099}.tar`` or ``train-*.tar``, a file, or a folder, whose
            .tar files are taken in the order of their names.
        field: ending of the members with the samples, without the first dot, such as ``png``; by default the only
            picture or array of the first sample.
        labels: ending of the members with the class, a whole number as text or in JSON; by default ``cls``, where the
            first sample has one.
        label_key: the key of the class in a JSON object.
        conditions: endings of further arrays, such as ``text.npy``: given to the drift as the condition ``text``.
        size: side of the square that every picture is cut (centrally) and resized to, bicubic and antialiased. Without
            it all pictures must have one size.
        mode: "RGB" for colour, "L" for grey.

    Raises:
        DataError: naming shard and member, for shards that are missing, packed, damaged, cut off or empty, a sample
            without one of its members, what is no picture, array or class, and samples of different shapes.

    Reference: the tar layout of https://github.com/webdataset/webdataset.

    Example:
        >>> import gftkit, tarfile, tempfile, torch
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     with tarfile.open(f"{folder}/a-0.tar", "w") as tar:
        ...         for number in range(3):
        ...             Image.new("L", (4, 4), 9 * number).save(f"{folder}/{number}.png")
        ...             tar.add(f"{folder}/{number}.png", f"{number}.png")
        ...     data = gftkit.load().create("dataset", "shards", files=f"{folder}/a-*.tar", mode="L")
        ...     len(data), data.batch(torch.tensor([2])).x1.unique()
        (3, tensor([18.]))
    """

    def __init__(
        self,
        files: Path,
        field: str | None = None,
        labels: str | None = None,
        label_key: str = "label",
        conditions: tuple[str, ...] = (),
        size: Annotated[int, Field(gt=0)] | None = None,
        mode: Mode = "RGB",
    ) -> None:
        self.files = files_of(files, ".tar")
        self._names = [_condition_name(ending) for ending in conditions]
        self._fields = _fields(self.files[0], field, labels, label_key, conditions)
        self._index = [read_index(shard, self._fields) for shard in self.files]
        self._ends = torch.tensor([len(index["place"]) for index in self._index]).cumsum(0)
        self.blocks = torch.cat([blocks_of_neighbours(len(index["place"])) for index in self._index])
        self.labels: Tensor | None = None
        self.classes: int | None = None
        if self._fields.labels:
            self.labels = torch.cat([index["label"] for index in self._index]).to(torch.int64)
            self.classes = int(self.labels.max()) + 1
        self._bytes = Stretches(self.files)
        self._decoder = Decoder(size, mode)
        pictures = is_picture(self._fields.arrays[0])
        self.range: tuple[float, float] | None = (0.0, 255.0) if pictures else None
        first = self._read(0, 0, 0)
        if pictures and size is None:
            self._decoder.first = find_member(self.files[0], self._offset(0, 0, 0)), (first.shape[1], first.shape[2])
        self.event_shape = tuple(first.shape)
        shapes = [first.shape[1:] if pictures else first.shape]
        for number, ending in enumerate(conditions, 1):
            if is_picture(ending):
                raise DataError(
                    f"conditions: wanted arrays (.npy, .safetensors), got '{ending}'. Choose other members."
                )
            shapes.append(self._read(0, 0, number).shape)
        self.condition_shapes = {name: tuple(shape) for name, shape in zip(self._names, shapes[1:], strict=True)}
        for number, shape in enumerate(shapes):
            if not (pictures and number == 0 and size is not None):
                self._check_shapes(number, torch.tensor(shape))

    def __len__(self) -> int:
        return int(self._ends[-1])

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices, (batch,) of int64.

        Raises:
            DataError: naming shard and member, for one that can't be decoded or holds NaN or infinite values.
        """
        shards = torch.searchsorted(self._ends, indices, right=True)
        starts = torch.cat([torch.zeros(1, dtype=torch.int64), self._ends])
        rows = indices - starts[shards]
        shapes = [self.event_shape, *self.condition_shapes.values()]
        outputs = [torch.empty(len(indices), *shape) for shape in shapes]
        for place in indices.argsort().tolist():  # in the order of the files
            for number, values in enumerate(outputs):
                values[place] = self._read(int(shards[place]), int(rows[place]), number)
        label = None if self.labels is None else self.labels[indices]
        return Batch(outputs[0], label, None, dict(zip(self._names, outputs[1:], strict=True)))

    def _read(self, shard: int, row: int, number: int) -> Tensor:
        """A member's values, as float32 where they are no picture."""
        offset, ending = self._offset(shard, row, number), self._fields.arrays[number]
        data = self._bytes.read(shard, offset, int(self._index[shard]["size"][row, number]))
        try:
            values = values_of(ending, data, self._decoder, "?")
        except DataError:  # once more, with the member's name: to find it reads the whole shard's headers
            values = values_of(ending, data, self._decoder, find_member(self.files[shard], offset))
        if not is_picture(ending):
            values = values.to(torch.float32)
            if not values.sum().isfinite() and not values.isfinite().all():  # a sum is quick, and may overflow
                raise DataError(
                    f"{find_member(self.files[shard], offset)}: wanted finite numbers in float32, got NaN, infinity "
                    f"or too large a number. Correct or remove the sample."
                )
        return values

    def _offset(self, shard: int, row: int, number: int) -> int:
        return position(int(self._index[shard]["place"][row, number]))

    def _check_shapes(self, number: int, shape: Tensor) -> None:
        """Refuse arrays whose headers say another shape than the first's, and pictures that want `size`."""
        ending = self._fields.arrays[number]
        for shard, index in enumerate(self._index):
            shapes = index[f"shape{number}"]
            if shapes.shape[1] == len(shape):
                other = (shapes != shape).any(1)
                if not other.any():
                    continue
                row = int(other.nonzero()[0])
            else:
                row = 0
            if is_picture(ending):
                for turned in other.nonzero()[:, 0].tolist():  # the whole picture decides
                    self._read(shard, turned if len(shapes) > 1 else 0, number)
                continue
            raise DataError(
                f"{find_member(self.files[shard], self._offset(shard, row, number))}: wanted an array of shape "
                f"{tuple(shape.tolist())}, as the first, got {tuple(shapes[row].tolist())}. Reshape or drop it."
            )


def _fields(first: Path, field: str | None, labels: str | None, key: str, conditions: tuple[str, ...]) -> Fields:
    """The members to read; the first sample decides what the options leave open."""
    try:
        sample = next(read_samples(first), None)
    except OSError as error:
        raise unreadable_file_error(first, error) from error
    endings = [] if sample is None else list(sample.members)
    shown = f"{first}, sample '{sample.key if sample else ''}'"
    if labels is None and "cls" in endings:
        labels = "cls"
    if field is None:
        able = [ending for ending in endings if is_readable(ending) and ending not in (*conditions, labels)]
        if endings and len(able) != 1:
            raise DataError(
                f"{shown}: wanted one picture or array, found {', '.join('.' + ending for ending in endings)}. Set "
                f"`field` to one of these endings."
            )
        field = able[0] if able else "png"  # an empty shard is refused by its index
    for ending in (field, *conditions):
        if not is_readable(ending):
            raise DataError(
                f"{shown}: '{ending}' is neither a picture nor an array (.npy, .safetensors). It has "
                f"{', '.join('.' + name for name in endings)}."
            )
    return Fields((field, *conditions), labels, key)


def _condition_name(ending: str) -> str:
    name = ending.rpartition(".")[0]
    if not name.isidentifier():
        raise DataError(
            f"conditions: wanted endings such as 'text.npy', which make a condition 'text', got '{ending}'."
        )
    return name
