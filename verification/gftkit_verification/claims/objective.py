"""The optimum of a temperature, its risk and its distance: T1 to T4, T7, T8 and T18 on closed forms."""

from collections.abc import Iterator

from gftkit.claims import Claim
from gftkit.registry import Registry


def claims(registry: Registry) -> Iterator[Claim]:  # noqa: ARG001
    """The claims of this part."""
    yield from ()
