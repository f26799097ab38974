"""Registered components that no other claim can be made about: each fails, and names the component."""

from collections.abc import Iterator
from dataclasses import dataclass

from torch import Generator

from gftkit.kernel.registry import Registry
from gftkit.verify.claims import exact
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.testbeds.components import broken_components


@dataclass(frozen=True)
class Broken:
    """A component that can't be made, or whose values are out of range, and the error."""

    kind: str
    name: str
    error: Exception


def _broken(registry: Registry) -> Iterator[tuple[str, Broken]]:
    for kind, name, error in broken_components(registry):
        yield f"{kind}-works-{name}", Broken(kind, name, error)


@claim_for_each(
    _broken,
    "{name}",
    statement=lambda broken: (
        f"{broken.kind.capitalize()} {broken.name} can be made with its default options, and gives what a "
        f"{broken.kind} may give."
    ),
    reference="theory, section 0",
    subject=lambda broken: broken.name,
    bound=exact(),
    mutants=lambda broken: {"no such component": "", "another name": f"not-{broken.name}"},
    conditions="Every other claim leaves it out.",
    component=lambda broken: f"{broken.kind}:{broken.name}",
    seeds=1,
    item_as="broken",
)
def component_works(name: str, generator: Generator, *, broken: Broken) -> float:  # noqa: ARG001
    """Nothing can be measured.

    Raises:
        Exception: the component's own.
    """
    raise broken.error
