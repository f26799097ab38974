"""Files: written whole or not at all, read without unpickling, with one clear error where that fails."""

import errno
import hashlib
import json
import math
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import Any

import torch
import yaml
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from gftkit.errors import ConfigError, RunError, WeightsError
from gftkit.sharding import shared_out

State = dict[str, Tensor]

_DIGEST = "gftkit-digest"
"""Where a safetensors file of ours keeps the digest of everything else in it."""
LOCK = ".lock"
"""The file in a folder that tells which process is at work in it."""
_PART = ".part"
"""Stands in the name of a file that is being written."""
_THEIRS = ".tmp" + "[A-Za-z0-9]" * 6
"""The file that safetensors fills before it takes the name that it was given."""


@contextmanager
def explained(path: Path, doing: str = "write") -> Iterator[None]:
    """Turn a failure of the file system into one clear error.

    Raises:
        RunError: naming the file and the cause: full disk, no permission, read-only.
    """
    try:
        yield
    except OSError as error:
        cures = {
            errno.ENOSPC: "The disk is full: free some space, or choose another folder with --out.",
            errno.EACCES: "Permission denied: choose another folder with --out.",
            errno.EPERM: "Permission denied: choose another folder with --out.",
            errno.EROFS: "The file system is read-only: choose another folder with --out.",
            errno.EEXIST: "A file stands where a folder is wanted: choose another folder with --out.",
            errno.ENOTDIR: "A file stands where a folder is wanted: choose another folder with --out.",
        }
        cure = cures.get(error.errno or 0, f"{type(error).__name__}: {error.strerror or error}.")
        raise RunError(f"cannot {doing} {path}. {cure}") from error


def write_atomically(path: Path, write: Callable[[Path], None]) -> None:
    """Let ``write`` make a temporary file beside ``path``, then move it there in one step.

    Raises:
        RunError: where the file can't be written; what stood there before is kept.
    """
    with explained(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=_PART + path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            try:
                write(temporary)
            except SafetensorError as error:  # the library wraps the operating system's error in text
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number.group(1)) if number else errno.EIO, str(error)) from error
            os.chmod(temporary, 0o666 & ~_umask())
            with temporary.open("rb") as written:
                os.fsync(written.fileno())
            os.replace(temporary, path)
        finally:
            temporary.unlink(missing_ok=True)
        _sync_folder(path.parent)


def _sync_folder(folder: Path) -> None:
    """Make a change of names last through a power cut, where the file system can promise that."""
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    except OSError as error:
        if error.errno not in (errno.EINVAL, errno.ENOTSUP):  # what network file systems say that can't
            raise
    finally:
        os.close(handle)


