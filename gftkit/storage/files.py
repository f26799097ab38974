"""Files and folders: written whole or not at all, locked by one process, with one clear error where that fails."""

import errno
import os
import re
import shutil
import socket
import tempfile
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from safetensors import SafetensorError

from gftkit.kernel.errors import RunError

LOCK = ".lock"
"""The file in a folder that names the process that uses it."""
_PART = ".part"
"""Stands in the name of a file that is being written."""
_THEIRS = ".tmp" + "[A-Za-z0-9]" * 6
"""The file that safetensors fills before it takes the name that it was given."""


@contextmanager
def explain_file_errors(path: Path, doing: str = "write") -> Iterator[None]:
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
    with explain_file_errors(path):
        path.parent.mkdir(parents=True, exist_ok=True)
        # In the same folder, because a rename is atomic only within one file system.
        handle, name = tempfile.mkstemp(prefix=f".{path.stem}-", suffix=_PART + path.suffix, dir=path.parent)
        os.close(handle)
        temporary = Path(name)
        try:
            try:
                write(temporary)
            except SafetensorError as error:  # the library wraps the operating system's error in text
                number = re.search(r"os error (\d+)", str(error))
                raise OSError(int(number.group(1)) if number else errno.EIO, str(error)) from error
            os.chmod(temporary, 0o666 & ~_umask())  # mkstemp lets nobody else read it, as befits secrets
            # Before the rename: else a power cut may keep the new name and lose the content.
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
def lock_folder(folder: Path) -> Iterator[None]:
    """Keep other processes out of a folder meanwhile; a process that is killed lets go of it.

    Raises:
        RunError: where another process is at work in it, naming that.
    """
    try:
        import fcntl  # noqa: PLC0415 - not on Windows
    except ImportError:  # Windows
        yield
        return
    # A lock that the operating system releases with the process. A file that is the lock by being there would outlive a
    # process that was killed.
    lock = folder / LOCK
    new_folders = [path for path in (folder, *folder.parents) if not path.exists()]
    with explain_file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = lock.open("a+", encoding="utf-8")  # "w" would empty the file of the process that holds the lock
    with file:
        try:
            fcntl.lockf(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            file.seek(0)
            raise RunError(
                f"{folder}: another process is using this folder ({file.read().strip()}). Wait for it to end, or "
                f"choose another folder with --out."
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
            # A command that is refused before it wrote anything leaves no folder behind.
            with suppress(OSError):  # it isn't empty
                for path in new_folders:
                    path.rmdir()


def remove_leftovers(folder: Path) -> None:
    """Delete what a killed process left of files that it was writing; where nobody else writes into the folder.

    Raises:
        RunError: where one can't be deleted.
    """
    with explain_file_errors(folder, "tidy"):
        for pattern in (f".*{_PART}*", _THEIRS):
            for path in folder.glob(pattern):
                path.unlink(missing_ok=True)


def _umask() -> int:
    mask = os.umask(0)  # the only way to read it is to set it
    os.umask(mask)
    return mask


def check_space(folder: Path, needed: int) -> None:
    """Refuse to start where a disk can't hold what will be written.

    Raises:
        RunError: with the space that is needed and that is free.
    """
    with explain_file_errors(folder):
        folder.mkdir(parents=True, exist_ok=True)
        free = shutil.disk_usage(folder).free
    if free < needed:
        raise RunError(
            f"{folder}: the run needs about {needed / 1e6:.0f} MB, and {free / 1e6:.0f} MB are free. Free some space, "
            f"or choose another folder with --out."
        )
