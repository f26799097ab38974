"""Pictures of a study."""

import math
from collections.abc import Iterable, Sequence
from typing import Any

from gftkit.recording import pictures
from gftkit.study.statistics import Difference, Spread

MARKERS = "os^Dv<>PX*"


def against_size(spreads: Sequence[Spread], metric: str) -> bytes:
    """A metric against the number of training samples, a panel for each coupling, with 95 % intervals, as PNG."""
    here = [one for one in spreads if one.metric == metric]
    couplings, methods = _names(one.coupling for one in here), _names(one.method for one in here)
    figure = pictures.new_figure(5.4 * len(couplings) + 2.0, 4.4)
    axes = figure.subplots(1, len(couplings), squeeze=False, sharey=True)[0]
    for axis, coupling in zip(axes, couplings, strict=True):
        for place, method in enumerate(methods):
            points = sorted((p for p in here if (p.method, p.coupling) == (method, coupling)), key=lambda p: p.size)
            axis.errorbar(
                [
                    point.size * 1.02 ** (place - len(methods) / 2) for point in points
                ],  # beside each other, so that no bar hides another
                [point.over.mean for point in points],
                yerr=[
                    point.over.mean - (point.over.low if point.over.low is not None else math.nan) for point in points
                ],
                label=method,
                **_style(place),
            )
        sizes = sorted({point.size for point in here})
        axis.set(title=coupling, xlabel="training samples", xscale="log")
        _name_ticks(axis, sizes)
        pictures.tidy(axis)
    axes[0].set_ylabel(metric)
    axes[-1].legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return pictures.figure_png(figure)


def forest(differences: Sequence[Difference], metric: str, baseline: str) -> bytes:
    """Paired differences to the baseline with 95 % intervals, a line for each method and size, as PNG.

    In percent of the baseline where its values allow that.
    """
    here = [one for one in differences if one.metric == metric]
    relative = all(one.relative is not None for one in here)
    couplings, sizes = _names(one.coupling for one in here), sorted({one.size for one in here})
    methods = _names(one.method for one in here)
    height = 0.16 * len(methods) * (len(sizes) + 1) + 1.2
    figure = pictures.new_figure(4.4 * max(1, len(couplings)) + 1.6, height)
    axes = figure.subplots(1, max(1, len(couplings)), squeeze=False, sharey=True)[0]
    for axis, coupling in zip(axes, couplings, strict=False):
        for place, size in enumerate(sizes):
            points = [one for one in here if one.coupling == coupling and one.size == size]
            over = [(one.relative if relative and one.relative else one.over) for one in points]
            factor = 100 if relative else 1
            axis.errorbar(
                [factor * one.mean for one in over],
                [methods.index(one.method) + (place + 1) / (len(sizes) + 1) - 0.5 for one in points],
                xerr=[factor * (one.mean - (one.low if one.low is not None else math.nan)) for one in over],
                label=str(size),
                **{**_style(place), "linestyle": ""},
            )
        axis.axvline(0, color="#404040", linewidth=0.8)
        axis.set(title=coupling, xlabel=f"{metric} minus that of {baseline}" + (", %" if relative else ""))
        pictures.tidy(axis)
    axes[0].set_yticks(range(len(methods)), methods)
    axes[0].set_ylim(len(methods) - 0.5, -0.5)
    axes[-1].legend(frameon=False, fontsize=8, title="samples", loc="center left", bbox_to_anchor=(1.01, 0.5))
    return pictures.figure_png(figure)


def _name_ticks(axis: Any, sizes: Sequence[int]) -> None:
    """Ticks of a logarithmic axis at these sizes and nowhere else."""
    from matplotlib.ticker import NullFormatter

    axis.set_xticks(sizes, [str(size) for size in sizes])
    axis.xaxis.set_minor_formatter(NullFormatter())


def _names(values: Iterable[str]) -> list[str]:
    return list(dict.fromkeys(values))


def _style(place: int) -> dict[str, Any]:
    """Colour and marker of the n-th line: there may be more lines than colours."""
    return {
        "color": pictures.COLOURS[place % len(pictures.COLOURS)],
        "marker": MARKERS[place % len(MARKERS)],
        "linestyle": "-" if place < len(pictures.COLOURS) else "--",
        "markersize": 4.5,
        "linewidth": 1.3,
        "elinewidth": 1.0,
        "capsize": 2,
    }
