"""Output of commands: tables for people, or JSON; and refusals to overwrite it."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from pathlib import Path

    from gftkit.kernel.options import Option


def table(head: list[str], rows: list[Any]) -> None:
    """Print a table no wider than the terminal; cells are wrapped between words, and inside words only if need be.

    Brackets in cells are not markup.
    """
    from rich.box import SIMPLE_HEAD
    from rich.table import Column, Table

    console = Console()
    cells = list(zip(head, *rows, strict=True))
    words = [max((len(word) for cell in column for word in cell.split()), default=0) for column in cells]
    widths = [max(map(len, column)) for column in cells]
    while sum(widths) > max(console.width - 2 * len(head), len(head)):  # two for what is between columns
        spare = [width - word for width, word in zip(widths, words, strict=True)]
        widest = spare.index(max(spare)) if max(spare) > 0 else widths.index(max(widths))
        widths[widest] -= 1
    columns = [Column(name, overflow="fold", width=width) for name, width in zip(head, widths, strict=True)]
    table = Table(*columns, box=SIMPLE_HEAD, pad_edge=False, padding=(0, 1, 0, 0))
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    console.print(table)


def check_absent(path: "Path", option: str, force: bool) -> None:
    """Refuse to overwrite a file without --force.

    Raises:
        RunError: naming the option that chooses another one.
    """
    if path.exists() and not force:
        from gftkit.kernel.errors import RunError

        raise RunError(f"{path} exists. Choose another {option}, or overwrite it with --force.")


def warn(text: str) -> None:
    """Print a warning, on stderr."""
    Console(stderr=True).print(f"[yellow]Warning:[/yellow] {escape(text)}", highlight=False, soft_wrap=True)


def options_table(head: str, options: "Iterable[Option]") -> None:
    """Print options with their types, defaults and meaning."""
    rows = [(one.name, one.type_text, one.default_text, one.help.replace("``", "")) for one in options]
    table([head, "type", "default", "meaning"], rows)


def without_arguments(doc: str) -> str:
    """A docstring without its ``Args:`` section, whose options are printed as a table."""
    from gftkit.kernel.options import ARGUMENTS

    return ARGUMENTS.sub("", doc).rstrip()


def print_result(values: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: its values as JSON, or its text."""
    print(json.dumps(values, indent=2) if as_json else text)
