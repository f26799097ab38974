"""What algebra decides, proved by sympy on the very functions of the kernel."""

from collections.abc import Iterator

from gftkit.kernel.registry import Registry
from gftkit.runtime.extras import require
from gftkit.verify.claims import Claim


def claims(registry: Registry) -> Iterator[Claim]:
    """The proofs.

    Raises:
        MissingPackageError: where sympy isn't installed: to leave the proofs out would be to check less than is said.
    """
    require("symbolic", "the proofs among the claims")
    from gftkit_verification.claims.proofs import calculus, flows, squares

    yield from squares.claims()
    yield from calculus.claims()
    yield from flows.claims(registry)
