"""The time that reaches the embedding of a foreign network, measured: some networks scale it themselves."""

from collections.abc import Callable
from functools import partial
from typing import Any

from torch import Tensor, nn

from gftkit.kernel.errors import ConfigError
from gftkit.networks.foreign import ForeignDrift

LONGEST = 10_000.0
"""The longest period of a sinusoidal embedding of time, as transformers and diffusers have it."""
USUAL = 1000.0
"""The end of the time that diffusers' embeddings are trained with."""


def embedded_scale(network: nn.Module, evaluate: Callable[[float], Any]) -> float | None:
    """How much the embedded time changes from flow time 0 to 1, with all factors on the way there.

    It is seen at the modules ``Timesteps`` of diffusers, which make the sinusoids. What doesn't change with flow time,
    such as a guidance scale that is embedded likewise, isn't counted.

    Args:
        network: the network.
        evaluate: calls it, by its convention, at a flow time.

    Returns:
        The largest change; None for a network without such a module.
    """
    embeddings = [module for module in network.modules() if type(module).__name__ == "Timesteps"]
    if not embeddings:
        return None

    def note(module: nn.Module, arguments: tuple[Tensor, ...], *, into: list[float]) -> None:
        into.append(float(arguments[0].flatten()[0]) * float(getattr(module, "scale", 1)))

    at: dict[float, list[float]] = {0.25: [], 0.75: []}
    for t, values in at.items():
        hooks = [module.register_forward_pre_hook(partial(note, into=values)) for module in embeddings]
        try:
            evaluate(t)
        finally:
            for hook in hooks:
                hook.remove()
    changes = [abs(later - earlier) for earlier, later in zip(*at.values(), strict=True)]
    return max(changes, default=0.0) / 0.5


def check_time_scale(drift: ForeignDrift, evaluate: Callable[[float], Any]) -> None:
    """Refuse a time scale that the network applies a second time.

    Args:
        drift: the network with its convention.
        evaluate: calls it at a flow time.

    Raises:
        ConfigError: where the embedded time goes beyond ``LONGEST``, from where on different times look alike.
    """
    scale = embedded_scale(drift.network, evaluate)
    if scale is not None and scale > LONGEST:
        own = scale / drift.convention.time_scale
        raise ConfigError(
            f"convention.time_scale: {type(drift.network).__name__} multiplies its time by {own:g} itself, so its "
            f"embedding is given times up to {scale:g}, and beyond {LONGEST:g} different times look alike. Set "
            f"convention.time_scale: {USUAL / own:g}."
        )
