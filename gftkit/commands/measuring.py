"""``gft fit-grid``: what is measured along the trajectories of finished runs."""

import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gftkit.commands.options import Device, Json, RunFolder, WeightsName
from gftkit.commands.output import table
from gftkit.commands.sampling import weights_of

Count = Annotated[int, typer.Option(help="Starts of trajectories.")]
Fine = Annotated[int, typer.Option(help="Runge-Kutta steps of a fine trajectory.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of the starts, as in gft sample.")]


def fit_grid(
    run: RunFolder,
    out: Annotated[Path, typer.Option(metavar="FILE", help="YAML file to write; a picture beside it ends in .png.")],
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps of a grid; may be repeated.  (default: 2, 4, 8)")
    ] = None,
    count: Count = 256,
    fine_steps: Fine = 100,
    seed: Seed = 0,
    weights: WeightsName = "ema",
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fit the times of a few Euler steps to a run's flow; equal steps are kept where they do no worse.

    Sample with them by `gft sample RUN --steps 4 --grid '{name: fitted, file: FILE}'`.

    Example: gft fit-grid runs/gft --steps 4 --steps 8 --out grid.yaml
    """
    from gftkit.environment import device_of
    from gftkit.errors import ConfigError, RunError
    from gftkit.geometry_pictures import fitted_grids
    from gftkit.pictures import write_png
    from gftkit.report import number
    from gftkit.run import Run
    from gftkit.time_grid import fit_run, write_grids

    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: wanted .yaml, got '{out.suffix}'.")
    picture = out.with_suffix(".png")
    for path in (out, picture):
        if path.exists() and not force:
            raise RunError(f"{path} exists. Choose another --out, or overwrite it with --force.")
    opened = Run.open(run)
    with _stages() as stage:
        chosen = steps or [2, 4, 8]
        fits, notes = fit_run(opened, chosen, count, fine_steps, seed, weights_of(weights), device_of(device), stage)
    write_grids(out, fits, notes)
    write_png(picture, fitted_grids(fits))
    if as_json:
        content = {"file": str(out), "picture": str(picture), "fitted_on": notes}
        print(json.dumps({**content, "grids": [fit.to_dict() for fit in fits]}, indent=2))
        return
    rows = [
        (
            str(fit.steps),
            *(number(each.value, each.stderr) for each in (fit.uniform, fit.fitted, fit.gain)),
            fit.kept,
            " ".join(f"{t:.3g}" for t in fit.times),
        )
        for fit in fits
    ]
    table(["steps", "uniform", "fitted", "gain", "kept", "times"], rows)
    print(f"Distances are root mean squares of the whole event, as scaled in training. Written: {out}, {picture}")


@contextmanager
def _stages() -> Iterator[Callable[[str], None]]:
    """A spinner that tells what is being measured; on a terminal only."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text: progress.update(task, description=text)
