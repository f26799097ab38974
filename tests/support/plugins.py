"""Plugins made on the spot, with one schedule."""

from typing import Annotated

from pydantic import Field

import gftkit


class Cool:
    """A schedule that stays at one temperature.

    Args:
        start: where it starts,
            and where it stays.
        mode: of no use.
    """

    def __init__(self, start: Annotated[float, Field(ge=0, lt=10)] = 1.0, mode: str | None = None) -> None:
        self.start = start

    def temperature(self, progress: float) -> float:
        return self.start


class Hooks:
    """An object with these attributes."""

    def __init__(self, **attributes):
        vars(self).update(attributes)


def plugin(**hooks):
    """A plugin whose hooks give these mappings: ``plugin(schedules={"cool": Cool})``."""
    return Hooks(
        **{f"gftkit_{kinds}": gftkit.hookimpl(lambda given=factories: given) for kinds, factories in hooks.items()}
    )


def with_schedule(factory):
    return gftkit.load(plugins={"mine": plugin(schedules={"cool": factory})})
