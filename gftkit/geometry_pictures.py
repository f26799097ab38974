"""Pictures of fitted time grids, and of the geometry of several models side by side."""

from collections.abc import Sequence
from typing import Any

from matplotlib.figure import Figure
from matplotlib.ticker import NullLocator, ScalarFormatter

from gftkit.pictures import COLOURS, png
from gftkit.time_grid import Fit


def fitted_grids(fits: Sequence[Fit]) -> bytes:
    """The times of each number of steps, and the distances from the flow's ends, as PNG; bars are two errors."""
    figure = Figure(figsize=(7.2, 3.2), layout="constrained")
    left, right = figure.subplots(1, 2)
    for row, fit in enumerate(fits):
        equal = [k / fit.steps for k in range(fit.steps + 1)]
        left.plot(equal, [row + 0.15] * len(equal), "|", color=COLOURS[4], markersize=9, label="uniform")
        left.plot(fit.found, [row - 0.15] * len(fit.found), "|", color=COLOURS[0], markersize=9, label="fitted")
    left.set(xlabel="t", ylabel="steps", yticks=range(len(fits)), yticklabels=[str(fit.steps) for fit in fits])
    steps = [fit.steps for fit in fits]
    for name, colour in (("uniform", COLOURS[4]), ("fitted", COLOURS[0])):
        found = [getattr(fit, name) for fit in fits]
        bars = [2 * each.stderr for each in found]
        right.errorbar(steps, [each.value for each in found], yerr=bars, color=colour, marker="o", label=name)
    right.set(xlabel="Euler steps", ylabel="RMS distance from the flow's end", xscale="log", yscale="log")
    right.legend(frameon=False, fontsize=8)
    _plain(right.xaxis, steps)
    for axis in (left, right):
        axis.grid(alpha=0.25)
        axis.spines[["top", "right"]].set_visible(False)
    return png(figure)


def _plain(axis: Any, ticks: Sequence[float]) -> None:
    """Ticks of a logarithmic axis, as plain numbers."""
    axis.set_ticks(ticks)
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
