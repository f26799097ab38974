"""Run a study: its pretrainings, then its cells, several at once; finished runs are kept."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import nullcontext
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gftkit.api import Run
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, GftkitError, RunError
from gftkit.kernel.options import plain
from gftkit.kernel.registry import Registry
from gftkit.networks.state import shortened
from gftkit.runs.folder import is_run
from gftkit.runtime.progress import StudyProgress
from gftkit.storage.files import lock_folder
from gftkit.study.plan import Cell, Plan
from gftkit.study.reporting import write_results
from gftkit.study.rows import Row, blend_rows, rows_of, threshold
from gftkit.study.worker import Job
from gftkit.study.workers import run_all
from gftkit.training.train import changes, train

LOGS = "logs"
"""Folder of the output of the runs."""


class StudyError(GftkitError):
    """Runs of a study failed, or none is finished; those that are finished are kept."""

    exit_code = 1


@dataclass(frozen=True)
class Outcome:
    """The results of a study so far.

    Attributes:
        rows: of every finished cell.
        failed: the errors of those that failed.
    """

    rows: dict[Cell, list[Row]]
    failed: dict[Cell, str]


def finished(plan: Plan, registry: Registry) -> dict[Cell, list[Row]]:
    """The rows of the cells that are finished.

    Raises:
        RunError: for runs in the study's folders with another configuration, and damaged files.
    """
    others = [
        f"{place}: {', '.join(changed)}"
        for place, config in [
            *{start.folder: (start.folder, start.config) for start in plan.starts.values() if start.made}.values(),
            *((plan.folder(cell), plan.config(cell)) for cell in plan.cells),
        ]
        if is_run(place) and (changed := changes(place, config, registry))
    ]
    if others:
        raise RunError(
            f"{plan.out} contains runs with other settings than the study's file has now. You can't change settings "
            f"that its runs used; these differ in{shortened(others)}\nChoose another --out, or delete those runs."
        )
    begun = [cell for cell in plan.cells if is_run(plan.folder(cell))]
    runs = {cell: run for cell in begun if (run := Run.open(plan.folder(cell), registry)).finished}
    rows = _rows(plan, runs)
    for cell in plan.cells:
        measured = plan.trained(cell)
        if measured != cell and measured in runs and (values := _blend(plan, cell, runs[measured])):
            rows[cell] = values
    return {cell: rows[cell] for cell in plan.cells if cell in rows}


def _blend(plan: Plan, cell: Cell, run: Run) -> list[Row]:
    """The rows of a run at a retention; none where it isn't measured yet."""
    retention = plan.methods[cell.method].retention
    return [] if retention is None else blend_rows(cell, run, retention, plan.folder(cell))


def _rows(plan: Plan, runs: Mapping[Cell, Run]) -> dict[Cell, list[Row]]:
    """The rows of finished runs; with them must be the baseline's, which set the thresholds."""
    metric, baseline = plan.study.metric, plan.study.baseline
    levels = {cell: threshold(run, metric) for cell, run in runs.items() if cell.method == baseline}
    return {cell: rows_of(cell, run, metric, levels.get(cell.beside(baseline))) for cell, run in runs.items()}


def run_study(
    plan: Plan,
    rows: dict[Cell, list[Row]],
    cells: Sequence[Cell],
    registry: Registry,
    *,
    workers: int = 1,
    device: str = "auto",
    progress: StudyProgress | None = None,
) -> Outcome:
    """Pretrain where the study says so, then run cells; results.json is written whole after each.

    Args:
        plan: the study.
        rows: of the cells that are finished; see ``finished``.
        cells: those to run; finished ones are skipped.
        registry: components, where the cells run in this process.
        workers: processes at once; 1 is this process.
        device: "auto", "cpu" or "cuda".
        progress: the bar, or None.

    Raises:
        GftkitError: for a pretraining that fails, and a method that can't be built, before any cell runs.
    """
    rows = dict(rows)
    failed: dict[Cell, str] = {}
    with lock_folder(plan.out):  # two studies in one folder would train the same cells
        _pretrain(plan, cells, registry, device, progress)
        waiting = [cell for cell in cells if cell not in rows]
        trained = [cell for cell in waiting if plan.trained(cell) == cell]
        # In this process, at once: an error in a method would otherwise come up hours later, in a worker's log.
        _build_one_of_each(plan, trained, registry)
        logs = plan.out / LOGS
        logs.mkdir(exist_ok=True)
        with progress or nullcontext():
            for part in (trained, [cell for cell in waiting if cell not in trained]):
                # The second part measures runs of the first, as far as these are finished.
                ready = [cell for cell in part if plan.trained(cell) == cell or plan.trained(cell) in rows]
                for cell, error in _run(plan, ready, registry, workers, device, logs):
                    if error:
                        failed[cell] = error
                    else:
                        rows |= _rows_after(plan, cell, rows, registry)
                        write_results(plan, rows)
                    if progress is not None:
                        progress.ended(cell.name, error)
    return Outcome(rows, failed)


