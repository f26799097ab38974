"""The answers of a study to questions about a method: better than the baseline, worse, or open."""

import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from gftkit.study.rows import Row
from gftkit.study.statistics import Difference, differences
from gftkit.study.tables import Table

Answer = Literal["better", "worse", "open"]

NEGLIGIBLE = 0.001
"""Difference, as a share of the baseline's value, below which the answer is open, however significant it is."""


@dataclass(frozen=True)
class Question:
    """A question, and the metrics that answer it.

    Attributes:
        text: the question.
        metrics: a pattern of the names of metrics; {judged} is the name of the judged one.
        higher: whether higher values are better.
    """

    text: str
    metrics: str
    higher: bool = False

    def matches(self, metric: str, judged: str) -> bool:
        """True for a metric that answers it."""
        return re.fullmatch(self.metrics.replace("{judged}", re.escape(judged)), metric) is not None


QUESTIONS = (
    Question("Is convergence more stable?", "spearman|instant_variance|instant_variance_whole|largest_setback"),
    Question("Are paths shorter?", "path_length|kinetic_energy|straightness"),
    Question("Is inference cheaper?", r"{judged}_\d+_steps"),
    Question("Is quality kept?", "{judged}|energy|kernel_distance|wasserstein|sliced_wasserstein|frechet"),
    Question("Is diversity kept?", "vendi|recall|coverage", higher=True),
    Question("Is training faster to a threshold?", "steps_to_threshold|seconds_to_threshold"),
)


def answer(of: Difference, *, higher: bool) -> Answer:
    """The answer of one paired difference: open where it isn't significant, by its corrected p-value, or below 0.1 %.

    Example:
        >>> from gftkit.study.statistics import interval
        >>> over = interval([-2.0, -2.1, -1.9])
        >>> shorter = Difference("exponential", "independent", 100, "path_length", over, None, p=0.001)
        >>> answer(shorter, higher=False), answer(shorter, higher=True)
        ('better', 'worse')
    """
    if not of.significant:
        return "open"
    if of.relative is not None and abs(of.relative.mean) < NEGLIGIBLE:
        return "open"
    return "better" if (of.over.mean > 0) == higher else "worse"


def answers(rows: Sequence[Row], judged: str, baseline: str) -> list[tuple[str, Table]]:
    """The questions that the rows answer, each with a table of methods by metrics.

    An entry counts the couplings and sizes in which the method is better than the baseline, worse, and open, with
    Holm's correction for their number. Differences of one seed are left out.
    """
    paired = [one for one in differences(rows, baseline) if one.p is not None]
    tables: list[tuple[str, Table]] = []
    for question in QUESTIONS:
        here = [one for one in paired if question.matches(one.metric, judged)]
        metrics, methods = _names(one.metric for one in here), _names(one.method for one in here)
        if here:
            counted = [
                [_count(here, method, metric, higher=question.higher) for metric in metrics] for method in methods
            ]
            lines = [[method, *entries] for method, entries in zip(methods, counted, strict=True)]
            tables.append((question.text, [["better, worse, open", *metrics], *lines]))
    return tables


def _count(paired: Sequence[Difference], method: str, metric: str, *, higher: bool) -> str:
    outcomes = [answer(one, higher=higher) for one in paired if (one.method, one.metric) == (method, metric)]
    kinds: tuple[Answer, ...] = ("better", "worse", "open")
    return ", ".join(str(outcomes.count(kind)) for kind in kinds) if outcomes else "-"


def _names(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))
