"""The tables of a study: means with spreads, and paired differences with intervals."""

from collections.abc import Iterable, Sequence

from gftkit.recording.html import format_number
from gftkit.study.statistics import Difference, Interval, Spread

Table = list[list[str]]
"""Rows of text, the head first."""


def means(spreads: Sequence[Spread], metric: str, coupling: str) -> Table:
    """Methods by sizes: mean ± standard deviation between seeds, and the number of seeds."""
    here = [one for one in spreads if one.metric == metric and one.coupling == coupling]
    return _table(
        [
            (one.method, one.size, _with(one.over, f" ± {format_number(one.over.spread)}") + f" ({one.over.count})")
            for one in here
        ]
    )


def compared(differences: Sequence[Difference], metric: str, coupling: str, *, brief: bool = False) -> Table:
    """Methods by sizes: the paired difference with its 95 % interval, the same in percent, and the number of pairs.

    A star marks those that are significant with Holm's correction.

    In brief, for a terminal: in percent alone, where percentages make sense.
    """
    here = [one for one in differences if one.metric == metric and one.coupling == coupling]
    return _table([(one.method, one.size, _difference(one, brief=brief)) for one in here])


def _difference(one: Difference, *, brief: bool) -> str:
    star = "*" if one.significant else ""
    if one.relative is None:
        return f"{_bounded(one.over)}{star} ({one.over.count})"
    relative = f"{_bounded(one.relative, 100)} %{star}"
    return relative if brief else f"{_bounded(one.over)}; {relative} ({one.over.count})"


def _bounded(over: Interval, factor: float = 1.0) -> str:
    """Mean [low, high]; the mean alone where there is no interval."""
    bounds = "" if over.low is None or over.high is None else f" [{factor * over.low:.3g}, {factor * over.high:.3g}]"
    return f"{factor * over.mean:+.3g}{bounds}"


def _with(over: Interval, spread: str) -> str:
    return format_number(over.mean) + ("" if over.spread is None else spread)


def _table(cells: Iterable[tuple[str, int, str]]) -> Table:
    """A table of cells by method and size, with a dash for those that are missing."""
    texts = {(method, size): text for method, size, text in cells}
    methods, sizes = dict.fromkeys(method for method, _ in texts), sorted({size for _, size in texts})
    rows = [[method, *(texts.get((method, size), "-") for size in sizes)] for method in methods]
    return [["method", *map(str, sizes)], *rows]


def markdown_table(table: Table) -> str:
    """A table in Markdown."""
    head, *rows = [[cell.replace("|", "\\|") for cell in row] for row in table]
    lines = [head, ["---"] * len(head), *rows]
    return "\n".join(f"| {' | '.join(line)} |" for line in lines)
