"""``gft verify``: checks of the theory, or of a run."""

import json
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console

from gftkit.cli.options import Device

if TYPE_CHECKING:
    from gftkit.verify.claims import Claim


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
    seed: Annotated[int, typer.Option(min=0, help="Seed of the random problems.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes.  (default: one a core, at most 8; 1 for a few claims or cuda)"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for stdout.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a self-contained report.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of claims as Markdown; measure nothing.")
    ] = False,
    run: Annotated[
        Path | None,
        typer.Option(metavar="RUN", help="Check a finished run instead, by the measurements of its monitors."),
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files of --json and --html.")] = False,
) -> None:
    """Check the theory against this code: claims and their negative controls.

    A claim measures the functions that training and sampling call.
    A mutant replaces one of them by a likely mistake, such as a wrong sign.
    Exit code 1: a claim fails, or one of its mutants is not rejected.

    Examples: gft verify --claim 'T04*' --html report.html; gft verify --run runs/gft
    """
    from gftkit.kernel.errors import ConfigError
    from gftkit.runtime.environment import resolve_device
    from gftkit.runtime.extras import require
    from gftkit.verify import runner

    if profile not in ("quick", "full"):
        raise ConfigError(f"--profile: wanted quick or full, got '{profile}'.")
    on_stdout = json_file is not None and str(json_file) == "-"
    runner.check_targets([None if on_stdout else json_file, html], force=force)
    if html is not None:
        require("report", f"--html {html}")
    if run is None:
        place = resolve_device(device)
        claims = _selected(profile, claim, component)
        if markdown:
            print(runner.markdown(claims))
        else:
            _verify_claims(
                claims, seed=seed, place=place, jobs=jobs, json_file=json_file, html=html, on_stdout=on_stdout
            )
    elif claim or component or html or markdown:
        raise ConfigError("--run checks a finished run, not claims: of the other options it takes --json only.")
    else:
        _verify_run(run, json_file, on_stdout)


def _selected(profile: Any, claim: str | None, component: str | None) -> "list[Claim]":
    """The claims that the options select."""
    from gftkit.kernel.loading import load
    from gftkit.verify.claims import select
    from gftkit.verify.collect import collect

    return select(collect(load()), profile, claim, component)


def _verify_claims(
    claims: "list[Claim]",
    *,
    seed: int,
    place: str,
    jobs: int | None,
    json_file: Path | None,
    html: Path | None,
    on_stdout: bool,
) -> None:
    """Measure claims, write and print the results; exit code 1 where one fails."""
    from gftkit.storage.documents import write_json
    from gftkit.verify import runner

    if jobs is None:
        jobs = 1 if len(claims) < runner.FEW or place != "cpu" else min(os.cpu_count() or 1, 8)
    results = runner.run(claims, seed, place, Console(stderr=on_stdout), jobs)
    if on_stdout:
        print(runner.as_json(results))
    elif json_file is not None:
        write_json(json_file, [result.to_dict() for result in results])
    if html is not None:
        runner.write_html_report(html, results, seed, place)
    Console(stderr=on_stdout).print(runner.summary(results), markup=False, highlight=False, soft_wrap=True)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _verify_run(folder: Path, json_file: Path | None, on_stdout: bool) -> None:
    """Print the verdicts of a run's monitors; exit code 1 where it didn't follow the theory."""
    from gftkit.api import Run
    from gftkit.storage.documents import write_json
    from gftkit.training.verdict import verify_run

    verdicts = verify_run(Run.open(folder))
    findings = [
        {"monitor": name, "followed": verdict.followed, "lines": list(verdict.lines), **verdict.findings}
        for name, verdict in verdicts
    ]
    if on_stdout:
        print(json.dumps(findings, indent=2))
    elif json_file is not None:
        write_json(json_file, findings)
    stream = sys.stderr if on_stdout else sys.stdout
    for name, verdict in verdicts:
        outcome = "followed the theory" if verdict.followed else "did NOT follow the theory"
        print(f"{folder} {outcome}, by its monitor '{name}':", file=stream)
        for line in verdict.lines:
            print(f"- {line}", file=stream)
    if not all(verdict.followed for _, verdict in verdicts):
        raise typer.Exit(1)
