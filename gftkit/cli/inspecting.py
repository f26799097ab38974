"""``gft inspect``: the convention of a network."""

import contextlib
import json
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gftkit.cli.options import Device, Json, Overrides
from gftkit.cli.output import check_absent, table


def inspect(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="YAML file with `drift` and `data`, such as a fine-tune's."),
    ] = None,
    overrides: Overrides = None,
    target: Annotated[str | None, typer.Option(metavar="MODULE:CLASS", help="Sets drift.target.")] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="Sets drift.weights.")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="Sets data.name.")] = None,
    count: Annotated[int, typer.Option(help="Pairs to measure on.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of pairs and times.")] = 0,
    out: Annotated[
        Path | None,
        typer.Option(
            metavar="FILE", help="Write the drift with its convention, and the settings of the inspection, as YAML."
        ),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find the convention of a network: the direction of its time, its prediction, the weights to use.

    Every hypothesis is tried on samples like those that the network was trained on, and ranked by its one-step
    denoising error; the best convention is printed for a configuration. Fields that the configuration's convention
    has are taken as known. Exit code 1: several hypotheses fit equally well, or none fits.

    Example: gft inspect theirs.yaml --set drift.key=ema --out convention.yaml
    """
    from rich.progress import Progress

    from gftkit.inspection import doctor
    from gftkit.inspection.ranking import InspectionError
    from gftkit.kernel.loading import load
    from gftkit.runtime.environment import resolve_device
    from gftkit.storage.documents import nan_to_none, write_text

    if out is not None:
        check_absent(out, "--out", force)
    named = {"drift.target": target, "drift.weights": weights, "data.name": data}
    flags = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=None)
        with contextlib.redirect_stdout(sys.stderr):  # a foreign network may print
            inspection, settings = doctor.diagnose(
                config,
                load(),
                [*flags, *(overrides or [])],
                count=count,
                seed=seed,
                device=resolve_device(device),
                begin=lambda total: progress.update(task, total=total, completed=0),
                advance=lambda done: progress.advance(task, done),
                folder=None if out is None else out.parent,
            )
    clear = inspection.verdict == "clear"
    block = doctor.block(inspection.best, settings) if clear else None
    if as_json:
        print(json.dumps(nan_to_none({**inspection.to_dict(), "config": block}), indent=2))
    else:
        table(doctor.HEAD, doctor.rows(inspection))
    words = doctor.conclusion(inspection, settings)
    if inspection.verdict == "none":
        raise InspectionError(words)
    if not as_json:
        print(words)
    if block is None:
        raise typer.Exit(1)
    if out is not None:
        write_text(out, doctor.as_yaml(block))