@contextmanager
def held(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder meanwhile; a process that is killed lets go of it.

    Raises:
        RunError: where another process is at work in it, naming that.
    """
    try:
        import fcntl
    except ImportError:  # Windows
        yield
        return
    lock = folder / LOCK
    made = [path for path in (folder, *folder.parents) if not path.exists()]
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{folder}: another process is at work in it ({file.read().strip()}). Wait for it, or choose another "
                f"folder with --out."
            ) from None
        except OSError:  # a file system without locks
            pass
        file.truncate(0)
        file.write(f"process {os.getpid()} on {socket.gethostname()}")
        file.flush()
        try:
            yield
        finally:
            lock.unlink(missing_ok=True)
            with suppress(OSError):  # it isn't empty
                for path in made:
                    path.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left of files that it was writing; where nobody else writes into the folder.

    Raises:
        RunError: where one can't be deleted.
    """
    with explained(folder, "tidy"):
        for pattern in (f".*{_PART}*", _THEIRS):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)
    os.umask(mask)
    return mask


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a number that is not finite becomes null, since JSON has none."""
    write_text(path, json.dumps(finite(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        RunError: where it is missing or damaged.
    """
    with explained(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is damaged: {error}.") from None


def finite(value: Any) -> Any:
    """The value with nan and infinities replaced by None."""
    if isinstance(value, Mapping):
        return {key: finite(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [finite(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


def write_tensors(path: Path, tensors: Mapping[str, Tensor], metadata: Mapping[str, Any]) -> None:
    """Write a safetensors file with JSON metadata and a digest of it all, whole or not at all."""
    held = {name: tensor.detach().cpu().contiguous().clone() for name, tensor in tensors.items()}
    notes = {key: json.dumps(value) for key, value in metadata.items()}
    notes = {"format": "pt", **notes}
    notes[_DIGEST] = _digest_of_file(held, notes)
    write_atomically(path, lambda temporary: save_file(held, temporary, metadata=notes))


def read_tensors(path: Path, ours: bool = False) -> tuple[State, dict[str, Any]]:
    """The tensors and metadata of a safetensors file; where it has a digest, that is checked.

    Args:
        path: the file.
        ours: refuse a file without a digest: it wasn't written by ``write_tensors``.

    Raises:
        WeightsError: for a file that is missing, empty, truncated, of another format, or changed since it was written.
    """
    with _opened(path) as file:
        tensors, notes = {name: file.get_tensor(name) for name in file.keys()}, file.metadata() or {}  # noqa: SIM118
    written = notes.pop(_DIGEST, None)
    if (ours and written is None) or (written is not None and written != _digest_of_file(tensors, notes)):
        raise WeightsError(
            f"{path}: its content isn't what was written: wanted the digest {written}, got another. The disk or a copy "
            f"damaged it; copy it again, or go back to an earlier one."
        )
    return tensors, _plain_notes(notes)


def read_notes(path: Path) -> dict[str, Any]:
    """The metadata of a safetensors file, without its tensors.

    Raises:
        WeightsError: for a file that is missing or damaged.
    """
    with _opened(path) as file:
        return _plain_notes(file.metadata() or {})


def _plain_notes(notes: Mapping[str, str]) -> dict[str, Any]:
    return {key: _decoded(value) for key, value in notes.items() if key not in ("format", _DIGEST)}


@contextmanager
def _opened(path: Path) -> Iterator[Any]:
    """A safetensors file, open for reading."""
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file.")
    try:
        with safe_open(path, framework="pt") as file:
            yield file
    except (SafetensorError, OSError) as error:
        raise WeightsError(
            f"{path}: wanted a safetensors file, got {path.stat().st_size} bytes that can't be read as one ({error}). "
            f"It may be truncated or of another format; copy or export it again."
        ) from None


def _digest_of_file(tensors: Mapping[str, Tensor], notes: Mapping[str, str]) -> str:
    """SHA-256 of a file's tensors and metadata."""
    return hashlib.sha256(json.dumps([digest(tensors), dict(sorted(notes.items()))]).encode()).hexdigest()


def _decoded(note: str) -> Any:
    """A note as this module writes them; other programs write plain text."""
    try:
        return json.loads(note)
    except json.JSONDecodeError:
        return note


SHOWN = 8
"""How many of a long list an error shows."""


def shortened(lines: Sequence[str]) -> str:
    """The first lines of a long list, each on a line of its own, and how many more there are."""
    more = [f"and {len(lines) - SHOWN} more"] if len(lines) > SHOWN else []
    return "".join(f"\n  {line}" for line in [*lines[:SHOWN], *more])


def misfits(weights: State, wanted: Mapping[str, Tensor]) -> list[str]:
    """How weights differ from those that a network wants, a line for each name: missing, unknown, of another shape."""
    complaints = [f"missing: {name} {tuple(wanted[name].shape)}" for name in wanted if name not in weights]
    complaints += [f"unknown: {name} {tuple(weights[name].shape)}" for name in weights if name not in wanted]
    complaints += [
        f"wrong shape: {name} is {tuple(weights[name].shape)}, the drift wants {tuple(wanted[name].shape)}"
        for name in wanted
        if name in weights and weights[name].shape != wanted[name].shape
    ]
    return complaints


def load_weights(module: torch.nn.Module, weights: State, source: Path, what: str = "drift") -> None:
    """Put weights into a network, all of them or none; ``what`` it is, for the errors.

    Raises:
        WeightsError: naming the keys that are missing, unknown or of the wrong shape.
    """
    complaints = misfits(weights, module.state_dict())
    if complaints:
        raise WeightsError(
            f"{source}: the weights don't fit the {what}.{shortened(complaints)}\n"
            f"Give the `{what}` these weights were made with."
        )
    bad = [name for name, tensor in weights.items() if tensor.is_floating_point() and not torch.isfinite(tensor).all()]
    if bad:
        raise WeightsError(f"{source}: weights are not finite: {', '.join(bad[:SHOWN])}.")
    own = module.state_dict()
    module.load_state_dict({name: shared_out(held, own[name]) for name, held in weights.items()})


def digest(weights: Mapping[str, Tensor]) -> str:
    """SHA-256 of a network's weights: names, types, shapes and values."""
    found = hashlib.sha256()
    for name in sorted(weights):
        tensor = weights[name].detach().cpu().contiguous()
        found.update(f"{name} {tensor.dtype} {tuple(tensor.shape)}".encode())
        found.update(tensor.reshape(-1).view(torch.uint8).numpy().data if tensor.numel() else b"")
    return found.hexdigest()


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start where a disk can't hold what will be written.

    Raises:
        RunError: saying how much is wanted and how much is free.
    """
    with explained(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder}: the run will write about {needed / 1e6:.0f} MB and {free / 1e6:.0f} MB are free. "
            f"Free some space, or choose another folder with --out."
        )


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number and a key may stand once, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:
        """The mapping, with keys that stand twice refused."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {value for tag, value in keys if tag != "tag:yaml.org,2002:merge" and keys.count((tag, value)) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"'{min(twice)}' stands twice", node.start_mark)
        return super().construct_mapping(node, deep)


_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain values.

    Raises:
        ConfigError: where it isn't YAML, with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: for a file that is missing, empty, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
    found = parse_yaml(text, str(path))
    if not isinstance(found, dict) or not found:
        raise ConfigError(
            f"{path}: wanted a YAML mapping such as `data: {{name: digits}}`, got {type(found).__name__}."
        )
    return found
