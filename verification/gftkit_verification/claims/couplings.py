"""Every registered coupling, and T10."""

from collections.abc import Iterator

from gftkit.claims import Claim
from gftkit.registry import Registry


def claims(registry: Registry) -> Iterator[Claim]:  # noqa: ARG001
    """The claims of this part."""
    yield from ()
