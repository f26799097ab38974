"""``gft plugins`` and ``gft plugins show``."""

import json
from typing import Annotated

import typer
from rich.console import Console

from gftkit.cli.options import Json
from gftkit.cli.output import options_table, table, without_arguments


def plugins(context: typer.Context, as_json: Json = False) -> None:
    """List the installed components by kind, and the plugins that failed to load or are blocked."""
    if context.invoked_subcommand:
        return
    from gftkit.kernel.loading import load

    registry = load()
    components = [registry.describe(kind, name) for kind in registry.kinds() for name in registry.names(kind)]
    if as_json:
        listed = [{**vars(p.origin), "status": p.status, "error": p.error or None} for p in registry.plugins]
        print(json.dumps({"components": [found.to_dict() for found in components], "plugins": listed}, indent=2))
        return
    rows = [(found.kind, found.name, found.summary, f"{found.distribution} {found.version}") for found in components]
    table(["kind", "name", "what it is", "from"], rows)
    for plugin in registry.plugins:
        if plugin.status != "loaded":
            print(f"{plugin.origin} {plugin.status}{': ' + plugin.error if plugin.error else ''}")


def show(
    kind: Annotated[str, typer.Argument(help="Kind of component, e.g. schedule.")],
    name: Annotated[str, typer.Argument(help="Its name, e.g. exponential.")],
    as_json: Json = False,
) -> None:
    """Show a component: what it is, its options with types, ranges and defaults, and where it comes from."""
    from gftkit.kernel.loading import load

    found = load().describe(kind, name)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    console = Console()
    console.print(f"[bold]{kind} {name}[/bold]  ({found.distribution} {found.version}, plugin {found.plugin})\n")
    console.print(without_arguments(found.doc).replace("``", ""), markup=False, highlight=False)
    if found.options:
        console.print()
        options_table("option", found.options)
