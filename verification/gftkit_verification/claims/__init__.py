"""The claims: one package for each part of the theory, one module for each subject, found by looking through them.

Nothing of it is imported before claims are asked for.
"""

from collections.abc import Iterator
from importlib import import_module
from typing import TYPE_CHECKING

import gftkit

if TYPE_CHECKING:
    from gftkit.kernel.registry import Registry
    from gftkit.verify.claims import Claim


@gftkit.hookimpl
def gftkit_claims(registry: "Registry") -> "Iterator[Claim]":
    """Every claim of gftkit_verification.

    Raises:
        MissingPackageError: where sympy isn't installed: to leave the proofs out would be to check less than is said.
    """
    from gftkit.runtime.extras import require
    from gftkit.verify.declaration import claims_of

    require("symbolic", "the proofs among the claims")
    yield from claims_of(import_module(__name__), registry)
