"""Quality against the number of network evaluations: the demo's models, reflow, and a flow-map student.

Needs the runs of `make demo`; trains runs/fewstep/reflow and runs/fewstep/student where they are missing, then writes
curve.json and curve.png there.
"""

import argparse
import statistics
from pathlib import Path

from matplotlib.figure import Figure
from rich.console import Console
from rich.table import Table

import gftkit
from gftkit.api import Run
from gftkit.recording.pictures import figure_png, write_png
from gftkit.runs.folder import is_run
from gftkit.storage.documents import write_json

ROOT = Path(__file__).parent.parent
RUNS = ROOT.parent / "runs"
EVALUATIONS = (1, 2, 4, 8, 16, 32)
FRECHET = "{name: frechet, feature: {name: digits-classifier}, steps: %d}"
MEASURED = [
    "evaluate.data={name: digits, split: test}",
    "evaluate.count=1000",
    "evaluate.metrics=[" + ", ".join(FRECHET % steps for steps in EVALUATIONS) + "]",
]
"""Against the 599 images that no run was trained on. One Euler step, and one jump, is one evaluation."""


def train_models(demo: Path, out: Path) -> dict[str, Run]:
    """The five models; those that are missing are trained."""
    runs = {name: Run.open(demo / name) for name in ("pretrained", "plain", "exponential")}
    teacher, pairs = runs["exponential"].folder, out / "pairs.safetensors"
    settings = [f"pretrained={teacher}", f"data.run={teacher}", f"data.file={pairs}"]
    for name, train, config, overrides in (
        ("reflow", gftkit.finetune, "reflow/reflow.yaml", settings),
        ("student", gftkit.distill, "fewstep/student.yaml", settings[:1]),
    ):
        runs[name] = train(ROOT / config, out / name, overrides=overrides, resume=is_run(out / name), quiet=False)
    return runs


def measure(run: Run, seeds: int) -> list[dict[str, float]]:
    """Distances by number of evaluations: mean over seeds of the samples, standard error, spread between seeds."""
    solver = "flow-map" if run.config.kind == "distill" else "euler"
    by_seed = [run.evaluate([*MEASURED, f"evaluate.solver={{name: {solver}}}"], seed=seed) for seed in range(seeds)]
    rows = []
    for steps in EVALUATIONS:
        values = [each[f"frechet_{steps}_steps"] for each in by_seed]
        errors = [each[f"frechet_{steps}_steps_stderr"] for each in by_seed]
        spread = statistics.stdev(values) if seeds > 1 else float("nan")
        rows.append({"evaluations": steps, "frechet": statistics.mean(values), "seeds": values, "between": spread})
        rows[-1]["stderr"] = statistics.mean(errors)
    return rows


def draw(curves: dict[str, list[dict[str, float]]]) -> bytes:
    """A picture of the curves, as PNG."""
    figure = Figure(figsize=(7.2, 4.2), layout="constrained")
    axis = figure.subplots()
    for name, rows in curves.items():
        values = [[row[key] for row in rows] for key in ("evaluations", "frechet", "stderr")]
        axis.errorbar(values[0], values[1], values[2], marker="o", markersize=4, capsize=3, label=name)
    axis.set_xscale("log", base=2)
    axis.set_yscale("log")
    axis.set_xticks(EVALUATIONS, [str(steps) for steps in EVALUATIONS])
    axis.set_xlabel("network evaluations for a sample")
    axis.set_ylabel("Fréchet distance to held-out digits")
    axis.legend(frameon=False)
    return figure_png(figure)


def main() -> None:
    """Train what is missing, measure every model, and write the curves."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--demo", type=Path, default=RUNS / "demo", help="folder with the runs of `make demo`")
    parser.add_argument("--out", type=Path, default=RUNS / "fewstep", help="folder to write into")
    parser.add_argument("--seeds", type=int, default=3, help="number of seeds of the samples")
    options = parser.parse_args()
    demo, out = options.demo.resolve(), options.out.resolve()
    curves = {name: measure(run, options.seeds) for name, run in train_models(demo, out).items()}
    write_json(out / "curve.json", curves)
    write_png(out / "curve.png", draw(curves))
    table = Table("model", *map(str, EVALUATIONS))
    for name, rows in curves.items():
        table.add_row(name, *(f"{row['frechet']:.1f} ± {row['stderr']:.1f}" for row in rows))
    Console(width=120).print(table)


if __name__ == "__main__":
    main()
