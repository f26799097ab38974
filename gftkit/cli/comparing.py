"""``gft compare``."""

import json
import os
import signal
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from gftkit.cli.options import Device, Json
from gftkit.cli.output import table

if TYPE_CHECKING:
    from gftkit.kernel.registry import Registry
    from gftkit.study.plan import Plan


def compare(
    study: Annotated[Path, typer.Argument(metavar="STUDY", help="YAML file that describes the study.")],
    out: Annotated[
        Path | None, typer.Option(help="Folder of the study.  (default: runs/ and the name of STUDY)")
    ] = None,
    only: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Run the cells METHOD/COUPLING/SIZE/SEED that match only.")
    ] = None,
    workers: Annotated[
        int | None, typer.Option(min=1, help="Cells at once.  (default: one for each GPU, or processor core)")
    ] = None,
    report_only: Annotated[bool, typer.Option("--report-only", help="Run nothing: report what is finished.")] = False,
    dry_run: Annotated[bool, typer.Option("--dry-run", help="Check everything, list the cells, run nothing.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Compare methods over data sizes and seeds: paired differences with intervals, pictures, and a report.

    Finished cells are kept, and unfinished ones gone on with: the same command again goes on with a study.

    Example: gft compare recipes/studies/gaussians-to-moons.yaml --workers 2 --out runs/moons
    """
    from gftkit.kernel.errors import ConfigError, StudyError
    from gftkit.kernel.loading import load
    from gftkit.networks.state import shortened
    from gftkit.runtime.environment import resolve_device
    from gftkit.runtime.extras import missing
    from gftkit.runtime.progress import StudyProgress
    from gftkit.storage.documents import nan_to_none
    from gftkit.study.plan import plan
    from gftkit.study.reporting import page, summary, write_tables
    from gftkit.study.running import Outcome, finished, run_study
    from gftkit.study.statistics import differences, spreads
    from gftkit.study.tables import compared, means
    from gftkit.study.workers import default_workers

    if report_only and dry_run:
        raise ConfigError("--report-only and --dry-run are two things. Give one of them.")
    if os.environ.get("WORLD_SIZE", "1") != "1":
        raise ConfigError("a study starts processes of its own (--workers). Start it without torchrun or accelerate.")
    resolve_device(device)
    registry = load()
    made = plan(study, out or Path("runs") / study.stem, registry)
    rows = finished(made, registry)
    chosen = made.chosen(only)
    count = workers or default_workers()
    if dry_run:
        _list(made, len(rows), [cell.name for cell in chosen if cell not in rows], count, registry, device, as_json)
        return
    progress = StudyProgress(len(chosen), sum(cell in rows for cell in chosen), as_json)
    if sentence := missing("report"):
        progress.warn(f"report.html and the pictures are left out: {sentence}")
    outcome = Outcome(rows, {})
    if not report_only and any(cell not in rows for cell in chosen):
        from gftkit.study.dry_run import try_out

        for warning in made.warnings:
            progress.warn(warning)
        try_out(made, registry, device)
        for ending in (signal.SIGINT, signal.SIGTERM):  # a scheduler's way to end a job, and one that nohup hides
            signal.signal(ending, signal.default_int_handler)
        try:
            outcome = run_study(made, rows, chosen, registry, count, device, progress)
        except KeyboardInterrupt:
            print(f"Interrupted: the same command goes on with the study in {made.out}.", file=sys.stderr)
            raise typer.Exit(130) from None
    if not outcome.rows and not outcome.failed:
        raise StudyError(f"{made.out}: no cell is finished, so there is nothing to report. Leave --report-only out.")
    write_tables(made, outcome.rows, outcome.failed)
    if as_json:
        print(json.dumps(nan_to_none(summary(made, outcome.rows, outcome.failed)), indent=2))
    else:
        held = [row for of in outcome.rows.values() for row in of if row["metric"] == made.study.metric]
        for coupling in dict.fromkeys(row["coupling"] for row in held):
            print(f"{made.study.metric}, {coupling}: mean over seeds ± standard deviation (seeds)")
            _print(means(spreads(held), made.study.metric, coupling))
            found = compared(differences(held, made.study.baseline), made.study.metric, coupling, brief=True)
            if len(found) > 1:
                print(f"minus that of {made.study.baseline}, pair by pair, with 95 % intervals")
                _print(found)
        print(f"{len(outcome.rows)} of {len(made.cells)} runs: open {page(made)}")
    if outcome.failed:
        lines = [f"{cell.name}: {message}" for cell, message in outcome.failed.items()]
        raise StudyError(
            f"{len(lines)} of {len(made.cells)} runs failed:{shortened(lines)}\nThe others are in {page(made)}; "
            f"the same command tries these again."
        )


def _print(rows: list[list[str]]) -> None:
    table(rows[0], rows[1:])


def _list(
    made: "Plan", done: int, waiting: list[str], workers: int, registry: "Registry", device: str, as_json: bool
) -> None:
    """What would be run, and about how long that takes."""
    from gftkit.study.dry_run import try_out

    pace = try_out(made, registry, device)
    names = {cell.name: cell for cell in made.cells}
    each = {name: pace.seconds(made.config(names[name])) for name in waiting}
    pretrained = sum(pace.seconds(start.config) for start in made.starts.values() if start.made and not done)
    seconds = pretrained + sum(each.values()) / min(workers, max(1, len(waiting)))
    if as_json:
        print(json.dumps({"cells": len(names), "finished": done, "waiting": waiting, "seconds": round(seconds, 1)}))
        return
    rows = [[name, f"{each[name]:.0f} s", made.methods[names[name].method].summary] for name in waiting]
    table(["run", "about", "what it is"], rows)
    print(
        f"{len(names)} runs, {done} of them finished. The others take about {seconds / 60:.0f} minutes by {workers} at "
        f"once, if these don't slow each other down; anchors and monitors come on top."
    )
