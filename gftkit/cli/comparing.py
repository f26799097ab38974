"""``gft compare``."""

import json
import os
import signal
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gftkit.cli.options import Device, Json
from gftkit.cli.output import table, warn

if TYPE_CHECKING:
    from gftkit.kernel.registry import Registry
    from gftkit.study.plan import Cell, Plan
    from gftkit.study.rows import Row
    from gftkit.study.running import Outcome


def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file that describes the study.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study.  (default: runs/ and the name of STUDY)")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Run only the cells METHOD/COUPLING/SIZE/SEED that match.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at once.  (default: one for each GPU, or processor core)")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing: report finished cells.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the cells, run nothing.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare methods over data sizes and seeds: paired differences with intervals, pictures, and a report.

    Finished cells are kept and unfinished ones are continued: run the same command again to continue a study.

    Example: gft compare recipes/studies/gaussians-to-moons.yaml --workers 2 --out runs/moons
    """
    from gftkit.kernel.errors import ConfigError
    from gftkit.kernel.loading import load
    from gftkit.runtime.environment import resolve_device
    from gftkit.runtime.extras import missing
    from gftkit.study.plan import plan
    from gftkit.study.running import Outcome, finished
    from gftkit.study.workers import default_workers

    if report_only and dry_run:
        raise ConfigError("--report-only and --dry-run exclude each other. Give one of them.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("a study starts its own processes (--workers). Start it without torchrun or accelerate.")
    resolve_device(device)
    registry = load()
    planned = plan(study, out or Path("runs") / study.stem, registry)
    rows = finished(planned, registry)
    cells = planned.matching_cells(only)
    count = workers or default_workers()
    if dry_run:
        _list(planned, rows, cells, workers=count, registry=registry, device=device, as_json=as_json)
        return
    if sentence := missing("report"):
        warn(f"report.html and the pictures are left out: {sentence}")
    if report_only:
        _report(planned, Outcome(rows, {}), as_json)
    else:
        outcome = _run(planned, rows, cells, workers=count, registry=registry, device=device, quiet=as_json)
        _report(planned, outcome, as_json)


def _run(
    planned: "Plan",
    rows: "dict[Cell, list[Row]]",
    cells: "Sequence[Cell]",
    *,
    workers: int,
    registry: "Registry",
    device: str,
    quiet: bool,
) -> "Outcome":
    """Run the cells that aren't finished."""
    from gftkit.runtime.progress import StudyProgress
    from gftkit.study.dry_run import try_out
    from gftkit.study.running import Outcome, run_study

    if all(cell in rows for cell in cells):
        return Outcome(rows, {})
    progress = StudyProgress(len(cells), sum(cell in rows for cell in cells), quiet=quiet)
    for warning in planned.warnings:
        progress.warn(warning)
    try_out(planned, registry, device)
    # Both end the study and its processes in order: schedulers send SIGTERM, and nohup hides SIGINT.
    for ending in (signal.SIGINT, signal.SIGTERM):
        signal.signal(ending, signal.default_int_handler)
    try:
        return run_study(planned, rows, cells, registry, workers=workers, device=device, progress=progress)
    except KeyboardInterrupt:
        print(f"Interrupted. Run the same command again to continue the study in {planned.out}.", file=sys.stderr)
        raise typer.Exit(130) from None


def _report(planned: "Plan", outcome: "Outcome", as_json: bool) -> None:
    """Write the report of the finished runs, and print the tables of the judged metric."""
    from gftkit.networks.state import shortened
    from gftkit.storage.documents import nan_to_none
    from gftkit.study.reporting import result_page, study_summary, write_tables
    from gftkit.study.running import StudyError

    if not outcome.rows and not outcome.failed:
        raise StudyError(
            f"{planned.out}: no cell is finished, so there is nothing to report. Run without --report-only."
        )
    write_tables(planned, outcome.rows, outcome.failed)
    if as_json:
        print(json.dumps(nan_to_none(study_summary(planned, outcome.rows, outcome.failed)), indent=2))
    else:
        _print_tables(planned, outcome.rows)
        print(f"{len(outcome.rows)} of {len(planned.cells)} runs: open {result_page(planned)}")
    if outcome.failed:
        lines = [f"{cell.name}: {message}" for cell, message in outcome.failed.items()]
        raise StudyError(
            f"{len(lines)} of {len(planned.cells)} runs failed:{shortened(lines)}\nThe others are in "
            f"{result_page(planned)}; run the same command again to retry these."
        )


def _print_tables(planned: "Plan", rows: "Mapping[Cell, Sequence[Row]]") -> None:
    from gftkit.study.statistics import differences, spreads
    from gftkit.study.tables import compared, means

    metric, baseline = planned.study.metric, planned.study.baseline
    judged = [row for of_cell in rows.values() for row in of_cell if row["metric"] == metric]
    for coupling in dict.fromkeys(row["coupling"] for row in judged):
        print(f"{metric}, {coupling}: mean over seeds ± standard deviation (seeds)")
        _print(means(spreads(judged), metric, coupling))
        paired = compared(differences(judged, baseline), metric, coupling, brief=True)
        if len(paired) > 1:
            print(f"minus that of {baseline}, pair by pair, with 95 % intervals")
            _print(paired)


def _print(rows: list[list[str]]) -> None:
    table(rows[0], rows[1:])


def _list(
    planned: "Plan",
    rows: "Mapping[Cell, Sequence[Row]]",
    cells: "Sequence[Cell]",
    *,
    workers: int,
    registry: "Registry",
    device: str,
    as_json: bool,
) -> None:
    """List the cells that would be run, with an estimate of the time."""
    from gftkit.study.dry_run import try_out

    pace = try_out(planned, registry, device)
    done = len(rows)
    waiting = {cell.name: cell for cell in cells if cell not in rows}
    each = {
        name: pace.seconds(planned.config(cell), trained=planned.trained(cell) == cell)
        for name, cell in waiting.items()
    }
    starts = {start.folder: start for start in planned.starts.values() if start.made and not done}
    pretrained = sum(pace.seconds(start.config) for start in starts.values())
    seconds = pretrained + sum(each.values()) / min(workers, max(1, len(waiting)))
    if as_json:
        listed = {"cells": len(planned.cells), "finished": done, "waiting": [*waiting], "seconds": round(seconds, 1)}
        print(json.dumps(listed))
        return
    lines = [[name, f"{each[name]:.0f} s", planned.methods[cell.method].summary] for name, cell in waiting.items()]
    table(["run", "about", "description"], lines)
    print(
        f"{len(planned.cells)} runs, {done} of them finished. The others take about {seconds / 60:.0f} minutes with "
        f"{workers} at once, if these don't slow each other down. Anchors and monitors take further time."
    )
