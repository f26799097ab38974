"""What algebra decides, proved by sympy on the very functions of the kernel."""

from collections.abc import Iterator

from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Claim
from gftkit_verification.claims.proofs import calculus, flows, squares


def claims(registry: Registry) -> Iterator[Claim]:
    """The proofs."""
    yield from squares.claims()
    yield from calculus.claims()
    yield from flows.claims(registry)
