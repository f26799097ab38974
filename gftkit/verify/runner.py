"""``gft verify``: measure claims one after the other, show them as they come, and report them."""

import functools
import inspect
import json
import multiprocessing
import re
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
import yaml
from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeElapsedColumn
from rich.text import Text

from gftkit.kernel.errors import RunError
from gftkit.kernel.loading import load
from gftkit.recording import pictures
from gftkit.recording.html import Section, write_report
from gftkit.runtime.environment import describe_machine
from gftkit.verify.claims import Claim, Result, check
from gftkit.verify.collect import collect

FEW = 20
"""Fewer claims than these are not worth the start of a second process."""

MEASURED = "measured"
"""The name of the line that is drawn as points, for the subject and for every mutant."""


def run(
    claims: Sequence[Claim],
    seed: int = 0,
    device: str = "cpu",
    console: Console | None = None,
    jobs: int = 1,
) -> list[Result]:
    """Measure claims, and give the results in their order.

    Args:
        claims: what to measure.
        seed: of the random problems.
        device: where to measure.
        console: shows a row of the table as soon as it is known; None shows nothing.
        jobs: processes. More than one needs claims of plugins that are installed, since each process loads its own.
    """
    results: dict[str, Result] = {}
    with _growing_table(claims, console) as show:
        for result in _results(claims, seed, device, jobs):
            results[result.claim.name] = result
            show(result)
    return [results[claim.name] for claim in claims]


def _results(claims: Sequence[Claim], seed: int, device: str, jobs: int) -> Iterator[Result]:
    """Results as they come."""
    if jobs == 1:
        threads = torch.get_num_threads()
        torch.set_num_threads(1)  # small tensors: more threads are slower, most of all beside other work
        try:
            yield from (check(claim, seed, device) for claim in claims)
        finally:
            torch.set_num_threads(threads)
        return
    pool = ProcessPoolExecutor(jobs, multiprocessing.get_context("spawn"), torch.set_num_threads, (1,))
    try:
        longest_first = sorted(claims, key=lambda claim: claim.profile != "full")
        running = {pool.submit(_check_by_name, claim.name, seed, device): claim for claim in longest_first}
        for done in as_completed(running):
            yield Result(running[done], **done.result())
    finally:
        pool.shutdown(cancel_futures=True)


def _check_by_name(name: str, seed: int, device: str) -> dict[str, Any]:
    """A result without its claim, whose functions don't travel: for another process."""
    result = check(_installed_claims()[name], seed, device)
    return {key: value for key, value in vars(result).items() if key != "claim"}


@functools.cache
def _installed_claims() -> dict[str, Claim]:
    return {claim.name: claim for claim in collect(load())}


@contextmanager
def _growing_table(claims: Sequence[Claim], console: Console | None) -> Iterator[Callable[[Result], None]]:
    """A table that grows, above a bar; gives what adds a row."""
    if console is None:
        yield lambda _: None
        return
    widths = _widths(claims)
    console.print(_row(("claim", "measured", "bound", "mutants", "seconds", ""), widths, "bold"), soft_wrap=True)
    bar = Progress(
        BarColumn(20), MofNCompleteColumn(), TextColumn("claims"), TimeElapsedColumn(),
        console=console, transient=True, disable=not console.is_terminal,
    )  # fmt: skip
    with bar:
        task = bar.add_task("", total=len(claims))

        def show(result: Result) -> None:
            style = "" if result.passed else "bold red"
            console.print(_row((*_cells(result), "holds" if result.passed else "FAILS"), widths, style), soft_wrap=True)
            bar.advance(task)

        yield show


def summary(results: Sequence[Result]) -> str:
    """The results in words: one line where everything passed, then a line for each failure."""
    failed = [result for result in results if not result.passed]
    mutants = [mutant for result in results for mutant in result.mutants]
    alarm = sum(result.claim.false_alarm for result in results)
    rate = f"; a true theory fails this with probability {alarm:.0e} at most" if alarm else ""
    lines = [
        f"{len(results) - len(failed)} of {len(results)} claims hold, {sum(m.rejected for m in mutants)} of "
        f"{len(mutants)} mutants are rejected{rate}."
    ]
    for result in failed:
        lines += [f"{result.claim.name}: {reason}" for reason in _reasons(result)]
    return "\n".join(lines)


def as_json(results: Sequence[Result]) -> str:
    """The results as a JSON list."""
    return json.dumps([result.to_dict() for result in results], indent=2, allow_nan=False)


def markdown(claims: Sequence[Claim]) -> str:
    """The claims as a Markdown table: what each states, how it is bounded, and which slips it rejects."""
    rows = ["| claim | statement | bound | mutants | profile |", "|---|---|---|---|---|"]
    for claim in claims:
        bound = f"{claim.bound.kind} {claim.bound.value:.3g}"
        cells = (f"`{claim.name}`", claim.statement, bound, "; ".join(claim.mutants), claim.profile)
        # An inner product <a, b> would be taken for an HTML tag, and vanish.
        escaped = (re.sub(r"\||<(?=[A-Za-z])", r"\\\g<0>", cell).replace("\n", " ") for cell in cells)
        rows.append("| " + " | ".join(escaped) + " |")
    return "\n".join(rows)


