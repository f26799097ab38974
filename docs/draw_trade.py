"""Draws what methods gain and what they pay: docs/evidence/digits-past-zero/trade.png, from the rows of that study.

``make trade`` writes it.
"""

import json
from pathlib import Path

from gftkit.recording import COLOURS, figure_png, new_figure, tidy, write_png
from gftkit.study.statistics import Difference, differences

STUDY = Path(__file__).parent / "evidence/digits-past-zero"
COUPLING = "optimal-transport"
METHODS = ("exponential", "past-zero", "past-zero-step", "guided", "guided-step", "gradual", "plain-stop")
METRICS = {"frechet": "Fréchet distance", "energy": "energy distance"}
"""The metrics of the two panels, by their names in the rows."""


def picture() -> bytes:
    """Both panels, as PNG: a metric's change in percent of plain's against the change of ``memorisation``."""
    found = {
        (one.method, one.size, one.metric): one
        for one in differences(json.loads((STUDY / "results.json").read_text()), "plain")
        if one.coupling == COUPLING
    }
    sizes = sorted({size for _, size, _ in found})
    figure = new_figure(10.4, 4.0)
    axes = figure.subplots(1, len(METRICS))
    for axis, (metric, label) in zip(axes, METRICS.items(), strict=True):
        for method, colour in zip(METHODS, COLOURS, strict=False):
            across = [found[method, size, "memorisation"].over.mean for size in sizes]
            up = [_percent(found[method, size, metric]) for size in sizes]
            axis.plot(across, up, color=colour, linewidth=0.8, alpha=0.6)
            axis.scatter(across, up, s=[14 + 14 * k for k in range(len(sizes))], color=colour, label=method)
        axis.axhline(0, color="#404040", linewidth=0.8)
        axis.axvline(0, color="#404040", linewidth=0.8)
        axis.set_xlabel("memorisation minus plain's (left: more is copied)")
        axis.set_ylabel(f"{label}, % of plain's (down: better)")
        tidy(axis)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure_png(figure)


def _percent(one: Difference) -> float:
    assert one.relative is not None
    return 100 * one.relative.mean


if __name__ == "__main__":
    write_png(STUDY / "trade.png", picture())
