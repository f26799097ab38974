"""``gft geometry`` and ``gft fit-grid``: measurements along the trajectories of finished runs."""

import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gftkit.cli.options import Device, Json, Retention, RunPath, WeightsName, parse_retention
from gftkit.cli.output import check_absent, table, warn
from gftkit.cli.sampling import check_weights

if TYPE_CHECKING:
    from gftkit.geometry.time_grid import Fit

Count = Annotated[int, typer.Option(help="Number of trajectories.")]
Fine = Annotated[int, typer.Option(help="Runge-Kutta steps of a fine trajectory.")]
Seed = Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of the starts, as in gft sample.")]


def fit_grid(
    run: RunPath,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="YAML file to write; a picture of the same name ends in .png.")
    ],
    steps: Annotated[
        list[int] | None, typer.Option(help="Steps of a grid; may be repeated.  (default: 2, 4, 8)")
    ] = None,
    count: Count = 256,
    fine_steps: Fine = 100,
    seed: Seed = 0,
    weights: WeightsName = "ema",
    retention: Retention = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Fit the times of a few Euler steps to a run's flow; equal steps are kept where the fitted ones aren't better.

    Sample with them by `gft sample RUN --steps 4 --grid '{name: fitted, file: FILE}'`.

    Example: gft fit-grid runs/gft --steps 4 --steps 8 --out grid.yaml
    """
    from gftkit.api import Run
    from gftkit.geometry.pictures import fitted_grids
    from gftkit.geometry.time_grid import fit_run, write_grids
    from gftkit.kernel.errors import ConfigError
    from gftkit.runtime.environment import resolve_device
    from gftkit.storage.documents import nan_to_none

    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: wanted .yaml, got '{out.suffix}'.")
    picture = out.with_suffix(".png")
    for path in (out, picture):
        check_absent(path, "--out", force)
    opened = Run.open(run)
    with show_stages() as stage:
        fits, notes = fit_run(
            opened,
            steps or [2, 4, 8],
            count=count,
            fine_steps=fine_steps,
            seed=seed,
            weights=check_weights(weights),
            retention=parse_retention(retention),
            device=resolve_device(device),
            stage=stage,
        )
    write_grids(out, fits, notes)
    written = [out, *write_picture(picture, lambda: fitted_grids(fits))]
    if as_json:
        content = {"file": str(out), "picture": str(picture) if picture in written else None, "fitted_on": notes}
        print(json.dumps(nan_to_none({**content, "grids": [fit.to_dict() for fit in fits]}), indent=2))
        return
    _print_grids(fits)
    print_written(written)


def _print_grids(fits: "Sequence[Fit]") -> None:
    """Print the distances and times of fitted grids."""
    from gftkit.recording.html import format_number

    rows = [
        (
            str(fit.steps),
            *(format_number(each.value, each.stderr) for each in (fit.uniform, fit.fitted, fit.gain)),
            fit.kept,
            " ".join(f"{t:.3g}" for t in fit.times),
        )
        for fit in fits
    ]
    table(["steps", "uniform", "fitted", "gain", "kept", "times"], rows)
    print("Distances are root mean squares over the whole event, scaled as in training.")


def geometry(
    runs: Annotated[list[Path], typer.Argument(metavar="RUN...", help="Folders of finished runs.")],
    out: Annotated[Path, typer.Option(metavar="FOLDER", help="Folder for geometry.json and geometry.png.")],
    count: Count = 256,
    tolerance: Annotated[
        float, typer.Option(help="Relative error at t = 1 that solvers are to reach, a share of the samples' spread.")
    ] = 0.05,
    fine_steps: Fine = 100,
    seed: Seed = 0,
    weights: WeightsName = "ema",
    retention: Retention = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite files in --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure the geometry of runs' flows side by side: length, straightness, energy, acceleration, evaluations.

    Example: gft geometry runs/plain runs/gft --out geometry
    """
    from gftkit.api import Run
    from gftkit.geometry.motion import motion, motion_table
    from gftkit.geometry.pictures import motions
    from gftkit.geometry.tracing import flow_of
    from gftkit.kernel.errors import RunError
    from gftkit.runtime.environment import resolve_device
    from gftkit.storage.documents import nan_to_none, write_json

    files = out / "geometry.json", out / "geometry.png"
    for path in files:
        check_absent(path, "--out", force)
    if out.exists() and not out.is_dir():
        raise RunError(f"{out} is a file. Choose a folder for --out.")
    names = [folder.resolve().name for folder in runs]
    names = [str(folder) if names.count(name) > 1 else name for folder, name in zip(runs, names, strict=True)]
    named, place, blended = check_weights(weights), resolve_device(device), parse_retention(retention)
    flows = {
        name: flow_of(Run.open(folder), 0, count, seed=seed, weights=named, retention=blended, device=place)
        for name, folder in zip(names, runs, strict=True)
    }
    measured = {}
    with show_stages() as stage:
        for name, flow in flows.items():

            def stage_of_run(text: str, name: str = name) -> None:
                stage(f"{name}: {text}")

            measured[name] = motion(flow, tolerance, fine_steps, seed, stage_of_run)
    notes: dict[str, Any] = {"count": count, "fine_steps": fine_steps, "tolerance": tolerance, "seed": seed}
    notes["weights"] = weights
    if retention is not None:
        notes["retention"] = blended
    content = {**notes, "runs": {name: each.to_dict() for name, each in measured.items()}}
    write_json(files[0], content)
    written = [files[0], *write_picture(files[1], lambda: motions(measured, tolerance))]
    if as_json:
        print(json.dumps(nan_to_none(content), indent=2))
        return
    table(["measure", *measured], motion_table(list(measured.values())))
    print(f"{count} trajectories, scaled as in training; evaluations for a relative error of {tolerance:g} at t = 1.")
    print_written(written)


def write_picture(path: Path, draw: Callable[[], bytes]) -> list[Path]:
    """Write a picture and return its path; only warn where it can't be drawn, since the numbers are what counts."""
    from gftkit.recording.pictures import write_png
    from gftkit.runtime.extras import missing

    if sentence := missing("report"):
        warn(f"{path} is left out: {sentence}")
        return []
    write_png(path, draw())
    return [path]


def print_written(paths: list[Path]) -> None:
    """Print the names of the files that were written."""
    print(f"Written: {', '.join(map(str, paths))}")


@contextmanager
def show_stages() -> Iterator[Callable[[str], None]]:
    """A spinner that names the stage of a measurement; on a terminal only."""
    from rich.progress import Progress, SpinnerColumn, TextColumn, TimeElapsedColumn

    console = Console(stderr=True)
    columns = SpinnerColumn(), TextColumn("{task.description}"), TimeElapsedColumn()
    with Progress(*columns, console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("starting", total=None)
        yield lambda text: progress.update(task, description=text)
