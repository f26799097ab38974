"""The picture of a fitted profile: the evidence and the choice."""

from gftkit.evaluation.retentions import RETENTIONS
from gftkit.recording.pictures import COLOURS, figure_png, new_figure, tidy
from gftkit.selection.fitted import FittedProfile


def fitted_profile(fitted: FittedProfile) -> bytes:
    """Energy distances over retentions, r*(t) and the chosen profile, and gains, as PNG.

    Bars are two standard errors; those of the gains are simultaneous intervals.
    """
    wide = fitted.fit is not None
    figure = new_figure(10.2 if wide else 7.2, 3.3)
    axes = figure.subplots(1, 3 if wide else 2)
    distances = fitted.preference.distances
    bars = [2 * each.stderr for each in distances]
    axes[0].errorbar(RETENTIONS, [each.value for each in distances], yerr=bars, color=COLOURS[0], marker="o", capsize=3)
    minimum = fitted.preference.minimum
    low, high = (minimum.value + sign * 2 * minimum.stderr for sign in (-1, 1))
    axes[0].axvspan(low, high, color=COLOURS[4], alpha=0.2, linewidth=0, label="minimum")
    axes[0].set(xlabel="constant retention", ylabel="energy distance to the training data")
    times, values = fitted.table.times, fitted.table.values
    axes[1].plot([0, *times, 1], [values[0], *values, values[-1]], color=COLOURS[1], label=f"chosen: {fitted.chosen}")
    axes[1].axhline(0, color=COLOURS[4], linewidth=0.8)
    axes[1].set(xlabel="t", ylabel="retention", xlim=(0, 1))
    if fitted.fit is not None:
        middles = ((fitted.fit.edges[1:] + fitted.fit.edges[:-1]) / 2).tolist()
        estimates = fitted.fit.by_time
        bars = [2 * each.stderr for each in estimates]
        points = [each.value for each in estimates]
        axes[1].errorbar(middles, points, yerr=bars, color=COLOURS[0], fmt="o", capsize=3, label="r*(t)")
        for row, each in enumerate(fitted.compared):
            assert each.gain.interval is not None
            colour = COLOURS[1] if each.name == fitted.chosen else COLOURS[0]
            axes[2].plot(each.gain.interval, [row, row], color=colour)
            axes[2].plot(each.gain.value, row, "o", color=colour)
        axes[2].axvline(0, color=COLOURS[4], linewidth=0.8)
        names = [each.name for each in fitted.compared]
        axes[2].set(xlabel="gain over retention 0", yticks=range(len(names)), yticklabels=names)
    for axis in axes[:2]:
        axis.legend(frameon=False, fontsize=7)
    for axis in axes:
        tidy(axis)
    return figure_png(figure)
