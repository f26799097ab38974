"""Every registered noise scale is >= 0 and finite."""

import torch
from torch import Generator

from gftkit.kernel.contracts import NoiseScale
from gftkit.verify.claims import exact
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.testbeds.components import each_registered


@claim_for_each(
    each_registered("diffusion"),
    "diffusion-range-{name}",
    statement="The noise scale g is >= 0 and finite on [0, 1], and of t's shape and type.",
    reference="gftkit.kernel.contracts.NoiseScale",
    bound=exact(),
    mutants=lambda scale: {
        "negative": lambda t: -1 - scale(t),
        "infinite at the data": lambda t: (1 + scale(t)) / (1 - t),
        "not a number at the data": lambda t: scale(t) + torch.sqrt(0.9 - t),
        "one number for all": lambda t: scale(t)[0],
    },
    conditions="1001 times, float32 and float64",
    component="diffusion:{name}",
    seeds=1,
)
def share_out_of_range(scale: NoiseScale, generator: Generator) -> float:  # noqa: ARG001
    """The share of times in [0, 1] where g is negative or not finite; 1 where it isn't of t's shape and type."""
    worst = 0.0
    for dtype in (torch.float32, torch.float64):
        t = torch.linspace(0, 1, 1001, dtype=dtype)
        g = scale(t)
        if (g.shape, g.dtype) != (t.shape, t.dtype):
            return 1.0
        worst = max(worst, float((~torch.isfinite(g) | (g < 0)).double().mean()))
    return worst
