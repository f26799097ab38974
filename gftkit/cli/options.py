"""Options that several commands share."""

from pathlib import Path
from typing import Annotated

import typer

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file that describes the run.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a key of the configuration; may be repeated."),
]
Out = Annotated[Path | None, typer.Option(help="Run folder to write.  (default: runs/ and the name of CONFIG)")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in --out.")]
WeightsName = Annotated[str, typer.Option(help="Averaged weights (ema), or those of the last step (raw).")]