def _pretrain(
    plan: Plan, cells: Sequence[Cell], registry: Registry, device: str, progress: StudyProgress | None
) -> None:
    """Pretrain the flows that cells start from, where the study says so and they aren't finished."""
    starts = {start.folder: start for cell in cells if (start := plan.starts[cell.coupling, cell.seed]).made}
    for folder, start in starts.items():
        if is_run(folder) and Run.open(folder, registry).finished:
            continue
        if progress is not None:
            progress.say(f"Pretraining in {folder}.")
        train(
            "pretrain",
            start.config.to_dict(),
            folder,
            registry,
            device=device,
            resume=is_run(folder),
            quiet=progress is None or progress.quiet,
        )


def _rows_after(plan: Plan, cell: Cell, rows: Mapping[Cell, Any], registry: Registry) -> dict[Cell, list[Row]]:
    """The rows that are new or change when a cell has ended."""
    trained = plan.trained(cell)
    if trained != cell:
        return {cell: _blend(plan, cell, Run.open(plan.folder(trained), registry))}
    return _rows(plan, _paired(plan, cell, rows, registry))


def _paired(plan: Plan, cell: Cell, rows: Mapping[Cell, Any], registry: Registry) -> dict[Cell, Run]:
    """A finished run and the baseline's beside it; of a run of the baseline, all runs whose threshold it sets."""
    baseline = cell.beside(plan.study.baseline)
    others = [each for each in rows if each.beside(baseline.method) == baseline] if cell == baseline else [baseline]
    there = [cell, *(each for each in others if each in rows and plan.trained(each) == each and each != cell)]
    return {each: Run.open(plan.folder(each), registry) for each in there}


def _run(
    plan: Plan, cells: Sequence[Cell], registry: Registry, workers: int, device: str, logs: Path
) -> Iterator[tuple[Cell, str]]:
    """Run cells; yields each when it has ended, with its error, or ""."""
    named = {str(plan.folder(cell)): cell for cell in cells}
    jobs = [_job(plan, cell, device) for cell in cells]
    if workers == 1:
        ends: Iterable[tuple[Job, str]] = ((job, job.run(logs / "worker-0.txt", registry)) for job in jobs)
    else:
        ends = run_all(jobs, workers, logs, device)
    for job, error in ends:
        yield named[job.out], error


def _job(plan: Plan, cell: Cell, device: str) -> Job:
    """What a cell asks for: a training, or the measurements of another cell's run."""
    method, trained, out = plan.methods[cell.method], plan.trained(cell), str(plan.folder(cell))
    if trained == cell:
        return Job(method.kind, plan.config(cell).to_dict(), out, device)
    wanted = {"run": str(plan.folder(trained)), "retention": plain(method.retention)}
    return Job("blend", wanted, out, device)


def _build_one_of_each(plan: Plan, cells: Sequence[Cell], registry: Registry) -> None:
    """Build everything that the smallest cell of each method and coupling names, and throw it away."""
    smallest: dict[tuple[str, str], Cell] = {}
    for cell in sorted(cells, key=lambda cell: cell.size):
        smallest.setdefault((cell.method, cell.coupling), cell)
    for cell in smallest.values():
        try:
            with torch.random.fork_rng(devices=[]):
                build(plan.config(cell), registry)
        except (ConfigError, RunError) as error:
            raise type(error)(f"method '{cell.method}': {error}") from error
