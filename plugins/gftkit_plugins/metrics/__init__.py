"""Measurements of a model, each with a standard error."""

import gftkit
from gftkit_plugins.metrics.energy import Energy
from gftkit_plugins.metrics.frechet import Frechet
from gftkit_plugins.metrics.path_length import PathLength


@gftkit.hookimpl
def gftkit_metrics() -> dict[str, type]:
    """The built-in metrics."""
    return {"energy": Energy, "frechet": Frechet, "path-length": PathLength}
