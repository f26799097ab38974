"""The registered components that claims are made about, built-in or of a plugin."""

from collections.abc import Callable, Iterator
from typing import Any

from gftkit.kernel.errors import ConfigError
from gftkit.kernel.options import Option
from gftkit.kernel.registry import Registry
from gftkit.theory import flow
from gftkit.theory.objective import retention
from gftkit.theory.temperature import check_profile, profile_at
from gftkit.theory.times import check_time_law

KINDS = ("path", "schedule", "coupling", "solver", "grid", "diffusion", "profile", "time")
"""Kinds whose every component has claims about it."""

FILLED = ("profile", "time")
"""Kinds whose components mostly have required options, which are filled with values of their types."""

VALUES: tuple[Any, ...] = (-0.25, 0.5, 2.0, 1, 3, [0.25, 0.75], [-0.25, 0.5], True)
"""Values for required options: each takes one that its type and range accept, a later option a later one."""

POINTS = 1200
"""Equal parts of the progress at which a schedule is tried: the steps of every claim lie among them."""


PROFILES = 13
"""Progresses at which a schedule's profile is tried."""


def components(registry: Registry, kind: str) -> Iterator[tuple[str, Any]]:
    """(name, component) of a kind, with default options; those of ``FILLED`` with ``filled_options``.

    Others with a required option are left out, and so are broken ones: each of those has a failing claim
    (``gftkit_verification.claims.components.broken``), and doesn't stop the claims about others.
    """
    for name, options in _options_by_name(registry, kind):
        component = _create(registry, kind, name, options)
        if not isinstance(component, Exception):
            yield name, component


def each_registered(
    kind: str,
    where: Callable[[Any], bool] = lambda component: True,  # noqa: ARG005
) -> Callable[[Registry], Iterator[tuple[str, Any]]]:
    """``components`` of a kind for ``claim_for_each``, those alone that fulfil a condition."""
    return lambda registry: ((name, one) for name, one in components(registry, kind) if where(one))


def broken_components(registry: Registry) -> Iterator[tuple[str, str, Exception]]:
    """(kind, name, error) of the components of ``components`` that can't be made, or whose values are out of range.

    Components whose package isn't installed are not among them.
    """
    for kind in KINDS:
        for name, options in _options_by_name(registry, kind):
            component = _create(registry, kind, name, options)
            if isinstance(component, Exception) and not isinstance(component.__cause__, ImportError):
                yield kind, name, component


def filled_options(registry: Registry, kind: str, name: str) -> dict[str, Any] | None:
    """A value for each required option of a component, by its type and range; None where there is none.

    There is none for a file, or for text: those need to be about something.
    """
    filled: dict[str, Any] = {}
    for option in registry.component(kind, name).options.values():
        if not option.required or option.supplied:
            continue
        values = list(_nested(registry, option)) if option.kind else [one for one in VALUES if _accepts(option, one)]
        if not values:
            return None
        filled[option.name] = values[len(filled) % len(values)]
    return filled


def _nested(registry: Registry, option: Option) -> Iterator[dict[str, Any]]:
    """Components for an option that takes one: those that need none themselves."""
    assert option.kind is not None
    for name in registry.names(option.kind):
        known = registry.component(option.kind, name).options.values()
        if not any(one.required and one.kind for one in known):
            options = filled_options(registry, option.kind, name)
            if options is not None:
                yield {"name": name, **options}


def _accepts(option: Option, value: Any) -> bool:
    try:
        option.validate(value, option.name)
    except ConfigError:
        return False
    return not option.is_file


def _options_by_name(registry: Registry, kind: str) -> Iterator[tuple[str, dict[str, Any]]]:
    """The components of a kind that claims can be made about, and their options."""
    for name in registry.names(kind):
        options = filled_options(registry, kind, name)
        if options is not None and (not options or kind in FILLED):
            yield name, options


def _create(registry: Registry, kind: str, name: str, options: dict[str, Any]) -> Any:
    """A component, or the error for which there can be no other claim about it."""
    try:
        component = registry.create(kind, name, **options)
        if kind == "path":
            flow.is_noisy(component), flow.is_stochastic(component), flow.t_end(component)
        elif kind == "profile":
            check_profile(component, f"profile '{name}'")
        elif kind == "time":
            check_time_law(component, f"time '{name}'")
        elif kind == "schedule":
            for k in range(POINTS + 1):
                retention(float(component.temperature(k / POINTS)))
            for k in range(PROFILES):
                profile = profile_at(component, k, PROFILES - 1)
                if profile is not None:
                    check_profile(profile, f"schedule '{name}'")
    except Exception as error:
        return error
    return component
