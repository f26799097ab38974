"""The registered components that claims are made about, built-in or of a plugin."""

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

    Components with a required option are left out, and so are broken ones: each of those has a failing claim
    (``gftkit_verification.claims.components.broken``), and doesn't stop the claims about others.
    """
    for name in _without_required_options(registry, kind):
        component = _create(registry, kind, name)
        if not isinstance(component, Exception):
            yield name, component


def each_registered(
    kind: str,
    where: Callable[[Any], bool] = lambda component: True,  # noqa: ARG005
) -> Callable[[Registry], Iterator[tuple[str, Any]]]:
    """``components`` of a kind for ``claim_for_each``, those alone that fulfil a condition."""
    return lambda registry: ((name, one) for name, one in components(registry, kind) if where(one))


def broken_components(registry: Registry) -> Iterator[tuple[str, str, Exception]]:
    """(kind, name, error) of the components that can't be made with default options, or whose values are out of range.

    Components whose package isn't installed are not among them.
    """
    for kind in KINDS:
        for name in _without_required_options(registry, kind):
            component = _create(registry, kind, name)
            if isinstance(component, Exception) and not isinstance(component.__cause__, ImportError):
                yield kind, name, component


def _without_required_options(registry: Registry, kind: str) -> list[str]:
    """The names of the components that default options make."""
    return [
        name
        for name in registry.names(kind)
        if not any(option.required for option in registry.component(kind, name).options.values())
    ]


def _create(registry: Registry, kind: str, name: str) -> Any:
    """A component, or the error for which there can be no other claim about it."""
    try:
        component = registry.create(kind, name)
        if kind == "path":
            flow.is_noisy(component), flow.is_stochastic(component), flow.t_end(component)
        elif kind == "schedule":
            for k in range(POINTS + 1):
                retention(float(component.temperature(k / POINTS)))
    except Exception as error:
        return error
    return component
