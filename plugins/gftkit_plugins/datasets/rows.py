"""Rows of an .npy file that is too large to hold."""

from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gftkit_plugins.datasets.stretches import Stretches


class NpyRows:
    """The array of an .npy file, read row by row where rows are asked for.

    Args:
        file: the file, its header known to be good.
        shape: (n, *event).
        dtype: of the values.
        offset: where the first row starts, in bytes.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     np.save(f"{folder}/a.npy", np.arange(6).reshape(3, 2))
        ...     NpyRows.open(Path(f"{folder}/a.npy"))[torch.tensor([2, 0])]
        tensor([[4, 5],
                [0, 1]])
    """

    def __init__(self, file: Path, shape: tuple[int, ...], dtype: np.dtype[np.generic], offset: int) -> None:
        self.shape, self._dtype, self._offset = shape, dtype, offset
        self._bytes = dtype.itemsize * int(np.prod(shape[1:]))
        self._file = Stretches([file])

    @classmethod
    def open(cls, file: Path) -> "NpyRows | None":
        """The rows of a file, or None where they don't lie one after the other (Fortran order)."""
        mapped = np.load(file, mmap_mode="r", allow_pickle=False)
        if not mapped.flags["C_CONTIGUOUS"]:
            return None
        return cls(file, mapped.shape, mapped.dtype, mapped.offset)

    def __len__(self) -> int:
        return self.shape[0]

    def __getitem__(self, indices: Tensor) -> Tensor:
        """The rows at these indices, (len(indices), *event)."""
        values = np.empty((len(indices), *self.shape[1:]), self._dtype.newbyteorder("="))
        for place in indices.argsort().tolist():  # in the order of the file
            read = self._file.read(0, self._offset + int(indices[place]) * self._bytes, self._bytes)
            values[place] = np.frombuffer(read, self._dtype).reshape(self.shape[1:])
        return torch.from_numpy(values)
