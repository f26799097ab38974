"""Measurements of a model, each with a standard error."""

import gftkit
from gftkit_plugins.metrics.energy import Energy
from gftkit_plugins.metrics.frechet import Frechet
from gftkit_plugins.metrics.trajectories import KineticEnergy, PathLength, Straightness


@gftkit.hookimpl
def gftkit_metrics() -> dict[str, type]:
    """The built-in metrics."""
    return {
        "energy": Energy,
        "frechet": Frechet,
        "kinetic-energy": KineticEnergy,
        "path-length": PathLength,
        "straightness": Straightness,
    }
