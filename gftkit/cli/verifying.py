"""``gft verify``: the theory, or a run, checked."""

import json
import os
import sys
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gftkit.cli.options import Device


def verify(
    claim: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only claims of this name; wildcards allowed: 'T04*'.")
    ] = None,
    component: Annotated[
        str | None, typer.Option(metavar="KIND:NAME", help="Only claims about this component: solver:heun.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="quick: closed forms, solvers, a short training loop. full: trained networks too.")
    ] = "quick",
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of the random problems.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes.  (default: a core each, at most 8; 1 for a few claims or cuda)"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for stdout.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a self-contained report.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of claims as Markdown; measure nothing.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Check a finished run instead, by what its monitors measured.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files of --json and --html.")] = False,
) -> None:
    """Check the theory against this code: claims and their negative controls.

    A claim measures the very functions that training and sampling call.
    A mutant is a likely slip in their place, such as a wrong sign.
    Exit code 1: a claim fails, or a mutant of it is not rejected.

    Examples: gft verify --claim 'T04*' --html report.html; gft verify --run runs/gft
    """
    from gftkit.kernel.loading import load
    from gftkit.runtime.environment import resolve_device
    from gftkit.runtime.extras import require
    from gftkit.storage.documents import write_json
    from gftkit.verify import runner as verification
    from gftkit.verify.claims import select
    from gftkit.verify.collect import collect

    if profile not in ("quick", "full"):
        from gftkit.kernel.errors import ConfigError

        raise ConfigError(f"--profile: wanted quick or full, got '{profile}'.")
    on_stdout = json_file is not None and str(json_file) == "-"
    if html is not None:
        require("report", f"--html {html}")
    verification.check_targets([None if on_stdout else json_file, html], force)
    if run is not None:
        if claim or component or html or markdown:
            from gftkit.kernel.errors import ConfigError

            raise ConfigError("--run checks a finished run, not claims: it goes with --json only.")
        _verify_run(run, json_file, on_stdout)
        return
    place = resolve_device(device)
    chosen = select(collect(load()), profile, claim, component)  # type: ignore[arg-type]
    if markdown:
        print(verification.markdown(chosen))
        return
    if jobs is None:
        jobs = 1 if len(chosen) < verification.FEW or place != "cpu" else min(os.cpu_count() or 1, 8)
    results = verification.run(chosen, seed, place, Console(stderr=on_stdout), jobs)
    if on_stdout:
        print(verification.as_json(results))
    elif json_file is not None:
        write_json(json_file, [result.to_dict() for result in results])
    if html is not None:
        verification.write_html_report(html, results, seed, place)
    Console(stderr=on_stdout).print(verification.summary(results), markup=False, highlight=False, soft_wrap=True)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _verify_run(folder: Path, json_file: Path | None, on_stdout: bool) -> None:
    from gftkit.api import Run
    from gftkit.storage.documents import write_json
    from gftkit.training.verdict import verify_run

    verdicts = verify_run(Run.open(folder))
    found = [
        {"monitor": name, "followed": verdict.followed, "lines": list(verdict.lines), **verdict.findings}
        for name, verdict in verdicts
    ]
    if on_stdout:
        print(json.dumps(found, indent=2))
    elif json_file is not None:
        write_json(json_file, found)
    told = sys.stderr if on_stdout else sys.stdout
    for name, verdict in verdicts:
        says = "followed the theory" if verdict.followed else "did NOT follow the theory"
        print(f"{folder} {says}, by its monitor '{name}':", file=told)
        for line in verdict.lines:
            print(f"- {line}", file=told)
    if not all(verdict.followed for _, verdict in verdicts):
        raise typer.Exit(1)
