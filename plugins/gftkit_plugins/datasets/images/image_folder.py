"""Pictures in a folder."""

from pathlib import Path
from typing import Annotated

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gftkit.kernel import Batch, DataError
from gftkit_plugins.datasets.images.pictures import ENDINGS, Decoder, Mode, Pixels, header_shape

_MEMORY = 512 * 2**20
"""Largest set, in bytes, that is decoded once and kept."""


class ImageFolder:
    """Pictures from a folder: (3, h, w) or (1, h, w), values in [0, 255]; one subfolder for each class, or no classes.

    Pictures lie in the folder itself, or in subfolders whose sorted names are the classes 0, 1, ...; they come sorted
    by name. Hidden files, other files and deeper folders are passed over. A set of up to 512 MiB is decoded once and
    kept, a larger one is decoded batch by batch. Orientation from a camera is applied; transparency is dropped; of an
    animation the first picture counts.

    Args:
        folder: the folder.
        size: side of the square that every picture is cut (centrally) and resized to, bicubic and antialiased. Without
            it all pictures must have one size.
        mode: "RGB" for colour, "L" for grey.

    Raises:
        DataError: for a folder that is missing or has no picture, pictures in both places, a class without pictures, a
            picture that can't be read, has another size than the first, or more than 8 bits.

    Example:
        >>> import gftkit, tempfile, torch
        >>> from PIL import Image
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     Image.new("L", (6, 4), 9).save(f"{folder}/one.png")
        ...     data = gftkit.load().create("dataset", "image-folder", folder=folder, size=4, mode="L")
        >>> data.event_shape, data.batch(torch.tensor([0])).x1.unique()
        ((1, 4, 4), tensor([9.]))
    """

    range: tuple[float, float] | None = (0.0, 255.0)

    def __init__(self, folder: Path, size: Annotated[int, Field(gt=0)] | None = None, mode: Mode = "RGB") -> None:
        self._decoder = Decoder(size, mode)
        self.files, self.class_names = _list_pictures(folder)
        self.labels: Tensor | None = None
        self.classes: int | None = None
        if self.class_names:
            numbers = {name: number for number, name in enumerate(self.class_names)}
            self.labels = torch.tensor([numbers[file.parent.name] for file in self.files])
            self.classes = len(numbers)
        first = self._decode(self.files[0])
        if size is None:
            self._decoder.first = self.files[0].name, (first.shape[1], first.shape[2])
        self.event_shape = first.shape
        self._pixels: Tensor | None = None
        if len(self.files) * first.size <= _MEMORY:
            pixels = np.empty((len(self.files), *first.shape), np.uint8)
            for row, file in enumerate(self.files):
                pixels[row] = self._decode(file)
            self._pixels = torch.from_numpy(pixels)
        else:
            for file in self.files:
                self._check_header(file)

    def __len__(self) -> int:
        return len(self.files)

    def batch(self, indices: Tensor) -> Batch:
        """The pictures at these indices, (batch,) of int64.

        Raises:
            DataError: where pictures are decoded batch by batch and one can't be.
        """
        if self._pixels is not None:
            pixels = self._pixels[indices]
        else:
            arrays = [self._decode(self.files[index]) for index in indices.tolist()]
            pixels = torch.from_numpy(np.stack(arrays)) if arrays else torch.empty(0, *self.event_shape)
        return Batch(pixels.to(torch.float32), None if self.labels is None else self.labels[indices])

    def _check_header(self, file: Path) -> None:
        shape = header_shape(file, str(file))
        if self._decoder.first is not None and shape != self._decoder.first[1]:
            self._decode(file)  # the whole picture decides

    def _decode(self, file: Path) -> Pixels:
        return self._decoder.decode(file, str(file))


def _list_pictures(folder: Path) -> tuple[list[Path], list[str]]:
    """The pictures, sorted, and the names of the classes ([] where there are none)."""
    if not folder.is_dir():
        came = "a file" if folder.exists() else "nothing there"
        raise DataError(f"{folder}: wanted a folder of pictures, found {came}. Check the path.")
    direct = _pictures(folder)
    below = {sub.name: _pictures(sub) for sub in sorted(folder.iterdir()) if sub.is_dir() and not _hidden(sub)}
    if not direct and not any(below.values()):
        raise DataError(
            f"{folder}: wanted pictures in it or in one subfolder for each class, found none among its "
            f"{sum(1 for _ in folder.iterdir())} entries. Pictures end in {', '.join(sorted(ENDINGS))}; hidden files "
            f"don't count."
        )
    if not any(below.values()):
        return direct, []
    if direct:
        raise DataError(
            f"{folder}: wanted pictures in the folder itself or in one subfolder for each class, found both "
            f"({direct[0].name}, and some in {next(name for name in below if below[name])}). Move one kind away."
        )
    for name, pictures in below.items():
        if not pictures:
            raise DataError(f"{folder / name}: this class has no picture. Add some, or remove the folder.")
    return [file for pictures in below.values() for file in pictures], list(below)


def _pictures(folder: Path) -> list[Path]:
    return sorted(
        file for file in folder.iterdir() if file.suffix.lower() in ENDINGS and not _hidden(file) and file.is_file()
    )


def _hidden(file: Path) -> bool:
    return file.name.startswith(".")
