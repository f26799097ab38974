"""The user's own samples, in one file of arrays."""

from pathlib import Path

import torch
from torch import Tensor

from gftkit.kernel import Batch, DataError
from gftkit_plugins.datasets.reading import NamedArrays, read_arrays
from gftkit_plugins.datasets.rows import NpyRows

_SAMPLES = ("x1", "samples", "data")
_LABEL, _PARTNER = "label", "x0"
_CHUNK = 2**22
"""Values that the first look at a file converts at a time: 16 MiB of float32."""
_LARGE, _MANY = 2**30, 2**24
"""Above so many bytes, or rows, an array on disk is read in blocks and checked row by row as it is read."""
_BLOCK_BYTES, _BLOCK_ROWS = 2**22, 2**12
"""The most that a block of a large array holds."""


class Arrays:
    """Samples from a .npy, .npz, .pt or .safetensors file: (n, *event) of real numbers, given out as float32.

    Values are never rescaled. All formats but .npz stay on disk, mapped into memory, and are converted batch by batch;
    an .npz file is read whole. Nothing is ever unpickled. An integer array ``label``, (n,), in the same file gives
    classes; an array ``x0``, of the samples' shape, gives each sample a fixed partner in the source.

    Values are checked at the start; those of a large array (over 1 GiB or 16,777,216 rows, and not in an .npz file) as
    they are read. Training visits a large array in blocks of up to 4 MiB (``train.shuffle_buffer``). Rows of a large
    .npy file are read without mapping it, so that memory doesn't grow with what was read.

    Args:
        file: the file.
        key: which array holds the samples, where there are several; by default ``x1``, ``samples`` or ``data``, or
            the only one.
        labels: which array holds the labels; by default ``label``, if there is one.
        conditions: arrays (n, *shape) of real numbers that give each sample its conditions, by name.

    Raises:
        DataError: for a missing, empty, damaged or unsafe file, samples of the wrong shape or dtype, a row with NaN or
            infinite values (as float32), and labels, partners or conditions that don't fit the samples.

    Example:
        >>> import gftkit, numpy, tempfile, torch
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     numpy.save(f"{folder}/s.npy", numpy.arange(6).reshape(3, 2))
        ...     data = gftkit.load().create("dataset", "arrays", file=f"{folder}/s.npy")
        ...     data.batch(torch.tensor([2])).x1
        tensor([[4., 5.]])
    """

    range: tuple[float, float] | None = None

    def __init__(
        self, file: Path, key: str | None = None, labels: str | None = None, conditions: tuple[str, ...] = ()
    ) -> None:
        arrays = read_arrays(file)
        key = _samples_key(arrays, key, labels, conditions)
        self._file, self._key = file, key
        self._x1: Tensor | NpyRows = arrays[key]
        shape = tuple(self._x1.shape)
        who = _describe_array(file, key)
        if len(shape) == 1:
            raise DataError(
                f"{who}: wanted samples of shape (n, *event), got {shape}. Reshape numbers to ({shape[0]}, 1)."
            )
        if len(shape) == 0 or 0 in shape:
            raise DataError(f"{who}: wanted samples of shape (n, *event) with n > 0, got {shape}. Write some samples.")
        self.event_shape = shape[1:]
        self.blocks = None if file.suffix.lower() == ".npz" else _blocks(self._x1)
        if self.blocks is None:
            _check_finite(self._x1, who)
        elif file.suffix.lower() == ".npy":
            self._x1 = NpyRows.open(file) or self._x1
        self._x0 = arrays[_PARTNER] if _PARTNER in arrays and key != _PARTNER else None
        if self._x0 is not None:
            who = _describe_array(file, _PARTNER)
            if tuple(self._x0.shape) != shape:
                raise DataError(
                    f"{who}: wanted the shape of '{key}', {shape}, got {tuple(self._x0.shape)}. Give every sample one "
                    f"partner."
                )
            if self.blocks is None:
                _check_finite(self._x0, who)
        if labels is not None and labels not in arrays:
            raise DataError(f"{file}: no array '{labels}' for labels. Arrays: {_list_names(arrays)}.")
        label_key = labels or (_LABEL if _LABEL in arrays and key != _LABEL else None)
        self.labels = (
            None if label_key is None else _labels(arrays[label_key], shape[0], _describe_array(file, label_key))
        )
        self.classes = None if self.labels is None else int(self.labels.max()) + 1
        self._conditions = {name: _condition(arrays, name, shape[0]) for name in conditions}
        if self.blocks is None:
            for name, values in self._conditions.items():
                _check_finite(values, _describe_array(file, name))
        self.condition_shapes = {name: tuple(values.shape[1:]) for name, values in self._conditions.items()}

    def __len__(self) -> int:
        return len(self._x1)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices, (batch,) of int64.

        Raises:
            DataError: for a row of a large array with NaN or infinite values, or a large file cut off in the meantime.
        """
        label = None if self.labels is None else self.labels[indices]
        x1 = self._x1[indices].to(torch.float32)
        x0 = None if self._x0 is None else self._x0[indices].to(torch.float32)
        conditions = {name: values[indices].to(torch.float32) for name, values in self._conditions.items()}
        if self.blocks is not None:
            for values, key in (
                (x1, self._key),
                (x0, _PARTNER),
                *((values, name) for name, values in conditions.items()),
            ):
                if values is not None:
                    _check_rows(values, indices, _describe_array(self._file, key))
        return Batch(x1, label, x0, conditions)


def _samples_key(arrays: NamedArrays, key: str | None, labels: str | None, conditions: tuple[str, ...]) -> str:
    """The name of the array with the samples."""
    if key is not None:
        if key not in arrays:
            raise DataError(
                f"{arrays.file}: no array '{key}'. Arrays: {_list_names(arrays)}. Set `key` to one of them."
            )
        return key
    others = [name for name in arrays if name not in (_LABEL, _PARTNER, labels, *conditions)]
    default_names = [name for name in _SAMPLES if name in others]
    if not default_names and len(others) != 1:
        raise DataError(
            f"{arrays.file}: wanted one array of samples, or one named {', '.join(_SAMPLES[:-1])} or {_SAMPLES[-1]}. "
            f"Arrays: {_list_names(arrays)}. Set `key` to one of them."
        )
    return (default_names or others)[0]


def _labels(label: Tensor, n: int, who: str) -> Tensor:
    """(n,) of int64, checked."""
    if label.is_floating_point() or label.shape != (n,):
        raise DataError(
            f"{who}: wanted one whole number for each of {n} samples, shape ({n},), got {tuple(label.shape)} of "
            f"{label.dtype}. Number the classes from 0."
        )
    label = label.to(torch.int64)
    if (low := int(label.min())) < 0:
        raise DataError(f"{who}: wanted labels from 0 on, got {low}. Number the classes from 0.")
    return label


def _blocks(values: Tensor) -> Tensor | None:
    """The sizes of a large array's blocks, None for one that isn't large."""
    n, size = len(values), values[0].numel() * values.element_size()
    if n * size <= _LARGE and n <= _MANY:
        return None
    rows = min(_BLOCK_ROWS, max(1, _BLOCK_BYTES // size))
    sizes = torch.full((-(-n // rows),), rows)
    sizes[-1] = n - rows * (len(sizes) - 1)
    return sizes


def _condition(arrays: NamedArrays, name: str, n: int) -> Tensor:
    """(n, *shape), checked."""
    if name not in arrays:
        raise DataError(f"{arrays.file}: no array '{name}' for a condition. Arrays: {_list_names(arrays)}.")
    values, who = arrays[name], _describe_array(arrays.file, name)
    if values.ndim == 0 or len(values) != n or 0 in values.shape:
        raise DataError(f"{who}: wanted a condition for each of {n} samples, ({n}, *shape), got {tuple(values.shape)}.")
    return values


def _check_finite(values: Tensor, who: str) -> None:
    """Refuse NaN and inf, looking at a few rows at a time."""
    rows = max(1, _CHUNK // values[0].numel())
    for start in range(0, len(values), rows):
        chunk = values[start : start + rows].to(torch.float32)
        _check_rows(chunk, torch.arange(start, start + len(chunk)), who)


def _check_rows(values: Tensor, rows: Tensor, who: str) -> None:
    """Refuse NaN and inf in these rows of a file."""
    bad = ~values[:, None].flatten(1).isfinite().all(1)
    if bad.any():
        raise DataError(
            f"{who}: wanted finite numbers in float32, got NaN, infinity or too large a number in row "
            f"{int(rows[bad][0])} (counted from 0). Correct or remove the row."
        )


def _describe_array(file: Path, key: str) -> str:
    return f"{file}, array '{key}'" if key else f"{file}"


def _list_names(arrays: NamedArrays) -> str:
    return ", ".join(name or "one array without a name" for name in arrays) or "none"
