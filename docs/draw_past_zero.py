"""Draws pictures of docs/evidence/digits-past-zero from the rows of that study.

``make past-zero`` writes trade.png, what methods gain and what they copy for it, and steps.png, quality by few steps.
"""

import json
from pathlib import Path
from typing import Any

from gftkit.recording import COLOURS, figure_png, new_figure, tidy, write_png
from gftkit.study.statistics import Difference, differences, spreads

STUDY = Path(__file__).parent / "evidence/digits-past-zero"
COUPLING = "optimal-transport"
METHODS = ("exponential", "past-zero", "past-zero-step", "guided", "guided-step", "gradual", "plain-stop")
METRICS = {"frechet": "Fréchet distance", "energy": "energy distance"}
"""The metrics of the two panels of trade.png, by their names in the rows."""
STEPS = {2: "frechet_2_steps", 4: "frechet_4_steps", 8: "frechet_8_steps", 20: "frechet"}
"""The Fréchet distances of steps.png by the number of Euler steps."""


def trade(rows: list[dict[str, Any]]) -> bytes:
    """A metric's change in percent of plain's against the change of ``memorisation``, as PNG."""
    found = {(one.method, one.size, one.metric): one for one in differences(rows, "plain") if one.coupling == COUPLING}
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


def steps(rows: list[dict[str, Any]]) -> bytes:
    """The Fréchet distance against the number of sampling steps, a panel for each of three sizes, as PNG."""
    found = {(one.method, one.size, one.metric): one.over for one in spreads(rows) if one.coupling == COUPLING}
    names = {"plain": "plain fine-tuning", "exponential": "GFT, exponential", "gradual": "GFT, gradual"}
    figure = new_figure(9.6, 3.0)
    axes = figure.subplots(1, 3)
    for axis, size in zip(axes, (100, 200, 400), strict=True):
        for (method, label), colour in zip(names.items(), COLOURS, strict=False):
            means = [found[method, size, metric].mean for metric in STEPS.values()]
            axis.plot(list(STEPS), means, color=colour, marker="o", markersize=4, label=label)
        axis.axhline(found["plain", size, "frechet"].mean, color="#404040", linestyle=":", linewidth=0.9)
        axis.set(title=f"{size} images", xscale="log", xlabel="sampling steps")
        axis.set_xticks(list(STEPS), [str(count) for count in STEPS])
        axis.minorticks_off()
        tidy(axis)
    axes[0].set_ylabel("Fréchet distance")
    axes[0].legend(frameon=False, fontsize=8)
    return figure_png(figure)


def _percent(one: Difference) -> float:
    assert one.relative is not None
    return 100 * one.relative.mean


if __name__ == "__main__":
    of_study = json.loads((STUDY / "results.json").read_text())
    for name, draw in (("trade", trade), ("steps", steps)):
        write_png(STUDY / f"{name}.png", draw(of_study))
