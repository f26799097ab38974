"""What commands print: a table for people, or JSON."""

import json
from collections.abc import Iterable
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.markup import escape

if TYPE_CHECKING:
    from gftkit.options import Option


def table(head: list[str], rows: list[Any]) -> None:
    """Print a table; brackets in its cells are not taken for markup."""
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(*head, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def options_table(head: str, options: "Iterable[Option]") -> None:
    """Print options with their types, defaults and meaning."""
    rows = [(one.name, one.type_text, one.default_text, one.help.replace("``", "")) for one in options]
    table([head, "type", "default", "meaning"], rows)


def answer(values: dict[str, Any], text: str, as_json: bool) -> None:
    """Print a result: its values as JSON, or its text."""
    print(json.dumps(values, indent=2) if as_json else text)
