"""Registered components that no other claim can be made about: each fails, and names the component."""

from collections.abc import Callable, Iterator

from torch import Generator

from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Claim, exact
from gftkit_verification.testbeds.components import broken_components


def claims(registry: Registry) -> Iterator[Claim]:
    """One for each broken component; none where all are sound."""
    for kind, name, why in broken_components(registry):
        yield Claim(
            name=f"{kind}-works-{name}",
            statement=(
                f"{kind.capitalize()} {name} can be made with its default options, and gives what a {kind} may give."
            ),
            reference="theory, section 0",
            subject=name,
            measure=_raising(why),
            bound=exact(),
            mutants={"no such component": "", "another name": f"not-{name}"},
            conditions="Every other claim leaves it out.",
            component=f"{kind}:{name}",
            seeds=1,
        )


def _raising(why: Exception) -> Callable[[str, Generator], float]:
    def measure(name: str, generator: Generator) -> float:  # noqa: ARG001
        raise why

    return measure
