"""A column of pictures or arrays of a Hugging Face data set."""

import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gftkit.kernel import DataError
from gftkit_plugins.datasets.images.pictures import Decoder


def holds_pictures(feature: Any) -> bool:
    """True for an encoded picture: ``Image``, or plain bytes as other programs write them."""
    if isinstance(feature, dict):
        return set(feature) == {"bytes", "path"}
    return type(feature).__name__ == "Image" or str(getattr(feature, "dtype", "")).endswith("binary")


def holds_arrays(feature: Any) -> bool:
    """True for an array of numbers, as far as its type shows."""
    while type(feature).__name__ in ("List", "LargeList", "Sequence"):
        feature = feature.feature
        if type(feature).__name__ == "Value" and str(feature.dtype).startswith(("float", "int", "uint")):
            return True
    return type(feature).__name__.startswith("Array")


class Column:
    """Values of one column, as float32.

    Args:
        rows: the data set with this column, in numpy's format, pictures not decoded.
        name: of the column.
        where: the files, for messages.
        decoder: of pictures; None for a column of arrays.

    Raises:
        DataError: for an empty value, or a first row that isn't a picture or an array.
    """

    def __init__(self, rows: Any, name: str, where: str, decoder: Decoder | None) -> None:
        self.name, self._rows, self._where, self._decoder = name, rows, where, decoder
        if rows.data.column(name).null_count:
            raise DataError(f"{where}, column '{name}': some rows are empty. Fill or drop them.")
        self.shape: tuple[int, ...] | None = None
        first = self.read([0])
        self.shape = tuple(first.shape[1:])
        if decoder is not None and decoder.size is None:
            decoder.first = "row 0", (first.shape[2], first.shape[3])

    def read(self, rows: Sequence[int]) -> Tensor:
        """The values in these rows, (len(rows), *shape).

        Raises:
            DataError: naming the row, for a picture that can't be read, another shape than the first row's, or numbers
                that aren't finite.
        """
        if not rows:
            return torch.empty(0, *(self.shape or ()))
        # in the order of the file: arrow then reads neighbours at once
        ascending, places = np.unique(np.asarray(rows), return_inverse=True)
        try:
            column = self._rows[ascending][self.name]
        except Exception as error:  # a file that was cut off, or types that don't go together
            raise DataError(
                f"{self._where}, column '{self.name}': can't be read ({str(error).splitlines()[0]}). The files are "
                f"damaged or have changed. Write them again."
            ) from error
        convert = self._array if self._decoder is None else self._picture
        who = f"{self._where}, column '{self.name}', row"
        values = [convert(value, f"{who} {row}") for value, row in zip(column, ascending, strict=True)]
        return torch.stack(values)[torch.from_numpy(places)]

    def _picture(self, value: Any, who: str) -> Tensor:
        assert self._decoder is not None
        content, path = (value["bytes"], value["path"]) if isinstance(value, dict) else (value, None)
        if content:
            source: Path | io.BytesIO = io.BytesIO(content)
        elif path:
            source = Path(path)
        else:
            raise DataError(f"{who}: wanted a picture, got nothing. Fill or drop the row.")
        return torch.from_numpy(self._decoder.decode(source, who)).to(torch.float32)

    def _array(self, value: Any, who: str) -> Tensor:
        array = np.asarray(value)
        if array.dtype.kind not in "fiu" or (self.shape is not None and array.shape != self.shape):
            wanted = "of one shape" if self.shape is None else f"of shape {self.shape}, as in the first row"
            raise DataError(
                f"{who}: wanted numbers {wanted}, got {array.dtype} of shape {array.shape}. Give all rows one shape."
            )
        tensor = torch.from_numpy(np.ascontiguousarray(array, np.float32))
        if not tensor.sum().isfinite() and not tensor.isfinite().all():  # a sum is quick, and may overflow
            raise DataError(
                f"{who}: wanted finite numbers in float32, got NaN, infinity or too large a number. Correct or remove "
                f"the row."
            )
        return tensor
