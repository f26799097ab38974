"""The monitor ``memorisation``: the way of a run from learning its target to reproducing its training data."""

from gftkit_verification.monitors.memorisation.monitor import (
    Memorisation as Memorisation,
    distance_ratio as distance_ratio,
    held_out_ratio as held_out_ratio,
    nearest as nearest,
    position as position,
)
