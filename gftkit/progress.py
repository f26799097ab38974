"""The progress bar of a run: on stderr, so that stdout stays free for results."""

from collections.abc import Iterator, Mapping
from contextlib import contextmanager

from rich.console import Console
from rich.markup import escape
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn, TimeRemainingColumn
from rich.progress import Progress as RichProgress


class Progress:
    """A bar with loss, temperature, retention and rate.

    Args:
        total: steps of the run.
        title: what is being done.
        quiet: show nothing but warnings.
    """

    def __init__(self, total: int, title: str, quiet: bool) -> None:
        self.console = Console(stderr=True)
        self._total, self._title = total, title
        self._bar = RichProgress(
            TextColumn("[bold]{task.description}"),
            BarColumn(bar_width=10),
            MofNCompleteColumn(),
            TextColumn("{task.fields[numbers]}"),
            TextColumn("{task.fields[rate]}"),
            TimeRemainingColumn(compact=True),
            console=self.console,
            disable=quiet,
        )
        self._task = self._bar.add_task(title, total=total, numbers="", rate="")

    @contextmanager
    def running(self, first: int) -> Iterator[None]:
        """Show the bar while the run goes, from step ``first``."""
        self._bar.update(self._task, completed=first)
        with self._bar:
            yield

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

    def say(self, text: str) -> None:
        """A line that is worth knowing; not where the bar is off."""
        if not self._bar.disable:
            self.console.print(escape(text), highlight=False)

    def warn(self, text: str) -> None:
        """A warning, also where the bar is off."""
        self.console.print(f"[yellow]Warning:[/yellow] {escape(text)}", highlight=False)