def check_targets(targets: Sequence[Path | None], *, force: bool) -> None:
    """Refuse files that exist, before anything is measured.

    Raises:
        RunError: naming the file.
    """
    for target in targets:
        if target is not None and target.is_dir():
            raise RunError(f"{target} is a folder; name a file.")
        if target is not None and target.exists() and not force:
            raise RunError(f"{target} exists. Name another file, or overwrite it with --force.")


def write_html_report(path: Path, results: Sequence[Result], seed: int, device: str) -> None:
    """Write a self-contained report: the table, the pictures, and each claim with its mutants and its code."""
    head = ("claim", "kind", "measured", "bound", "mutants rejected", "seconds", "")
    rows = [(r.claim.name, r.claim.bound.kind, *_cells(r)[1:], "holds" if r.passed else "FAILS") for r in results]
    sections = [Section("Claims", summary(results), table=[head, *rows]), *_families(results)]
    sections += [_section(result) for result in results]
    sections.append(Section("Machine", code=yaml.safe_dump(describe_machine(torch.device(device)), sort_keys=False)))
    lead = (
        f"Seed {seed}, device {device}. A claim holds if the measurement of what is shipped stays within the bound; "
        f"each mutant, a likely slip in its place, must exceed it by a factor of 3 (of 1,000 where the bound is "
        f"round-off)."
    )
    write_report(path, "Is the theory true of this code?", lead, sections)


def _families(results: Sequence[Result]) -> list[Section]:
    """One picture for each family of claims about components, with a line for each component."""
    families: dict[str, dict[str, Result]] = {}
    for result in results:
        if result.claim.component and MEASURED in result.lines:
            name = result.claim.component.split(":", 1)[1]
            families.setdefault(result.claim.name.removesuffix(f"-{name}"), {})[name] = result
    sections = []
    for family, members in families.items():
        first = next(iter(members.values())).claim
        if len(members) > 1 and first.axes is not None:
            lines = {name: result.lines[MEASURED] for name, result in members.items()}
            sections.append(Section(family, picture=pictures.measurement_picture({}, lines, first.axes, first.scales)))
    return sections


def _section(result: Result) -> Section:
    claim = result.claim
    text = [claim.statement, claim.conditions, f"Reference: {claim.reference}.", result.note, result.error]
    rows = [("", "measured", ""), ("as shipped", number(result.measured), "holds" if result.holds else "FAILS")]
    rows += [
        (f"mutant: {mutant.name}", number(mutant.measured), "rejected" if mutant.rejected else "SURVIVES")
        for mutant in result.mutants
    ]
    least = claim.bound.margin * claim.bound.value
    caption, picture = "", b""
    if claim.axes is not None and result.lines:
        wrong = {mutant.name: mutant.lines[MEASURED] for mutant in result.mutants if MEASURED in mutant.lines}
        picture = pictures.measurement_picture(result.lines, wrong, claim.axes, claim.scales)
        caption = "Dots: as shipped. Lines: theory. Dashed: mutants."
    return Section(
        claim.name,
        " ".join(part for part in text if part)
        + f" Bound: {claim.bound.value:.3g} ({claim.bound.kind}); a mutant must reach {least:.3g}.",
        rows,
        picture,
        caption,
        _source(claim.measure),
    )


def _source(measure: Callable[..., Any]) -> str:
    """The code of a measurement, "" where it isn't known."""
    while isinstance(measure, functools.partial):
        measure = measure.func
    try:
        return inspect.getsource(measure)
    except (OSError, TypeError):
        return ""


def number(value: float) -> str:
    """A measurement in three significant digits."""
    return f"{value:.3g}"


def _reasons(result: Result) -> list[str]:
    """The reasons for which a claim failed."""
    if result.error:
        return [f"could not be measured: {result.error}"]
    reasons = []
    if not result.holds:
        reasons.append(
            f"measured {number(result.measured)}, bound {number(result.claim.bound.value)} "
            f"({result.claim.bound.kind}). {result.claim.statement}"
        )
    return reasons + [
        f"mutant '{mutant.name}' survives: it measured {number(mutant.measured)}, wanted at least "
        f"{number(result.claim.bound.margin * result.claim.bound.value)}"
        for mutant in result.mutants
        if not mutant.rejected
    ]


def _cells(result: Result) -> tuple[str, ...]:
    rejected = f"{sum(mutant.rejected for mutant in result.mutants)}/{len(result.mutants)}"
    bound = number(result.claim.bound.value)
    return result.claim.name, number(result.measured), bound, rejected, f"{result.seconds:.2f}"


def _widths(claims: Sequence[Claim]) -> tuple[int, ...]:
    return (max([5, *(len(claim.name) for claim in claims)]), 9, 7, 7, 7, 5)


def _row(cells: Sequence[str], widths: Sequence[int], style: str) -> Text:
    aligned = [cells[0].ljust(widths[0])]
    aligned += [cell.rjust(width) for cell, width in zip(cells[1:], widths[1:], strict=True)]
    return Text(" ".join(aligned), style=style)
