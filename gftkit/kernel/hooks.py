"""The whole extension surface: a hook for each kind of component, one for claims, and the wrappers of kinds.

A plugin is any module (or object) that implements some of these with ``@gftkit.hookimpl`` and is named by an entry
point in group ``gftkit``. A kind's hook returns a mapping from registry names (lower case, hyphens) to factories:
classes or functions with typed keyword options and a docstring. ``gftkit_claims(registry)`` yields
``gftkit.verify.Claim`` objects; it is called last, and only to verify. A wrapper's hook returns a function
``(component, **typed options) -> component``, whose options every component of that kind then takes.
"""

from collections.abc import Mapping
from types import SimpleNamespace

import pluggy

from gftkit.kernel.kinds import KINDS, PROJECT

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)

CLAIMS = "gftkit_claims"
WRAPPERS: Mapping[str, str] = {kind.wrapper: kind.name for kind in KINDS.values() if kind.wrapper is not None}
"""The hooks of wrappers, each with the kind that it is for."""
HOOKS: tuple[str, ...] = (*(kind.hook for kind in KINDS.values()), CLAIMS, *WRAPPERS)


def specifications() -> SimpleNamespace:
    """The hooks as pluggy wants them: a marked function for each."""
    kinds = {name: hookspec(lambda: None) for name in HOOKS if name != CLAIMS}
    return SimpleNamespace(**kinds, **{CLAIMS: hookspec(lambda registry: None)})  # noqa: ARG005
