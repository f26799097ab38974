"""``gft keys``."""

import json
from typing import Annotated

import typer

from gftkit.cli.options import Json
from gftkit.cli.output import options_table, table


def keys(
    section: Annotated[str | None, typer.Argument(metavar="[SECTION]", help="Such as train or convention.")] = None,
    as_json: Json = False,
) -> None:
    """Show the keys of a section of a configuration, with types, ranges and defaults; without one, of the whole file.

    Example: gft keys train
    """
    from gftkit.cli.sections import SECTIONS, section_keys

    options = section_keys(section).values()
    if as_json:
        print(json.dumps([option.to_dict() for option in options], indent=2))
    elif section is not None:
        options_table("key", options)
    else:
        table(["key", "description"], [(option.name, option.help) for option in options])
        print(f"Keys of a section: gft keys {'|'.join(SECTIONS)}")
        print("Options of a component: gft plugins show KIND NAME")
