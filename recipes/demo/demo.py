"""Pretrain on one collection of handwritten digits, adapt to another, plainly and by Gradual Fine-Tuning."""

from collections.abc import Callable
from pathlib import Path

from rich.console import Console
from rich.table import Table

import gftkit
from gftkit.api import Run
from gftkit.runs.folder import is_run
from gftkit.study.comparison import compare_runs, summary_table

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "runs" / "demo"


def main() -> None:
    """Train the four models, or continue where they are unfinished, and write the comparison."""
    console = Console()

    def train(how: Callable[..., Run], name: str) -> Run:
        config = HERE / f"{name}.yaml"
        console.print(f"[bold]{name}[/bold]: {config.read_text().splitlines()[0].removeprefix('# ')}")
        return how(config, OUT / name, resume=is_run(OUT / name), quiet=False)

    train(gftkit.pretrain, "pretrained")
    runs = {name: train(gftkit.finetune, name) for name in ("plain", "exponential", "gradual")}
    summary = compare_runs(runs, OUT, "frechet", "Gradual Fine-Tuning from MNIST to the UCI digits")
    head, *rows = summary_table(summary)
    table = Table(*head)
    for row in rows:
        table.add_row(*row)
    console.print(table)
    console.print(f"Open {OUT / 'report.html'}")


if __name__ == "__main__":
    main()
