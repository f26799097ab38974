"""The output of a study: results.json, table.md, report.html and pictures, from its finished runs."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from gftkit.api import Run
from gftkit.recording import pictures
from gftkit.recording.html import Section, write_report
from gftkit.runtime.extras import missing
from gftkit.storage.documents import write_text
from gftkit.storage.log import curve
from gftkit.study import drawing
from gftkit.study.answers import answers
from gftkit.study.plan import Cell, Plan
from gftkit.study.rows import Row, metrics_of
from gftkit.study.statistics import differences, spreads
from gftkit.study.tables import compared, markdown_table, means

RESULTS, TABLE, REPORT = "results.json", "table.md", "report.html"

HOW_TO_READ = (
    "Metrics are of averaged weights at a run's end, on held-out data where the study has some. Differences are "
    "paired: the same size, coupling and seed, so the same training samples, source samples, batches and times. "
    "Intervals are 95 % intervals of a mean over seeds by Student's t, each for itself: where there is no difference, "
    "one in twenty is expected to exclude 0. One seed gives none. A star marks a difference that is significant at 5 % "
    "with Holm's correction over the couplings and sizes of the method and metric. In brackets: the number of seeds. "
    "Percentages are of the baseline's value, pair by pair."
)


def write_results(plan: Plan, rows: Mapping[Cell, Sequence[Row]]) -> None:
    """Write results.json: the rows of every finished run, one a line, in the order of the cells."""
    lines = ",\n".join(json.dumps(row) for row in flat(plan, rows))
    write_text(plan.out / RESULTS, f"[\n{lines}\n]\n")


def flat(plan: Plan, rows: Mapping[Cell, Sequence[Row]]) -> list[Row]:
    """The rows of all finished runs, in the order of the cells."""
    return [row for cell in plan.cells for row in rows.get(cell, ())]


def write_tables(plan: Plan, rows: Mapping[Cell, Sequence[Row]], failed: Mapping[Cell, str]) -> None:
    """Write results.json, table.md, report.html and, as files of their own, its pictures.

    Where matplotlib or Jinja2 isn't installed, results.json and table.md only.
    """
    write_results(plan, rows)
    sections = result_sections(flat(plan, rows), plan.study.metric, plan.study.baseline)
    incomplete = _missing(plan, rows, failed)
    lines = [f"# {plan.title}", _lead(plan, rows), HOW_TO_READ, *map(in_markdown, [*sections, *incomplete])]
    write_text(plan.out / TABLE, "\n\n".join(lines) + "\n")
    if missing("report"):
        return
    methods = Section(
        "Methods", table=[["method", "description"], *([name, one.summary] for name, one in plan.methods.items())]
    )
    code = Section("The study", code=plan.file.read_text(encoding="utf-8"))
    drawn = _pictures(plan, rows)
    for name, part in drawn.items():
        pictures.write_png(plan.out / f"{name}.png", part.picture)
    parts = [*drawn.values(), replace(methods, text=HOW_TO_READ), *sections, *incomplete, code]
    write_report(plan.out / REPORT, plan.title, _lead(plan, rows), parts)


def result_page(plan: Plan) -> Path:
    """The file to read: report.html, or table.md where no report can be written."""
    return plan.out / (TABLE if missing("report") else REPORT)


def in_markdown(part: Section) -> str:
    """A section's title, text and table in Markdown."""
    table = markdown_table([list(row) for row in part.table]) if part.table else ""
    return "\n\n".join(filter(None, [f"## {part.title}", part.text, table]))


def _lead(plan: Plan, rows: Mapping[Cell, Sequence[Row]]) -> str:
    target, starts = plan.study.base["data"], plan.starts.values()
    name = target if isinstance(target, str) else target.get("name")
    origin = ", ".join(dict.fromkeys(str(start.config.data["name"]) for start in starts))
    return f"From {origin} to {name}: {len(rows)} of {len(plan.cells)} runs. Judged by {plan.study.metric}."


ANSWERS = (
    "Here, and under the questions that follow: the number of couplings and sizes in which a method is better than "
    "{baseline}, worse, and open: not significant at 5 %, with Holm's correction for the number of couplings and sizes "
    "that an entry counts. Differences below 0.1 % count as open. With few seeds, differences are seldom significant. "
    "Entries aren't corrected for each other: of twenty without a difference, one is expected to count one. A method "
    "that ends its runs early has shorter curves, which look more stable for that alone."
)


