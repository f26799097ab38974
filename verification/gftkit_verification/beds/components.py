"""The registered components that a claim is made about, whoever gave them."""

from collections.abc import Iterator
from typing import Any

from gftkit.registry import Registry


def components(registry: Registry, kind: str) -> Iterator[tuple[str, Any]]:
    """(name, component) of a kind, with default options; left out are those with an option that must be given."""
    for name in registry.names(kind):
        options = registry.component(kind, name).options.values()
        if not any(option.required for option in options):
            yield name, registry.create(kind, name)
