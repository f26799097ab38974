"""Reads named tensors from the user's files, without ever running what a file holds."""

import warnings
import zipfile
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import safetensors
import torch
from torch import Tensor

from gftkit.kernel import DataError

T = TypeVar("T")

_REAL = "wanted real numbers (float, int)"
_UNSAFE = (
    "{file}: it holds pickled Python objects, and loading those could run code, so that gftkit never does. Save plain "
    "arrays of numbers: np.save, np.savez, safetensors.torch.save_file, or torch.save of a tensor or a dict of tensors."
)


class NamedArrays(Mapping[str, Tensor]):
    """The arrays of one file by name; each is read, or mapped into memory, when it is asked for.

    Args:
        file: for messages.
        names: the arrays in it.
        get: reads one of them.
    """

    def __init__(self, file: Path, names: list[str], get: Callable[[str], object]) -> None:
        self.file, self._names, self._get = file, names, get

    def __getitem__(self, name: str) -> Tensor:
        """The array, on the CPU, of one of the dtypes of real numbers.

        Raises:
            KeyError: where there is none of this name.
            DataError: for a damaged file, pickled content, or content that isn't real numbers.
        """
        if name not in self._names:
            raise KeyError(name)
        return _tensor(_guard(self.file, lambda: self._get(name)), self.file, name)

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)


def read_arrays(file: Path) -> NamedArrays:
    """The arrays of a .npy, .npz, .pt or .safetensors file; the one of a file without names is called "".

    Raises:
        DataError: for a missing, empty or damaged file, an unknown ending, or pickled content.
    """
    if not file.is_file():
        came = "a folder" if file.is_dir() else "nothing there"
        raise DataError(f"{file}: wanted a file, found {came}. Check the path; relative ones start at the config.")
    reader = _READERS.get(file.suffix.lower())
    if reader is None:
        raise DataError(f"{file}: wanted a file ending in {', '.join(_READERS)}, got '{file.suffix}'. Convert it.")
    if file.stat().st_size == 0:
        raise DataError(f"{file}: the file is empty (0 bytes). Write it again.")
    return _guard(file, lambda: reader(file))


def _npy(file: Path) -> NamedArrays:
    with file.open("rb") as stream:
        if stream.read(6) != b"\x93NUMPY":
            raise ValueError("it doesn't start as a .npy file does")
    # "c": changes would stay in memory. torch warns of arrays that it can't write, and the file is never written.
    values = np.load(file, mmap_mode="c", allow_pickle=False)
    return NamedArrays(file, [""], lambda _: values)


def _npz(file: Path) -> NamedArrays:
    if not zipfile.is_zipfile(file):
        raise ValueError("it isn't the zip archive that an .npz file is")

    def get(name: str) -> object:
        with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
            return archive[name]

    with file.open("rb") as stream, np.load(stream, allow_pickle=False) as archive:
        return NamedArrays(file, list(archive.files), get)


def _pt(file: Path) -> NamedArrays:
    # Only the zip format, torch's default since 1.6, can be mapped.
    mapped = zipfile.is_zipfile(file)
    with warnings.catch_warnings(action="ignore"):  # guesses about a foreign file; what matters is raised
        contents = torch.load(str(file), map_location="cpu", weights_only=True, mmap=mapped)
    if isinstance(contents, Tensor):
        return NamedArrays(file, [""], lambda _: contents)
    if not isinstance(contents, dict):
        raise DataError(
            f"{file}: wanted a tensor or a dict of tensors, got a {type(contents).__name__}. Save one of them."
        )
    tensors = {name: value for name, value in contents.items() if isinstance(name, str) and isinstance(value, Tensor)}
    return NamedArrays(file, list(tensors), tensors.__getitem__)


def _safetensors(file: Path) -> NamedArrays:
    handle: Any = safetensors.safe_open(file, framework="pt", device="cpu")  # maps the file into memory
    return NamedArrays(file, list(handle.keys()), handle.get_tensor)


_READERS: dict[str, Callable[[Path], NamedArrays]] = {
    ".npy": _npy,
    ".npz": _npz,
    ".pt": _pt,
    ".safetensors": _safetensors,
}


def _guard(file: Path, read: Callable[[], T]) -> T:
    """The result of ``read``; any failure in a parser becomes one message about the file."""
    try:
        return read()
    except (DataError, MemoryError):
        raise
    except (
        Exception
    ) as error:  # parsers of damaged bytes raise nearly anything: zlib.error, struct.error, KeyError, ...
        reason = str(error).split("\n", 1)[0].rstrip(".") or type(error).__name__
        # numpy's refusals of object arrays, in .npz and .npy; torch's of anything but tensors
        if "allow_pickle" in reason or "Python objects" in reason or reason.startswith("Weights only load failed"):
            raise DataError(_UNSAFE.format(file=file)) from error
        raise DataError(
            f"{file}: wanted a complete {file.suffix} file, and this one is damaged, incomplete or of another format "
            f"({reason}). Write or copy it again."
        ) from error


def _tensor(values: object, file: Path, name: str) -> Tensor:
    """An array as a tensor that shares its memory, where its numbers are real."""
    shown = f"{file}, array '{name}'" if name else f"{file}"
    if isinstance(values, np.ndarray):
        if values.dtype.kind not in "fiu" or values.dtype.itemsize > 8:
            raise DataError(f"{shown}: {_REAL}, got dtype {values.dtype}. Convert it to float32.")
        return torch.from_numpy(np.asarray(values, values.dtype.newbyteorder("=")))
    if not isinstance(values, Tensor) or values.layout != torch.strided or values.device.type != "cpu":
        raise DataError(f"{shown}: wanted a dense array of numbers, got a {type(values).__name__}. Save a dense one.")
    if values.is_complex() or values.is_quantized or values.dtype is torch.bool:
        raise DataError(f"{shown}: {_REAL}, got dtype {values.dtype}. Convert it to float32.")
    return values.detach()
