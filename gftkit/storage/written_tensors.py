"""Tensors in a configuration: numbers that are written out, or a file that is read."""

import base64
import zlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import safetensors.torch
import torch
from torch import Tensor

from gftkit.kernel.errors import ConfigError
from gftkit.kernel.options import check_known
from gftkit.storage.files import explain_file_errors
from gftkit.storage.tensors import digest, read_tensors

TYPES: Mapping[str, torch.dtype] = {
    str(dtype).removeprefix("torch."): dtype
    for dtype in (
        torch.bool,
        torch.int32,
        torch.int64,
        torch.float16,
        torch.bfloat16,
        torch.float32,
        torch.float64,
    )
}
"""Types of a tensor by name."""

KEPT = 2**16
"""Bytes, compressed, up to which the content of a file is kept in the configuration itself."""

_KEYS = ("tensor", "file", "key", "dtype", "shape", "per_sample", "sha256", "content")


def is_written_tensor(value: Any) -> bool:
    """True for {tensor: numbers, ...} and {file: FILE, ...}."""
    return isinstance(value, Mapping) and ("tensor" in value or "file" in value)


def resolve_written_tensor(written: Mapping[str, Any], folder: Path, where: str) -> dict[str, Any]:
    """A written tensor with everything that its file says, so that a run keeps it.

    ``file`` becomes absolute, ``sha256`` is of the tensor, and ``content`` is the tensor itself where it takes at most
    ``KEPT`` bytes: then the file isn't read again. A larger file must stay where it is, unchanged.

    Args:
        written: {tensor: numbers} or {file: .safetensors or .npy, key: of the file}, with dtype, shape and per_sample.
        folder: where a relative file is.
        where: the key in the configuration, for errors.

    Raises:
        ConfigError: for what isn't a tensor.
        WeightsError: for a file that can't be read.
    """
    if "file" not in written or "tensor" in written or "sha256" in written:
        read_written_tensor(written, where)
        return dict(written)
    resolved = {**written, "file": str((folder / str(written["file"])).resolve())}
    tensor = _stored(resolved, where)
    packed = base64.b64encode(zlib.compress(safetensors.torch.save({"tensor": tensor}), 9)).decode()
    resolved["sha256"] = digest({"tensor": tensor})
    if len(packed) <= KEPT:
        resolved["content"] = packed
    read_written_tensor(resolved, where)
    return resolved


def read_written_tensor(written: Mapping[str, Any], where: str) -> Tensor:
    """The tensor: of ``dtype``, expanded to ``shape``.

    Raises:
        ConfigError: for an unknown key or type, numbers that aren't a tensor, a shape that they don't expand to, and
            another content than ``sha256`` says.
        WeightsError: for a file that can't be read.

    Example:
        >>> read_written_tensor({"tensor": [1, 2], "dtype": "float32"}, "constants.scale")
        tensor([1., 2.])
    """
    check_known(written, _KEYS, where, ("sha256", "content"))
    if ("tensor" in written) == ("file" in written):
        raise ConfigError(f"{where}: wanted either `tensor`, numbers, or `file`. Leave one of them out.")
    name = written.get("dtype")
    if name is not None and name not in TYPES:
        raise ConfigError(f"{where}.dtype: wanted one of {', '.join(TYPES)}, got {name!r}.")
    tensor = _stored(written, where) if "file" in written else _numbers(written["tensor"], where)
    if "sha256" in written and digest({"tensor": tensor}) != written["sha256"]:
        raise ConfigError(
            f"{where}: {written['file']} has changed: wanted a tensor of SHA-256 {written['sha256'][:12]}.... Put the "
            f"file back, or start a new run."
        )
    if name is not None:
        converted = tensor.to(TYPES[name])
        if not TYPES[name].is_floating_point and not torch.equal(converted.to(tensor.dtype), tensor):
            raise ConfigError(f"{where}.dtype: not all values are of type {name}. Choose another dtype.")
        tensor = converted
    if (shape := written.get("shape")) is not None:
        try:
            tensor = tensor.expand(*shape).clone()
        except (RuntimeError, TypeError):
            raise ConfigError(
                f"{where}.shape: {tuple(tensor.shape)} doesn't expand to {shape}. Give a shape that it does, or none."
            ) from None
    return tensor


def _numbers(values: Any, where: str) -> Tensor:
    try:
        return torch.tensor(values)
    except (TypeError, ValueError, RuntimeError) as error:
        raise ConfigError(f"{where}.tensor: wanted numbers, or lists of one shape ({error}).") from None


def _stored(written: Mapping[str, Any], where: str) -> Tensor:
    """The tensor of a file, or the copy of it that the configuration has."""
    if "content" in written:
        try:
            return safetensors.torch.load(zlib.decompress(base64.b64decode(written["content"], validate=True)))[
                "tensor"
            ]
        except Exception as error:
            raise ConfigError(f"{where}.content is damaged ({error}). Leave it out, to read the file again.") from None
    file, key = Path(written["file"]), written.get("key")
    match file.suffix:
        case ".npy":
            with explain_file_errors(file, "read"):
                try:
                    return torch.from_numpy(np.load(file, allow_pickle=False))
                except (ValueError, TypeError, EOFError) as error:
                    raise ConfigError(f"{where}.file: {file} isn't an array of numbers ({error}).") from None
        case ".safetensors":
            tensors, _ = read_tensors(file)
            if key is None and len(tensors) == 1:
                return next(iter(tensors.values()))
            if key not in tensors:
                raise ConfigError(
                    f"{where}.key: wanted one of the tensors of {file} ({', '.join(sorted(tensors))}), got {key!r}."
                )
            return tensors[key]
        case _:
            raise ConfigError(f"{where}.file: wanted a .safetensors or .npy file, got {file}.")
