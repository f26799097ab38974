"""Animated pictures of trajectories: states from noise to data."""

import math
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gftkit.kernel.errors import ConfigError, RunError
from gftkit.recording import pictures
from gftkit.runtime.extras import require
from gftkit.storage.files import write_atomically

FORMATS = {".gif": "GIF", ".png": "PNG", ".webp": "WEBP"}
FRAMES = 60
"""Most frames; of more states, as many are picked evenly."""
FRAME, LAST = 80, 1500
"""Milliseconds that a frame is shown, and the last one."""
IMAGES, POINTS = 36, 500
"""Most samples in a picture."""


def check_animation(path: Path, event_shape: tuple[int, ...], *, force: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        ConfigError: for an unknown suffix.
        RunError: for a file that exists, without ``force``.
        MissingPackageError: where matplotlib is needed and isn't installed.
    """
    if path.suffix not in FORMATS:
        raise ConfigError(f"--trajectory {path}: wanted {', '.join(FORMATS)}, got '{path.suffix}'.")
    if path.exists() and not force:
        raise RunError(f"{path} exists. Choose another --trajectory, or overwrite it with --force.")
    if not pictures.is_image(event_shape):
        require("report", f"--trajectory {path}")


def most_samples(event_shape: tuple[int, ...]) -> int:
    """The largest number of samples that an animation of such events shows."""
    points = math.prod(event_shape) == 1 or len(event_shape) == 1
    return POINTS if points else IMAGES


def frames(states: Tensor, span: tuple[float, float] | None) -> list[np.ndarray]:
    """Pictures of the states, (times, n, *event), in order, each (rows, columns, 3) of uint8.

    Images are a grid, each in black and white's values ``span`` or those of the last state; other events as
    ``pictures.sample_picture`` draws them, on axes that are the same for all states.
    """
    picked = torch.linspace(0, len(states) - 1, min(FRAMES, len(states))).round().long()
    states, last = states[picked].float(), states[-1].float()
    span = span or (float(last.min()), float(last.max()))
    if pictures.is_image(last.shape[1:]):
        scale = max(1, 32 // last.shape[-1])
        sheets = [pictures.image_grid(state, span) for state in states]
        return [sheet.repeat(scale, axis=0).repeat(scale, axis=1) for sheet in sheets]
    return _draw_frames(states, span)


def _draw_frames(states: Tensor, span: tuple[float, float]) -> list[np.ndarray]:
    from matplotlib.backends.backend_agg import FigureCanvasAgg
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4, 4), dpi=90)  # no layout that moves the axes from frame to frame
    canvas, axis = FigureCanvasAgg(figure), figure.subplots()
    components = pictures.components(states[-1])
    limits = None
    frames = []
    # All states first, in a picture that is thrown away: its limits hold for every frame.
    for state in (states.flatten(0, 1), *states):
        axis.clear()
        if limits is not None:
            axis.set(xlim=limits[0], ylim=limits[1], autoscale_on=False)
        pictures.draw_events(axis, state, span, components, count=len(state))
        if limits is None:
            limits = axis.get_xlim(), axis.get_ylim()
            continue
        canvas.draw()  # type: ignore[no-untyped-call]
        frames.append(np.asarray(canvas.buffer_rgba())[..., :3].copy())  # type: ignore[no-untyped-call]
    return frames


def write_animation(path: Path, states: Tensor, span: tuple[float, float] | None) -> None:
    """Write states, (times, n, *event), as an animated picture that runs without end and rests on the last state.

    Args:
        path: a .gif, .png or .webp file.
        states: from the source to data.
        span: black and white's values; by default those of the last state.
    """
    from PIL import Image

    first, *rest = (Image.fromarray(frame) for frame in frames(states, span))
    times = [FRAME] * len(rest) + [LAST]

    def write(temporary: Path) -> None:
        first.save(temporary, format=FORMATS[path.suffix], save_all=True, append_images=rest, duration=times, loop=0)

    write_atomically(path, write)
