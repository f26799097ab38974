"""Metadata files: comma-separated values under a line of column names."""

import csv
import os
from collections.abc import Iterator, Sequence
from pathlib import Path

from gftkit.kernel import DataError
from gftkit_plugins.datasets.stretches import unreadable_file_error

_AGAIN = "The file is damaged or incomplete. Copy or unpack it again."


def read_rows(file: Path, columns: Sequence[str]) -> Iterator[tuple[str, ...]]:
    """The values of some columns, row by row, as they stand in the file; other columns are passed over.

    Args:
        file: with a line break at the end of every line, the last one too.
        columns: their names, in the order of the values to give.

    Raises:
        DataError: for a file that is missing, empty, cut off or no such table, columns that it doesn't have, and a row
            with more or fewer values than there are columns.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     _ = Path(f"{folder}/metadata.csv").write_text(",patient,tumor\\n0,004,1\\n1,021,0\\n")
        ...     list(read_rows(Path(f"{folder}/metadata.csv"), ("tumor", "patient")))
        [('1', '004'), ('0', '021')]
    """
    _check_ends(file)
    try:
        with file.open(newline="", encoding="utf-8-sig") as stream:
            reader = csv.reader(stream, strict=True)
            header = next(reader, [])
            missing = [name for name in columns if name not in header]
            if missing:
                raise DataError(
                    f"{file}: wanted the columns {', '.join(columns)}; missing: {', '.join(missing)}. It has: "
                    f"{', '.join(name or 'one without a name' for name in header)}. Unpack the archive again, or check "
                    f"that this is its metadata file."
                )
            places = [header.index(name) for name in columns]
            any_row = False
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise DataError(
                        f"{file}, line {reader.line_num}: wanted {len(header)} values, one for each column, got "
                        f"{len(row)}. {_AGAIN}"
                    )
                any_row = True
                yield tuple([row[place] for place in places])
    except (csv.Error, UnicodeDecodeError) as error:
        raise DataError(
            f"{file}: wanted comma-separated values in UTF-8, got something else ({error}). {_AGAIN}"
        ) from (error)
    except OSError as error:
        raise unreadable_file_error(file, error) from error
    if not any_row:
        raise DataError(f"{file}: it has column names and no rows. {_AGAIN}")


def whole_number(text: str, column: str, limit: int, where: str) -> int:
    """A value from 0 to below ``limit``.

    Raises:
        DataError: for anything else, naming ``where`` and the column.
    """
    if not (text.isascii() and text.isdigit() and int(text) < limit):
        raise DataError(
            f"{where}: wanted in column '{column}' a whole number from 0 to {limit - 1}, got '{text}'. {_AGAIN}"
        )
    return int(text)


def _check_ends(file: Path) -> None:
    """Refuse a file that isn't there, is empty, or ends within a line."""
    if not file.is_file():
        came = "a folder" if file.is_dir() else "nothing there"
        raise DataError(f"{file}: wanted a metadata file, found {came}. Check the path, or unpack the archive again.")
    try:
        with file.open("rb") as stream:
            if stream.seek(0, os.SEEK_END) == 0:
                raise DataError(f"{file}: the file is empty (0 bytes). Copy or unpack it again.")
            stream.seek(-1, os.SEEK_END)
            last = stream.read(1)
    except OSError as error:
        raise unreadable_file_error(file, error) from error
    if last != b"\n":
        raise DataError(
            f"{file}: the last line has no line break, so the file may be incomplete. Copy or unpack it again; if it "
            f"is complete, add the line break."
        )
