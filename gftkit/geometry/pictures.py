"""Pictures of fitted time grids, and of the geometry of several models side by side."""

import itertools
from collections.abc import Mapping, Sequence
from typing import Any

from gftkit.geometry.motion import Motion
from gftkit.geometry.time_grid import Fit
from gftkit.recording.pictures import COLOURS, figure_png, new_figure, tidy


def fitted_grids(fits: Sequence[Fit]) -> bytes:
    """The times of each number of steps, and the distances from the flow's ends, as PNG, with bars of two errors."""
    figure = new_figure(7.2, 3.2)
    left, right = figure.subplots(1, 2)
    for row, fit in enumerate(fits):
        equal = [k / fit.steps for k in range(fit.steps + 1)]
        left.plot(equal, [row + 0.15] * len(equal), "|", color=COLOURS[4], markersize=9, label="uniform")
        left.plot(fit.found, [row - 0.15] * len(fit.found), "|", color=COLOURS[0], markersize=9, label="fitted")
    left.set(xlabel="t", ylabel="steps", yticks=range(len(fits)), yticklabels=[str(fit.steps) for fit in fits])
    steps = [fit.steps for fit in fits]
    for name, colour in (("uniform", COLOURS[4]), ("fitted", COLOURS[0])):
        distances = [getattr(fit, name) for fit in fits]
        bars = [2 * each.stderr for each in distances]
        right.errorbar(steps, [each.value for each in distances], yerr=bars, color=colour, marker="o", label=name)
    right.set(xlabel="Euler steps", ylabel="RMS distance from the flow's end", xscale="log", yscale="log")
    right.legend(frameon=False, fontsize=8)
    _plain(right.xaxis, steps)
    for axis in (left, right):
        tidy(axis)
    return figure_png(figure)


def motions(named: Mapping[str, Motion], tolerance: float) -> bytes:
    """Acceleration, turning and solver errors of several models side by side, as PNG; bands are two standard errors."""
    figure = new_figure(10.2, 3.3)
    left, middle, right = figure.subplots(1, 3)
    for (name, motion), colour in zip(named.items(), itertools.cycle(COLOURS)):
        for axis, profile in ((left, motion.acceleration), (middle, motion.turning)):
            low, high = ([each.value + sign * 2 * each.stderr for each in profile] for sign in (-1, 1))
            axis.plot(motion.times, [each.value for each in profile], color=colour, linewidth=1.4, label=name)
            axis.fill_between(motion.times, low, high, color=colour, alpha=0.2, linewidth=0)
        for (solver, cost), style in zip(motion.costs.items(), ("-", "--"), strict=True):
            reached = {steps: each for steps, each in cost.errors.items() if each.value > 0}
            evaluations = [steps * cost.each for steps in reached]
            values, bars = [e.value for e in reached.values()], [2 * e.stderr for e in reached.values()]
            style_options = {
                "color": colour,
                "linestyle": style,
                "marker": ".",
                "linewidth": 1.2,
                "label": f"{name}, {solver}",
            }
            right.errorbar(evaluations, values, yerr=bars, **style_options)
    right.axhline(tolerance, color=COLOURS[4], linewidth=0.8)
    left.set(xlabel="t", ylabel="acceleration, root mean square")
    middle.set(xlabel="t", ylabel="turning, radians for a unit of t")
    right.set(xlabel="drift evaluations", ylabel="relative error at t = 1", xscale="log", yscale="log")
    _plain(right.xaxis, [1, 4, 16, 64])
    for axis in (left, middle, right):
        tidy(axis)
    for axis in (left, middle):
        axis.set_ylim(bottom=0)
    left.legend(frameon=False, fontsize=8)
    right.legend(frameon=False, fontsize=6)
    return figure_png(figure)


def _plain(axis: Any, ticks: Sequence[float]) -> None:
    """Ticks of a logarithmic axis, as plain numbers."""
    from matplotlib.ticker import NullLocator, ScalarFormatter

    axis.set_ticks(ticks)
    axis.set_major_formatter(ScalarFormatter())
    axis.set_minor_locator(NullLocator())
