"""Tensors in safetensors files, with a digest of everything in them: nothing is ever unpickled."""

import hashlib
import json
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gftkit.kernel.errors import WeightsError
from gftkit.storage.files import (
    write_atomically,
)

State = dict[str, Tensor]

_DIGEST = "gftkit-digest"
"""Where a safetensors file of ours keeps the digest of everything else in it."""


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON metadata and a digest of it all, whole or not at all."""
    copies = _unshared(tensors)
    notes = {key: json.dumps(value) for key, value in metadata.items()}
    notes = {"format": "pt", **notes}
    # Over the metadata too: a checkpoint keeps its step there.
    notes[_DIGEST] = _digest_of_file(digest(copies), notes)
    write_atomically(path, lambda temporary: save_file(copies, temporary, metadata=notes))


def _unshared(tensors: Mapping[str, Tensor]) -> State:
    """The tensors on the CPU, each with memory of its own: safetensors refuses others, such as tied weights."""
    state: State = {}
    used: set[int] = set()
    for name, tensor in tensors.items():
        own = tensor.detach().cpu().contiguous()
        storage = own.untyped_storage()
        # Copied only where that is needed: a checkpoint is as large as weights, averages and moments together.
        if storage.data_ptr() in used or storage.nbytes() != own.nbytes:
            own = own.clone()
        used.add(own.untyped_storage().data_ptr())
        state[name] = own
    return state


@dataclass(frozen=True)
class TensorFile:
    """The contents of a safetensors file.

    Attributes:
        tensors: by name.
        notes: its metadata.
        digest: of the tensors, see ``digest``; None for a file of another program, which keeps none.
    """

    tensors: State
    notes: dict[str, Any]
    digest: str | None


def read_tensor_file(path: Path, *, ours: bool = False) -> TensorFile:
    """Read a safetensors file; where it has a digest, that is checked.

    Args:
        path: the file.
        ours: refuse a file without a digest: it wasn't written by ``write_tensors``.

    Raises:
        WeightsError: for a file that is missing, empty, truncated, of another format, or changed since it was written.
    """
    with _open_safetensors(path) as file:
        tensors, notes = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    written = notes.pop(_DIGEST, None)
    computed = None if written is None else digest(tensors)
    if (ours and written is None) or (computed is not None and written != _digest_of_file(computed, notes)):
        raise WeightsError(
            f"{path}: the content doesn't match its digest {written}: it was changed or damaged since it was written. "
            f"Copy it again, or use an earlier one."
        )
    return TensorFile(tensors, _plain_notes(notes), computed)


def read_tensors(path: Path, *, ours: bool = False) -> tuple[State, dict[str, Any]]:
    """The tensors and metadata of a safetensors file; as ``read_tensor_file``."""
    file = read_tensor_file(path, ours=ours)
    return file.tensors, file.notes


def read_notes(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, without its tensors.

    Raises:
        WeightsError: for a file that is missing or damaged.
    """
    with _open_safetensors(path) as file:
        return _plain_notes(file.metadata() or {})


def _plain_notes(notes: Mapping[str, str]) -> dict[str, Any]:
    return {key: _decode(value) for key, value in notes.items() if key not in ("format", _DIGEST)}


@contextmanager
def _open_safetensors(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: wanted a safetensors file, got {path.stat().st_size} bytes that can't be read ({error}). The "
            f"file may be truncated or of another format. Copy or export it again."
        ) from None


def _digest_of_file(tensors: str, notes: Mapping[str, str]) -> str:
    """SHA-256 of the digest of a file's tensors and of its metadata."""
    return hashlib.sha256(json.dumps([tensors, dict(sorted(notes.items()))]).encode()).hexdigest()


def _decode(note: str) -> Any:
    """A note as this module writes them; other programs write plain text."""
    try:
        return json.loads(note)
    except json.JSONDecodeError:
        return note


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights: names, types, shapes and values."""
    sha256 = hashlib.sha256()
    for name in sorted(weights):  # so that the order of the modules in the network doesn't count
        tensor = weights[name].detach().cpu().contiguous()
        sha256.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        # As bytes, because numpy has no bfloat16.
        sha256.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return sha256.hexdigest()
