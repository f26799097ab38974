"""Draws the built-in profiles, and a schedule on its way to one: docs/assets/profiles.png.

``make profiles`` writes it.
"""

from pathlib import Path

import torch

import gftkit
from gftkit.recording import COLOURS, figure_png, new_figure, tidy, write_png

PICTURE = Path(__file__).parent / "assets/profiles.png"
PROFILES = {
    "constant": {"value": -0.15},
    "step": {"early": -0.25, "late": 0.5, "cut": 0.7},
    "linear": {"early": -0.4, "late": 0.4},
    "table": {"times": [0.1, 0.4, 0.9], "values": [0.0, -0.3, 0.2]},
}
"""What is drawn; ``fitted`` is a table that comes from a file."""


def picture() -> bytes:
    """Both panels, as PNG."""
    registry = gftkit.load()
    figure = new_figure(9.6, 3.4)
    left, right = figure.subplots(1, 2)
    t = torch.linspace(0, 1, 501)
    for (name, options), colour in zip(PROFILES.items(), COLOURS, strict=False):
        profile = registry.create("profile", name, **options)
        left.plot(t.numpy(), profile.retention(t).numpy(), color=colour, label=name)
    left.set_xlabel("flow time t")
    schedule = registry.create("schedule", "exponential", end={"name": "step", **PROFILES["step"]})
    progress = [k / 200 for k in range(201)]
    for place, colour in ((0.3, COLOURS[0]), (0.9, COLOURS[1])):
        at = torch.tensor([place])
        values = [float(schedule.profile(s).retention(at)) for s in progress]
        right.plot(progress, values, color=colour, label=f"step, at t = {place:g}")
    plain = registry.create("schedule", "exponential")
    cooled = [gftkit.retention(plain.temperature(s)) for s in progress]
    right.plot(progress, cooled, color=COLOURS[4], linestyle="--", label="without an end")
    right.set_xlabel("progress s of the run, schedule exponential")
    for axis in (left, right):
        axis.axhline(0, color="#404040", linewidth=0.8)
        axis.set_ylabel("retention")
        axis.legend(frameon=False, fontsize=8)
        tidy(axis)
    return figure_png(figure)


if __name__ == "__main__":
    write_png(PICTURE, picture())
