"""The command line ``gft``. Nothing heavy is imported until a command runs, so that ``--help`` answers at once."""

import os
import sys
import time
import traceback
from typing import Annotated

import typer
from rich.console import Console
from rich.markup import escape

from gftkit.cli.comparing import compare
from gftkit.cli.fitting import fit_profile
from gftkit.cli.inspecting import inspect
from gftkit.cli.keys import keys
from gftkit.cli.likelihood import likelihood
from gftkit.cli.measuring import fit_grid, geometry
from gftkit.cli.plugins import plugins, show
from gftkit.cli.sampling import evaluate, export, sample
from gftkit.cli.training import distill, finetune, pretrain
from gftkit.cli.verifying import verify

PATIENCE = 10.0
"""Seconds that the other processes of a node wait for the first one to report an error that all of them meet."""

app = typer.Typer(
    name="gft",
    help="Gradual Fine-Tuning for flow matching models: adapt a pretrained flow to new data, and check the theory.",
    epilog="A first run: gft pretrain pretrain.yaml --out runs/pre; gft finetune finetune.yaml --out runs/gft; "
    "gft sample runs/gft. For a network from elsewhere: gft inspect theirs.yaml. See `gft COMMAND --help`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
for command in (
    pretrain,
    finetune,
    distill,
    compare,
    sample,
    evaluate,
    likelihood,
    fit_grid,
    fit_profile,
    geometry,
    export,
    inspect,
    verify,
    keys,
):
    app.command()(command)
plugins_app = typer.Typer(help="List the installed components, or show one.", invoke_without_command=True)
plugins_app.callback()(plugins)
plugins_app.command("show")(show)
app.add_typer(plugins_app, name="plugins")


def _version(wanted: bool) -> None:
    if wanted:
        from gftkit import __version__

        print(f"gftkit {__version__}")
        raise typer.Exit


@app.callback()
def _gft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


def main() -> None:
    """Run ``gft``; an error that the user can correct is one message and an exit code."""
    debug = "--debug" in sys.argv
    try:
        app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except Exception as error:
        from gftkit.kernel.errors import GftkitError  # imports torch, which --help does without

        if not isinstance(error, GftkitError):
            raise
        if os.environ.get("LOCAL_RANK", "0") != "0":
            time.sleep(PATIENCE)  # torchrun ends this process once the first one has reported the error and failed
        if debug:
            traceback.print_exc()
        text = escape(str(error))  # an error may quote what looks like markup, such as a list
        Console(stderr=True).print(f"[bold red]Error:[/bold red] {text}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
