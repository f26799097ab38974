"""Draws the densities of the built-in laws of t: docs/assets/times.png.

``make times`` writes it.
"""

from pathlib import Path
from typing import Any

import torch

import gftkit
from gftkit.recording import COLOURS, figure_png, new_figure, tidy, write_png

PICTURE = Path(__file__).parent / "assets/times.png"
SYMMETRIC: dict[str, dict[str, Any]] = {"uniform": {}, "mode": {}, "cosine-map": {}, "u-shaped": {}, "logit-normal": {}}
"""The same laws of the noise."""
SKEW: dict[str, dict[str, Any]] = {
    "logit-normal, mean: 1": {"name": "logit-normal", "mean": 1.0},
    "logit-normal, mean: -1": {"name": "logit-normal", "mean": -1.0},
    "beta, a: 1, b: 1.5": {"name": "beta", "a": 1.0, "b": 1.5},
    "shifted, shift: 3": {"name": "shifted", "shift": 3.0},
    "table": {"name": "table", "times": [0.1, 0.6, 0.9], "densities": [0.2, 2.0, 0.6]},
}
"""Laws that are nearer to one end."""


def picture() -> bytes:
    """Both panels, as PNG."""
    registry = gftkit.load()
    figure = new_figure(9.6, 3.4)
    left, right = figure.subplots(1, 2, sharey=True)
    t = torch.linspace(0, 1, 503)[1:-1]
    panels = ((left, {name: {"name": name, **options} for name, options in SYMMETRIC.items()}), (right, SKEW))
    for axis, laws in panels:
        for (label, spec), colour in zip(laws.items(), COLOURS, strict=False):
            law = registry.build("time", spec)
            axis.plot(t.numpy(), law.density(t).numpy(), color=colour, label=label)
        axis.set_xlabel("flow time t: 0 is the source, 1 the data")
        axis.legend(frameon=False, fontsize=8)
        tidy(axis)
    left.set_ylabel("density p(t)")
    return figure_png(figure)


if __name__ == "__main__":
    write_png(PICTURE, picture())
