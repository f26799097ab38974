"""What algebra decides, proved by sympy on the very functions of the kernel."""

from collections.abc import Iterator

from gftkit.claims import Claim
from gftkit.registry import Registry


def claims(registry: Registry) -> Iterator[Claim]:  # noqa: ARG001
    """The claims of this part."""
    yield from ()
