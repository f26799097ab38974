"""Stretches of files, read by position."""

import os
from collections import OrderedDict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from gftkit.kernel import DataError

_OPEN = 64
"""Files that are kept open at once."""


class Stretches:
    """Reads parts of files. Nothing is mapped, so that memory doesn't grow with what was read.

    A file is opened where it is first read, and a copy sent to another process opens its own. Reading by position
    shares no state, so that a forked process may go on with the same files.

    Args:
        files: which files, by number.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/a").write_bytes(b"gradual")
        ...     bytes(Stretches([Path(f"{folder}/a")]).read(0, 1, 3))
        b'rad'
    """

    def __init__(self, files: Sequence[Path]) -> None:
        self.files = list(files)
        self._open: OrderedDict[int, int] = OrderedDict()

    def read(self, number: int, offset: int, size: int) -> bytearray:
        """``size`` bytes of one file, from ``offset`` on.

        Raises:
            DataError: where the file can't be opened, or has become shorter.
        """
        stretch = bytearray(size)
        done = 0
        try:
            handle = self._handle(number)
            while done < size:
                # By position, since forked processes share the file's own; in a loop, since a read may give less.
                got = os.preadv(handle, [memoryview(stretch)[done:]], offset + done)
                if got == 0:
                    raise DataError(
                        f"{self.files[number]}: wanted {size} bytes from byte {offset} on, and the file is shorter. "
                        f"It has changed since the run started. Restore it, and resume."
                    )
                done += got
        except OSError as error:
            raise unreadable_file_error(self.files[number], error) from error
        return stretch

    def _handle(self, number: int) -> int:
        if number not in self._open:
            self._open[number] = os.open(self.files[number], os.O_RDONLY | getattr(os, "O_CLOEXEC", 0))
            if (
                len(self._open) > _OPEN
            ):  # an operating system limits the files of a process, and a set may have thousands
                os.close(self._open.popitem(last=False)[1])
        self._open.move_to_end(number)
        return self._open[number]

    def __getstate__(self) -> dict[str, Any]:
        return {"files": self.files, "_open": OrderedDict()}

    def __del__(self) -> None:
        for handle in self.__dict__.get("_open", {}).values():
            os.close(handle)


def unreadable_file_error(file: Path, error: OSError) -> DataError:
    """The error for a file that the operating system doesn't give."""
    return DataError(f"{file}: can't be read ({error.strerror or error}). Check the path and its permissions.")
