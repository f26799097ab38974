"""Maps from events to vectors, for metrics."""

import gftkit
from gftkit_plugins.features.identity import Identity


@gftkit.hookimpl
def gftkit_features() -> dict[str, type]:
    """The built-in features."""
    return {"identity": Identity}
