"""Samples of the demo's fine-tune between its drift and the pretrained one, as a picture and as distances."""

from pathlib import Path

from rich.console import Console
from rich.table import Table

from gftkit import Run
from gftkit.recording.pictures import sample_picture, write_png

HERE = Path(__file__).parent
OUT = HERE.parent.parent / "runs" / "demo"
TEMPERATURES = (0.0, 0.3, 1.0, 3.0)
METRICS = "evaluate.metrics=[{name: frechet, feature: {name: digits-classifier}}]"
DATA = {
    "new": "evaluate.data={name: digits, split: test}",
    "old": "evaluate.data={name: mnist5k, size: 8, count: 1000}",
}


def main() -> None:
    run = Run.open(OUT / "gft")
    panels = {f"temperature {beta:g}": run.samples(36, 1, temperature=beta)[0] for beta in TEMPERATURES}
    write_png(OUT / "blend.png", sample_picture(panels, run.weights()[1].range))
    shown = Table("temperature", *(f"Frechet distance to the {name} data" for name in DATA))
    for beta in TEMPERATURES:
        found = [run.evaluate([METRICS, data], temperature=beta) for data in DATA.values()]
        cells = (f"{each['frechet']:.1f} ± {each['frechet_stderr']:.1f}" for each in found)
        shown.add_row(f"{beta:g}", *cells)
    Console().print(shown)


if __name__ == "__main__":
    main()
