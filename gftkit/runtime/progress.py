"""The progress bar of a run: on stderr, so that stdout stays free for results."""

import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import Self

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


def _bar(console: Console, quiet: bool, *fields: str) -> RichProgress:  # noqa: FBT001
    return RichProgress(
        TextColumn("[bold]{task.description}"),
        BarColumn(bar_width=10),
        MofNCompleteColumn(),
        *(TextColumn(f"{{task.fields[{name}]}}") for name in fields),
        TimeRemainingColumn(compact=True),
        console=console,
        disable=quiet,
    )


class _Console:
    """A console for messages, and a bar that is shown inside its context."""

    _bar: RichProgress

    def __init__(self) -> None:
        self.console = Console(stderr=True)

    def __enter__(self) -> Self:
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def say(self, text: str) -> None:
        """A line that is worth knowing; not where the bar is off."""
        if not self._bar.disable:
            self.console.print(escape(text), highlight=False)

    def warn(self, text: str) -> None:
        """A warning, also where the bar is off."""
        self.console.print(f"[yellow]Warning:[/yellow] {escape(text)}", highlight=False)


class Progress(_Console):
    """A bar with loss, temperature, retention and rate.

    Args:
        total: steps of the run.
        title: what is being done.
        quiet: show nothing but warnings.
    """

    def __init__(self, total: int, title: str, *, quiet: bool) -> None:
        super().__init__()
        self._total, self._title = total, title
        self._bar = _bar(self.console, quiet, "numbers", "rate")
        self._task = self._bar.add_task(title, total=total, numbers="", rate="")

    @contextmanager
    def running(self, first: int) -> Iterator[None]:
        """Show the bar while the run goes, from step ``first``."""
        self._bar.update(self._task, completed=first)
        with self._bar:
            yield

    @contextmanager
    def fitting(self, title: str) -> Iterator[Callable[[int, str], None]]:
        """Show another bar while something is fitted. It is given draws so far, and a text if there is news."""
        bar = _bar(self.console, self._bar.disable, "numbers")
        task = bar.add_task(title, total=None, numbers="")

        def show(draws: int, text: str) -> None:
            bar.update(task, completed=draws, numbers=text or bar.tasks[0].fields["numbers"])

        with bar:
            yield show

    def advance(self) -> None:
        """One step done."""
        self._bar.advance(self._task)

    def show(self, values: Mapping[str, float]) -> None:
        """The numbers of a step."""
        cooling = f" temp {values['temperature']:.3f} retention {values['retention']:.3f}"
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            numbers=f"loss {values['loss']:.3f}" + (cooling if self._title == "finetune" else ""),
            rate=f"{speed:.0f}/s" if speed else "",
        )


class StudyProgress(_Console):
    """A bar of a study's runs, with those that failed and the time left.

    Args:
        total: runs of the study.
        done: those that are finished already.
        quiet: show nothing but warnings.
    """

    def __init__(self, total: int, done: int, *, quiet: bool) -> None:
        super().__init__()
        self.console = Console(file=sys.stderr)  # as it is now: what runs say meanwhile goes elsewhere
        self._bar = _bar(self.console, quiet, "last", "failed")
        self._task = self._bar.add_task("runs", total=total, completed=done, last="", failed="")
        self.quiet, self._failed = quiet, 0

    def ended(self, name: str, error: str) -> None:
        """One run more has ended; ``error`` says what went wrong, or nothing."""
        self._failed += bool(error)
        failed = f"{self._failed} failed" if self._failed else ""
        self._bar.update(self._task, advance=1, last=name, failed=failed)


class SamplingProgress(_Console):
    """A bar with samples per second and drift evaluations, for as long as it is entered.

    Args:
        quiet: show nothing but warnings.
    """

    def __init__(self, *, quiet: bool) -> None:
        super().__init__()
        self._bar = _bar(self.console, quiet or not self.console.is_terminal, "rate", "evaluations")
        self._task = self._bar.add_task("sampling", total=None, rate="", evaluations="")

    def start(self, total: int, done: int) -> None:
        """Set the number of samples in all, and of those that are there."""
        self._bar.update(self._task, total=total, completed=done)

    def advance(self, count: int, evaluations: float) -> None:
        """So many more samples; drift evaluations for each of all so far."""
        self._bar.advance(self._task, count)
        speed = self._bar.tasks[0].speed
        self._bar.update(
            self._task,
            rate=f"{speed:.0f} samples/s" if speed else "",
            evaluations=f"{evaluations:.4g} evaluations each",
        )

    def say(self, text: str) -> None:
        """A line that is worth knowing."""
        self.console.print(escape(text), highlight=False)
