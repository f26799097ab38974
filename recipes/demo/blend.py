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
    """Write blend.png, and print the distances."""
    run = Run.open(OUT / "exponential")
    panels = {
        f"temperature {temperature:g}": run.samples(36, 1, temperature=temperature)[0] for temperature in TEMPERATURES
    }
    write_png(OUT / "blend.png", sample_picture(panels, run.weights()[1].range))
    table = Table("temperature", *(f"Frechet distance to the {name} data" for name in DATA))
    for temperature in TEMPERATURES:
        values = [run.evaluate([METRICS, data], temperature=temperature) for data in DATA.values()]
        cells = (f"{each['frechet']:.1f} ± {each['frechet_stderr']:.1f}" for each in values)
        table.add_row(f"{temperature:g}", *cells)
    Console().print(table)


if __name__ == "__main__":
    main()
