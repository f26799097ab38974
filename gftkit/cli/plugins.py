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
        print(
            json.dumps({"components": [component.to_dict() for component in components], "plugins": listed}, indent=2)
        )
        return
    rows = [
        (component.kind, component.name, component.summary, f"{component.distribution} {component.version}")
        for component in components
    ]
    table(["kind", "name", "description", "from"], rows)
    for plugin in registry.plugins:
        if plugin.status != "loaded":
            print(f"{plugin.origin} {plugin.status}{': ' + plugin.error if plugin.error else ''}")


def show(
    kind: Annotated[str, typer.Argument(help="Kind of component, e.g. schedule.")],
    name: Annotated[str, typer.Argument(help="Its name, e.g. exponential.")],
    as_json: Json = False,
) -> None:
    """Show a component: its summary, its options with types, ranges and defaults, and its plugin."""
    from gftkit.kernel.loading import load

    component = load().describe(kind, name)
    if as_json:
        print(json.dumps(component.to_dict(), indent=2))
        return
    console = Console()
    console.print(
        f"[bold]{kind} {name}[/bold]  ({component.distribution} {component.version}, plugin {component.plugin})\n"
    )
    console.print(without_arguments(component.doc).replace("``", ""), markup=False, highlight=False)
    if component.options:
        console.print()
        options_table("option", component.options)
