"""Pictures of samples and curves. Drawn with matplotlib's figures, without its global state.

matplotlib and Pillow are loaded with the first picture: a run that draws nothing needs neither.
"""

import io
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from torch import Tensor

from gftkit.runtime.extras import require
from gftkit.storage.files import write_atomically

if TYPE_CHECKING:
    from matplotlib.figure import Figure

COLOURS = ("#1b6ca8", "#d1495b", "#2e7d5b", "#7a5195", "#8a8a8a", "#3fa7a3", "#b0724a", "#d87fb0", "#404040")
TEMPERATURE_COLOUR = "#c98b1b"
Curve = tuple[Sequence[float], Sequence[float]]


def is_image(event_shape: Sequence[int]) -> bool:
    """True for events that are drawn as images: (channels, height, width) with 1 or 3 channels."""
    return len(event_shape) == 3 and event_shape[0] in (1, 3)


def image_grid(images: Tensor, span: tuple[float, float] | None, columns: int | None = None) -> np.ndarray:
    """Images side by side, (n, c, h, w) -> (rows, columns, 3) of uint8; ``span`` is black and white's values."""
    low, high = span or (float(images.min()), float(images.max()))
    columns = columns or math.ceil(math.sqrt(len(images)))
    rows = math.ceil(len(images) / columns)
    scaled = ((images.float() - low) / max(high - low, 1e-12)).clamp(0, 1).mul(255).round().to(torch.uint8)
    scaled = scaled.expand(-1, 3, -1, -1).permute(0, 2, 3, 1)
    n, height, width, _ = scaled.shape
    sheet = np.full((rows * (height + 1) - 1, columns * (width + 1) - 1, 3), 255, dtype=np.uint8)
    for index in range(n):
        top, left = (index // columns) * (height + 1), (index % columns) * (width + 1)
        sheet[top : top + height, left : left + width] = scaled[index].numpy()
    return sheet


def write_image(path: Path, image: np.ndarray, scale: int = 1) -> None:
    """Write (rows, columns, 3) of uint8 as PNG, each pixel ``scale`` times larger."""
    from PIL import Image

    picture = Image.fromarray(image)
    picture = picture.resize((picture.width * scale, picture.height * scale), Image.Resampling.NEAREST)
    write_atomically(path, lambda temporary: picture.save(temporary, format="PNG"))


def new_figure(width: float, height: float) -> "Figure":
    """An empty figure of so many inches, with a layout that leaves room for labels.

    Raises:
        MissingPackageError: where matplotlib isn't installed.
    """
    require("report", "a picture")
    from matplotlib.figure import Figure

    return Figure(figsize=(width, height), layout="constrained")


def sample_picture(panels: Mapping[str, Tensor], span: tuple[float, float] | None, count: int = 36) -> bytes:
    """Samples of several models side by side, as PNG: one panel for each name, all of one event shape.

    Images as a grid; events of one number as histograms, of two as points, of shape (channels, length) as curves, and
    any others by the two principal components of the last panel.
    """
    shapes = {tuple(values.shape[1:]) for values in panels.values()}
    (event,) = shapes
    last = list(panels.values())[-1]
    span = span or (float(last.min()), float(last.max()))  # one scale of grey for all panels
    figure = new_figure(3.1 * len(panels), 3.4)
    figure.set_layout_engine("constrained", wspace=0.06)
    axes = figure.subplots(1, len(panels), squeeze=False, sharex=not is_image(event), sharey=not is_image(event))[0]
    plane = components(last)
    for axis, (name, values), colour in zip(axes, panels.items(), _cycle(len(panels)), strict=True):
        axis.set_title(name, fontsize=11)
        draw_events(axis, values, span, plane, colour, count)
    return figure_png(figure)


def draw_events(
    axis: Any,
    values: Tensor,
    span: tuple[float, float],
    plane: tuple[Tensor, Tensor],
    colour: str = COLOURS[0],
    count: int = 36,
) -> None:
    """Draw (n, *event) as ``sample_picture`` does.

    Args:
        axis: of matplotlib.
        values: the events.
        span: black and white's values.
        plane: ``components``, of events that have more than two numbers.
        colour: of curves and points.
        count: how many images or curves, at most.
    """
    event = values.shape[1:]
    if is_image(event):
        axis.imshow(image_grid(values[:count], span), interpolation="nearest")
        axis.set_axis_off()
    elif math.prod(event) == 1:
        axis.hist(values.flatten().numpy(), bins=40, color=colour, density=True)
    elif len(event) == 2:
        for curve in values[:count]:
            axis.plot(curve.T.numpy(), color=colour, alpha=0.25, linewidth=0.8)
    else:
        axis.scatter(*_in_plane(values, plane).T.numpy(), s=4, alpha=0.5, color=colour, linewidths=0)
        axis.set_aspect("equal", adjustable="box")  # shared axes allow no other way
        if math.prod(event) > 2:
            axis.set_xlabel("first principal component", fontsize=8)


def _in_plane(values: Tensor, plane: tuple[Tensor, Tensor]) -> Tensor:
    flat, (centre, basis) = values.flatten(1), plane
    return flat if flat.shape[1] == 2 else (flat - centre) @ basis


def components(values: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and two principal directions, (d,) and (d, 2)."""
    flat = values.flatten(1)
    centre = flat.mean(0)
    if flat.shape[1] < 3:
        return centre, torch.eye(flat.shape[1])
    return centre, torch.linalg.svd(flat - centre, full_matrices=False).Vh[:2].T


def curve_picture(
    named: Mapping[str, Curve],
    label: str,
    temperatures: Mapping[str, Curve] | None = None,
    *,
    logarithmic: bool = False,
) -> bytes:
    """Curves against the step, as PNG, with the temperature on an axis of its own below."""
    temperatures = {name: curve for name, curve in (temperatures or {}).items() if any(curve[1])}
    figure = new_figure(7.2, 4.6 if temperatures else 3.4)
    ratios = [3, 1] if temperatures else [1]
    axes = figure.subplots(len(ratios), 1, sharex=True, squeeze=False, gridspec_kw={"height_ratios": ratios})[:, 0]
    colours = dict(zip({**named, **temperatures}, _cycle(len({**named, **temperatures})), strict=True))
    for name, (steps, values) in named.items():
        axes[0].plot(steps, values, label=name, color=colours[name], marker=".", markersize=4, linewidth=1.4)
    axes[0].set_ylabel(label)
    if logarithmic:
        from matplotlib.ticker import ScalarFormatter

        axes[0].set_yscale("log")
        axes[0].yaxis.set_major_formatter(ScalarFormatter())
        axes[0].yaxis.set_minor_formatter(ScalarFormatter())
    if len(named) > 1:
        axes[0].legend(frameon=False)
    for name, (steps, values) in temperatures.items():
        axes[1].plot(steps, values, color=TEMPERATURE_COLOUR if len(temperatures) == 1 else colours[name], label=name)
        axes[1].set_ylabel("temperature")
    axes[-1].set_xlabel("step")
    for axis in axes:
        tidy(axis)
    return figure_png(figure)


def measurement_picture(
    lines: Mapping[str, Curve], others: Mapping[str, Curve], axes: tuple[str, str], scales: tuple[str, str]
) -> bytes:
    """Measured points beside what the theory says, as PNG.

    Args:
        lines: "measured" is drawn as points, the others as lines.
        others: drawn dashed with small points: mutants, or the components of a family.
        axes: labels, x and y.
        scales: "log" or "linear" for each axis.
    """
    figure = new_figure(7.2, 4.2)
    axis = figure.subplots()
    for (name, curve), colour in zip(lines.items(), _cycle(len(lines)), strict=True):
        style = {"marker": "o", "linestyle": "", "zorder": 3} if name == "measured" else {"linewidth": 1.6}
        axis.plot(*curve, label=name, color=colour, **style)
    for (name, curve), colour in zip(others.items(), _cycle(len(others), len(lines)), strict=True):
        axis.plot(*curve, label=name, color=colour, marker=".", markersize=5, linewidth=1, linestyle="--", alpha=0.7)
    axis.set(xlabel=axes[0], ylabel=axes[1], xscale=scales[0], yscale=scales[1])
    tidy(axis)
    axis.legend(frameon=False, fontsize=8, loc="center left", bbox_to_anchor=(1.01, 0.5))
    return figure_png(figure)


@dataclass(frozen=True)
class Trace:
    """One line of a panel.

    Attributes:
        steps: where it was measured.
        values: what was measured there; None is left out.
        errors: a standard error for each value, drawn as bars of two; or nothing.
        style: "measured" (points), "predicted" (a dashed line) or "faint" (small points, for comparison).
        colour: its place among the colours of the pictures; predictions share that of what they predict.
    """

    steps: Sequence[float]
    values: Sequence[float | None]
    errors: Sequence[float | None] = ()
    style: Literal["measured", "predicted", "faint"] = "measured"
    colour: int = 0


@dataclass(frozen=True)
class Panel:
    """One of several panels over one axis.

    Attributes:
        label: of its axis.
        traces: by name.
        band: values between which a measurement agrees with its prediction, shaded; or None.
        span: the values that are shown; by default those of the traces.
    """

    label: str
    traces: Mapping[str, Trace]
    band: tuple[float, float] | None = None
    span: tuple[float, float] | None = None


def panel_picture(panels: Sequence[Panel], label: str = "step") -> bytes:
    """Panels above each other over one axis, as PNG: measurements beside what is predicted for them."""
    figure = new_figure(7.2, 2.5 * len(panels) + 0.4)
    axes = figure.subplots(len(panels), 1, sharex=True, squeeze=False)[:, 0]
    for axis, panel in zip(axes, panels, strict=True):
        if panel.band is not None:
            axis.axhspan(*panel.band, color="#8a8a8a", alpha=0.18, linewidth=0)
        for name, trace in panel.traces.items():
            _draw(axis, name, trace)
        if panel.span is not None:
            axis.set_ylim(*panel.span)
        axis.set_ylabel(panel.label, fontsize=9)
        axis.legend(frameon=False, fontsize=8, loc="best")
        tidy(axis)
    axes[-1].set_xlabel(label)
    return figure_png(figure)


def _draw(axis: Any, name: str, trace: Trace) -> None:
    colour = COLOURS[trace.colour % len(COLOURS)]
    errors = trace.errors or [None] * len(trace.steps)
    kept = [(x, y, 2 * (e or 0.0)) for x, y, e in zip(trace.steps, trace.values, errors, strict=True) if y is not None]
    steps, values, bars = ([point[k] for point in kept] for k in range(3))
    if trace.style == "predicted":
        axis.plot(steps, values, color=colour, linestyle="--", linewidth=1.6, label=name)
        return
    faint = trace.style == "faint"
    axis.errorbar(
        steps,
        values,
        yerr=bars if trace.errors else None,
        color=colour,
        alpha=0.55 if faint else 1.0,
        marker="o",
        markersize=2.5 if faint else 4,
        markerfacecolor="white" if faint else colour,
        linewidth=0.8 if faint else 1.2,
        elinewidth=0.9,
        label=name,
    )


def tidy(axis: Any) -> None:
    """A faint grid, and no frame above and to the right."""
    axis.grid(alpha=0.25)
    axis.spines[["top", "right"]].set_visible(False)


def figure_png(figure: "Figure") -> bytes:
    """A figure as the bytes of a PNG."""
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from PIL import Image

    figure.set_dpi(130)
    canvas = FigureCanvasAgg(figure)
    canvas.draw()  # type: ignore[no-untyped-call]
    buffer = io.BytesIO()
    # Not savefig, which draws everything twice where there is a layout.
    Image.fromarray(np.asarray(canvas.buffer_rgba())).convert("RGB").save(buffer, "PNG")  # type: ignore[no-untyped-call]
    return buffer.getvalue()


def write_png(path: Path, picture: bytes) -> None:
    """Write the bytes of a PNG, whole or not at all."""

    def write(temporary: Path) -> Any:
        return temporary.write_bytes(picture)

    write_atomically(path, write)


def _cycle(n: int, first: int = 0) -> list[str]:
    return [COLOURS[index % len(COLOURS)] for index in range(first, first + n)]
