"""Members of a tar shard: pictures, or arrays of numbers."""

import io
import json
import math
from functools import lru_cache
from typing import IO, Any

import numpy as np
import torch
from safetensors.torch import load
from torch import Tensor

from gftkit.kernel import DataError
from gftkit_plugins.datasets.images.pictures import ENDINGS, Decoder, header_shape

_PREFIX = 128
"""Bytes of the header that numpy writes for most arrays."""
_NAMES = ("x1", "samples", "data")
_REAL = {"F64", "F32", "F16", "BF16", "I64", "I32", "I16", "I8", "U8"}
_HEADER_MOST = 2**20
"""Largest header of a safetensors member, in bytes."""


def is_picture(ending: str) -> bool:
    """True for the ending of a picture: "png", "left.jpg"."""
    return f".{ending.rpartition('.')[2]}" in ENDINGS


def is_readable(ending: str) -> bool:
    """True for the ending of a member that can be a sample."""
    return is_picture(ending) or ending.rpartition(".")[2] in ("npy", "safetensors")


def shape_of(ending: str, stream: IO[bytes], size: int, who: str) -> tuple[int, ...]:
    """The shape of a member by its header: (h, w) of a picture, that of an array.

    Args:
        ending: of the member's name, without the first dot.
        stream: the member's bytes.
        size: how many there are.
        who: the member, for messages.

    Raises:
        DataError: for what isn't of the format that the ending says, or not of real numbers.
    """
    if is_picture(ending):
        return header_shape(stream, who)
    try:
        if ending.endswith("npy"):
            return _npy_shape(stream, size, who)
        return _choose_array(_safetensors_header(stream, size), who)[1]
    except DataError:
        raise
    except Exception as error:  # parsers of damaged bytes raise nearly anything
        raise damaged_member_error(who, ending, error) from error


def values_of(ending: str, data: bytes | bytearray, decoder: Decoder, who: str) -> Tensor:
    """The values of a member: (c, h, w) of uint8 for a picture, the array as it is otherwise.

    Raises:
        DataError: for what can't be decoded.
    """
    if is_picture(ending):
        return torch.from_numpy(decoder.decode(io.BytesIO(data), who))
    try:
        if ending.endswith("npy"):
            return _npy(data)
        name, _ = _choose_array(_safetensors_header(io.BytesIO(data), len(data)), who)
        return load(bytes(data))[name]
    except DataError:
        raise
    except Exception as error:
        raise damaged_member_error(who, ending, error) from error


def label_of(ending: str, data: bytes, key: str, who: str) -> int:
    """The class that a label's member says: a whole number as text, or one under ``key`` of a JSON object.

    Raises:
        DataError: for anything else.
    """
    try:
        label: Any = json.loads(data)[key] if ending.endswith("json") else int(data.decode().strip())
    except (ValueError, KeyError, TypeError, IndexError) as error:
        where = f" under the key '{key}'" if ending.endswith("json") else ""
        raise DataError(
            f"{who}: wanted a class as a whole number{where}, got {bytes(data[:40])!r}. Number the classes from 0; for "
            f"JSON name the key with `label_key`."
        ) from error
    if type(label) is not int or not 0 <= label < 2**31:
        raise DataError(f"{who}: wanted a class from 0 on, got {label!r}. Number the classes from 0.")
    return label


def damaged_member_error(who: str, ending: str, error: Exception) -> DataError:
    """The error for a member that doesn't hold what its ending says."""
    reason = str(error).split("\n", 1)[0].rstrip(".") or type(error).__name__
    return DataError(
        f"{who}: wanted a complete .{ending.rpartition('.')[2]} file, and this one is damaged, incomplete or of "
        f"another format ({reason}). Write the shard again, or remove the sample."
    )


def _npy_shape(stream: IO[bytes], size: int, who: str) -> tuple[int, ...]:
    start = stream.read(_PREFIX)
    length = _npy_start(start)
    shape, _, dtype = _npy_header(start[:length] + stream.read(max(0, length - len(start))))
    if dtype.kind not in "fiu" or dtype.itemsize > 8:
        raise DataError(f"{who}: wanted real numbers (float, int), got dtype {dtype}. Convert it to float32.")
    wanted = length + math.prod(shape) * dtype.itemsize
    if size != wanted:
        raise ValueError(f"its header says {wanted} bytes, and it has {size}")
    return shape


def _npy(data: bytes | bytearray) -> Tensor:
    length = _npy_start(data)
    shape, fortran, dtype = _npy_header(bytes(data[:length]))
    values = np.frombuffer(data, dtype, math.prod(shape), length).reshape(shape, order="F" if fortran else "C")
    return torch.from_numpy(np.array(values, dtype.newbyteorder("="), order="C"))


def _npy_start(data: bytes | bytearray) -> int:
    """The offset of the numbers in an .npy file, in bytes."""
    if data[6:7] == b"\x01":
        return 10 + int.from_bytes(data[8:10], "little")
    return 12 + int.from_bytes(data[8:12], "little")


@lru_cache(maxsize=256)
def _npy_header(start: bytes) -> tuple[tuple[int, ...], bool, np.dtype[Any]]:
    """Shape, order and dtype. Members of a set have few headers between them, and reading one takes long."""
    stream = io.BytesIO(start)
    version = np.lib.format.read_magic(stream)
    read = np.lib.format.read_array_header_1_0 if version == (1, 0) else np.lib.format.read_array_header_2_0
    shape, fortran, dtype = read(stream)
    return tuple(int(side) for side in shape), fortran, dtype


def _safetensors_header(stream: IO[bytes], size: int) -> dict[str, Any]:
    length = int.from_bytes(stream.read(8), "little")
    if length > min(size, _HEADER_MOST):
        raise ValueError(f"its header claims {length} bytes")
    header: dict[str, Any] = json.loads(stream.read(length))
    header.pop("__metadata__", None)
    end = max((entry["data_offsets"][1] for entry in header.values()), default=0)
    if size != 8 + length + end:
        raise ValueError(f"its header says {8 + length + end} bytes, and it has {size}")
    return header


def _choose_array(header: dict[str, Any], who: str) -> tuple[str, tuple[int, ...]]:
    """Name and shape of the array that is meant."""
    default_names = [name for name in _NAMES if name in header]
    if not default_names and len(header) != 1:
        raise DataError(
            f"{who}: wanted one array, or one named {', '.join(_NAMES[:-1])} or {_NAMES[-1]}. Arrays: "
            f"{', '.join(header) or 'none'}."
        )
    name = (default_names or list(header))[0]
    if header[name]["dtype"] not in _REAL:
        raise DataError(f"{who}: wanted real numbers (float, int), got {header[name]['dtype']}. Convert it to float32.")
    return name, tuple(int(side) for side in header[name]["shape"])
