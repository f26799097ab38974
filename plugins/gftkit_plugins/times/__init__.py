"""Laws of flow time t in training."""

import gftkit
from gftkit_plugins.times.laws import Beta, CosineMap, LogitNormal, Mode, Shifted, Table, Uniform, UShaped


@gftkit.hookimpl
def gftkit_times() -> dict[str, type]:
    """The built-in laws of flow time."""
    return {
        "beta": Beta,
        "cosine-map": CosineMap,
        "logit-normal": LogitNormal,
        "mode": Mode,
        "shifted": Shifted,
        "table": Table,
        "u-shaped": UShaped,
        "uniform": Uniform,
    }
