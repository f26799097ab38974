"""Several files by one pattern."""

import glob
import re
from pathlib import Path

from gftkit.kernel import DataError

_BRACES = re.compile(r"\{([^{}]*)\}")
_RANGE = re.compile(r"(\d+)\.\.(\d+)")
_WILD = re.compile(r"[*?\[]")


def files_of(pattern: Path, ending: str) -> list[Path]:
    """The files of a pattern in its order, each once.

    A pattern is a file, a folder, or has ``{000..099}``, ``{a,b}``, ``*``, ``?`` or ``[]`` in it. Numbers in braces
    keep their leading zeros; what a wildcard or a folder gives is sorted by name. Hidden files are passed over.

    Args:
        pattern: the pattern; one that names an existing file or folder is that, whatever its signs.
        ending: of the files that a folder gives, such as ".tar".

    Raises:
        DataError: naming what is missing.

    Example:
        >>> import tempfile
        >>> with tempfile.TemporaryDirectory() as folder:
        ...     for name in ("a-09.tar", "a-10.tar", "b.tar"):
        ...         _ = Path(folder, name).write_text("")
        ...     [file.name for file in files_of(Path(folder, "{b,a-{09..10}}.tar"), ".tar")]
        ['b.tar', 'a-09.tar', 'a-10.tar']
    """
    if pattern.is_file():
        return [pattern]
    if pattern.is_dir():
        inside = sorted(file for file in pattern.iterdir() if file.name.endswith(ending) and file.name[0] != ".")
        if not inside:
            raise DataError(f"{pattern}: wanted a folder with {ending} files, found none in it. Check the path.")
        return inside
    files: list[Path] = []
    missing: list[str] = []
    for name in _expanded(str(pattern)):
        if Path(name).is_file():
            files.append(Path(name))
        elif _WILD.search(name) and (matches := sorted(glob.glob(name))):
            files += [Path(match) for match in matches if Path(match).is_file()]
        else:
            missing.append(name)
    if missing or not files:
        more = f" and {len(missing) - 3} more" if len(missing) > 3 else ""
        raise DataError(
            f"{', '.join(missing[:3]) or pattern}{more}: no such file. Check the path; relative ones start at the "
            f"config."
        )
    return list(dict.fromkeys(files))


def _expanded(text: str) -> list[str]:
    """Every text that braces stand for, innermost first."""
    braces = _BRACES.search(text)
    if not braces:
        return [text]
    span = _RANGE.fullmatch(braces[1])
    if span:
        low, high = int(span[1]), int(span[2])
        parts = [str(number).zfill(len(span[1])) for number in range(low, high + 1)]
    elif "," in braces[1]:
        parts = braces[1].split(",")
    else:
        raise DataError(
            f"{text}: braces hold a range of whole numbers as {{000..099}}, or a list as {{a,b}}; got {braces[0]}."
        )
    return [whole for part in parts for whole in _expanded(text[: braces.start()] + part + text[braces.end() :])]
