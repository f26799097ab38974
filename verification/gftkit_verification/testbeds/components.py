"""The registered components that a claim is made about, whoever gave them."""

from collections.abc import Callable, Iterator
from typing import Any

from gftkit.kernel.registry import Registry
from gftkit.theory import flow
from gftkit.theory.objective import retention

KINDS = ("path", "schedule", "coupling", "solver", "grid", "diffusion")
"""Kinds whose every component has claims about it."""

POINTS = 1200
"""Equal parts of the progress at which a schedule is tried: the steps of every claim lie among them."""


def components(registry: Registry, kind: str) -> Iterator[tuple[str, Any]]:
    """(name, component) of a kind, with default options.

    Left out are those with an option that must be given, and broken ones: each of those has a failing claim of its own
    (``gftkit_verification.claims.components.broken``), and doesn't hinder the claims about others.
    """
    for name in _plain(registry, kind):
        made = _tried(registry, kind, name)
        if not isinstance(made, Exception):
            yield name, made


def each_registered(
    kind: str,
    where: Callable[[Any], bool] = lambda component: True,  # noqa: ARG005
) -> Callable[[Registry], Iterator[tuple[str, Any]]]:
    """``components`` of a kind for ``claim_for_each``, those alone that fulfil a condition."""
    return lambda registry: ((name, one) for name, one in components(registry, kind) if where(one))


def broken(registry: Registry) -> Iterator[tuple[str, str, Exception]]:
    """(kind, name, why) of the components that can't be made with default options, or give what none may give.

    One whose package isn't installed is not among them.
    """
    for kind in KINDS:
        for name in _plain(registry, kind):
            made = _tried(registry, kind, name)
            if isinstance(made, Exception) and not isinstance(made.__cause__, ImportError):
                yield kind, name, made


def _plain(registry: Registry, kind: str) -> list[str]:
    """The components without an option that must be given."""
    return [
        name
        for name in registry.names(kind)
        if not any(option.required for option in registry.component(kind, name).options.values())
    ]


def _tried(registry: Registry, kind: str, name: str) -> Any:
    """A component, or why there can be no other claim about it."""
    try:
        made = registry.create(kind, name)
        if kind == "path":
            flow.is_noisy(made), flow.is_stochastic(made), flow.t_end(made)
        elif kind == "schedule":
            for k in range(POINTS + 1):
                retention(float(made.temperature(k / POINTS)))
    except Exception as error:
        return error
    return made