def result_sections(rows: Sequence[Row], judged: str, baseline: str) -> list[Section]:
    """The sections of the results: answers to questions, then means and paired differences, metric by metric."""
    sections = [Section(text, table=table) for text, table in answers(rows, judged, baseline)]
    if sections:
        sections[0] = replace(sections[0], text=ANSWERS.format(baseline=baseline))
    spread, paired = spreads(rows), differences(rows, baseline)
    for metric in metrics_of(rows, judged) if rows else []:
        for coupling in dict.fromkeys(row["coupling"] for row in rows):
            table = means(spread, metric, coupling)
            if len(table) > 1:
                text = "Mean over seeds ± standard deviation between seeds."
                sections.append(Section(f"{metric}, {coupling}", text, table))
            table = compared(paired, metric, coupling)
            if len(table) > 1:
                title = f"{metric} minus that of {baseline}, {coupling}"
                sections.append(Section(title, "Paired differences with 95 % intervals.", table))
    return sections


def _pictures(plan: Plan, rows: Mapping[Cell, Sequence[Row]]) -> dict[str, Section]:
    """The pictures by the names of their files."""
    metric, results = plan.study.metric, flat(plan, rows)
    spread, paired = spreads(results), differences(results, plan.study.baseline)
    sections = {}
    if any(one.metric == metric for one in spread):
        caption = (
            "Means over seeds with 95 % intervals, averaged weights. Methods are drawn slightly beside each other."
        )
        sections["sizes"] = Section(metric, picture=drawing.against_size(spread, metric), caption=caption)
    if any(one.metric == metric for one in paired):
        caption = f"Paired differences to {plan.study.baseline} with 95 % intervals. Left of the line is better."
        picture = drawing.forest(paired, metric, plan.study.baseline)
        sections["differences"] = Section(f"{metric} compared", picture=picture, caption=caption)
    return sections | _curves(plan, rows)


def _curves(plan: Plan, rows: Mapping[Cell, Sequence[Row]]) -> dict[str, Section]:
    """The curves of every method at the coupling, size and seed that most of them share, the largest size first."""
    if not rows:
        return {}
    places = [(cell.coupling, cell.size, cell.seed) for cell in plan.cells if cell in rows]
    place = max(dict.fromkeys(places), key=lambda of: (places.count(of), of[1]))
    here = [cell for cell in plan.cells if (cell.coupling, cell.size, cell.seed) == place]
    cells = [cell for cell in here if cell in rows and plan.trained(cell) == cell]
    histories = {cell.method: Run.open(plan.folder(cell)).history() for cell in cells}
    named = {name: curve(lines, plan.study.metric, "evaluation", "raw") for name, lines in histories.items()}
    cooling = {name: curve(lines, "temperature", "train") for name, lines in histories.items()}
    positive = all(value > 0 for _, values in named.values() for value in values)
    coupling, size, seed = place
    caption = f"Raw weights, coupling {coupling}, {size} samples, seed {seed}. Below, the temperature."
    picture = pictures.curve_picture(named, plan.study.metric, cooling, logarithmic=positive)
    return {"curves": Section(f"{plan.study.metric} along one run of each method", picture=picture, caption=caption)}


def _missing(plan: Plan, rows: Mapping[Cell, Sequence[Row]], failed: Mapping[Cell, str]) -> list[Section]:
    """The runs that failed, and how many aren't finished."""
    sections = []
    if failed:
        table = [["run", "error"], *([cell.name, message] for cell, message in failed.items())]
        sections.append(Section("Failed", table=table))
    left = len(plan.cells) - len(rows) - len(failed)
    if left:
        sections.append(Section("Unfinished", f"{left} of {len(plan.cells)} runs aren't finished."))
    return sections


def study_summary(plan: Plan, rows: Mapping[Cell, Sequence[Row]], failed: Mapping[Cell, str]) -> dict[str, Any]:
    """The output of ``gft compare --json``: counts, and means and differences of the judged metric."""
    results, metric = flat(plan, rows), plan.study.metric

    def plain(one: Any) -> dict[str, Any]:
        values = {key: value for key, value in vars(one).items() if key not in ("over", "relative")}
        relative = getattr(one, "relative", None)
        return {**values, **vars(one.over), **({"relative": vars(relative)} if relative is not None else {})}

    return {
        "cells": len(plan.cells),
        "finished": len(rows),
        "failed": {cell.name: message for cell, message in failed.items()},
        "metric": metric,
        "baseline": plan.study.baseline,
        "means": [plain(one) for one in spreads(results) if one.metric == metric],
        "differences": [plain(one) for one in differences(results, plan.study.baseline) if one.metric == metric],
        "report": str(result_page(plan)),
    }
