"""Laws of processes: T5, T6, T12, T16 and T17 on closed forms."""

from collections.abc import Iterator

from gftkit.claims import Claim
from gftkit.registry import Registry


def claims(registry: Registry) -> Iterator[Claim]:  # noqa: ARG001
    """The claims of this part."""
    yield from ()
