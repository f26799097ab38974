"""Claims declared by a decorator on their measurement, and collected from the modules that hold them.

A declaration is read when a module is imported; a ``Claim`` is made of it when claims are asked for, since what it
measures may be a component of the registry. There is no list to keep: ``claims_of`` looks through a package.

Example:
    >>> from gftkit.theory.objective import retention
    >>> from gftkit.verify import exact
    >>> @claim(
    ...     "mine-retention",
    ...     statement="rho (1 + beta) = beta.",
    ...     reference="theory, section 0",
    ...     subject=retention,
    ...     bound=exact(1e-12),
    ...     mutants={"1/(1 + beta)": lambda beta: 1 / (1 + beta), "beta": lambda beta: beta},
    ... )
    ... def retained_share(share, generator):
    ...     return max(abs(share(beta) * (1 + beta) - beta) for beta in (0.1, 1.0, 10.0))
    >>> retained_share(retention, None) < 1e-12
    True
"""

import inspect
import pkgutil
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial
from importlib import import_module
from importlib.util import find_spec
from types import ModuleType
from typing import Any, TypeVar

from gftkit.kernel.errors import GftkitError
from gftkit.kernel.registry import Registry
from gftkit.verify.claims import Bound, Claim, Measurement, Profile

Measure = TypeVar("Measure", bound=Callable[..., float | Measurement])
Text = str | Callable[[Any], str]
"""Words, where ``{name}`` stands for the item's name, or a function of the item that gives them."""

_DECLARED = "__declared_claims__"


@dataclass(frozen=True)
class FromRegistry:
    """A value that is made when claims are collected, from the registry that they are about.

    Args:
        make: registry -> value.
    """

    make: Callable[[Registry], Any]

    def then(self, change: Callable[[Any], Any]) -> "FromRegistry":
        """The result of a function of this value: ``registered("coupling", "independent").then(Pairing)``."""
        return FromRegistry(lambda registry: change(self.make(registry)))


REGISTRY = FromRegistry(lambda registry: registry)
"""The registry itself, for measurements that go through its components."""


def registered(kind: str, name: str, **options: Any) -> FromRegistry:
    """A component of the registry, made when claims are collected: ``registered("solver", "rk4")``."""
    return FromRegistry(lambda registry: registry.create(kind, name, **options))


def claim(  # noqa: PLR0913
    name: str,
    *,
    statement: str,
    reference: str,
    subject: Any,
    bound: Bound,
    mutants: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]],
    conditions: str = "",
    component: str = "",
    profile: Profile = "quick",
    seeds: int = 3,
    axes: tuple[str, str] | None = None,
    scales: tuple[str, str] = ("log", "log"),
    uses: Mapping[str, Any] | None = None,
    requires: str = "",
) -> Callable[[Measure], Measure]:
    """Declare a claim on its measurement, which stays the function that it is. The other arguments are ``Claim``'s.

    Args:
        subject: what is measured; may be ``registered``.
        mutants: name -> a wrong subject, which may be ``registered``; or a function of the subject that gives them.
        uses: further keyword arguments of the measurement; values may be ``registered``, or ``REGISTRY``.
        requires: a package without which the claim is left out.
    """

    def make(measure: Measure, registry: Registry) -> Iterator[Claim]:
        resolved = _resolve(subject, registry)
        yield Claim(
            name=name,
            statement=statement,
            reference=reference,
            subject=resolved,
            measure=_with(measure, uses, registry),
            bound=bound,
            mutants=_resolve_values(mutants(resolved) if callable(mutants) else mutants, registry),
            conditions=conditions,
            component=component,
            profile=profile,
            seeds=seeds,
            axes=axes,
            scales=scales,
        )

    return partial(_declare, name=name, make=make, requires=requires)


def claim_for_each(  # noqa: PLR0913
    items: Callable[[Registry], Iterable[tuple[str, Any]]],
    name: str,
    *,
    statement: Text,
    reference: str,
    bound: Bound,
    mutants: Mapping[str, Any] | Callable[[Any], Mapping[str, Any]],
    subject: Callable[[Any], Any] | None = None,
    conditions: Text = "",
    component: Text = "",
    profile: Profile = "quick",
    seeds: int = 3,
    axes: tuple[str, str] | None = None,
    scales: tuple[str, str] = ("log", "log"),
    uses: Mapping[str, Any] | None = None,
    item_as: str = "",
    requires: str = "",
) -> Callable[[Measure], Measure]:
    """Declare a family of claims on their common measurement: one for each item, such as each registered solver.

    Args:
        items: registry -> (name, item) pairs; gives nothing where there is nothing to claim.
        name: of the claims; ``{name}`` is the item's, as in every text here: "solver-ode-order-{name}".
        statement: or a function of the item, as in ``conditions`` and ``component``.
        mutants: name -> a wrong subject; or a function of the item that gives them.
        subject: item -> what is measured; by default the item itself.
        item_as: the measurement's keyword argument that takes the item; "" where it needs none.
    """

    def make(measure: Measure, registry: Registry) -> Iterator[Claim]:
        for item_name, item in items(registry):
            arguments = {**(uses or {}), item_as: item} if item_as else uses
            yield Claim(
                name=name.replace("{name}", item_name),
                statement=_written(statement, item_name, item),
                reference=reference,
                subject=_resolve(subject(item) if subject is not None else item, registry),
                measure=_with(measure, arguments, registry),
                bound=bound,
                mutants=_resolve_values(mutants(item) if callable(mutants) else mutants, registry),
                conditions=_written(conditions, item_name, item),
                component=_written(component, item_name, item),
                profile=profile,
                seeds=seeds,
                axes=axes,
                scales=scales,
            )

    return partial(_declare, name=name, make=make, requires=requires)


def claims_of(module: ModuleType, registry: Registry) -> Iterator[Claim]:
    """The claims that a module declares, and, of a package, those of every module in it.

    Args:
        module: a module or package; what is in a package is imported here.
        registry: what the claims are about.

    Raises:
        GftkitError: for a component that isn't registered, with the name of the claim that needs it.
    """
    for part in modules_of(module):
        for name, make in declared_in(part):
            try:
                yield from make(registry)
            except GftkitError as error:
                raise type(error)(f"claim '{name}': {error}") from error


def modules_of(module: ModuleType) -> Iterator[ModuleType]:
    """A module itself, and, of a package, every module in it, imported."""
    yield module
    # pkgutil.walk_packages would leave out a package that can't be imported, and its claims with it.
    for info in pkgutil.iter_modules(getattr(module, "__path__", ()), f"{module.__name__}."):
        yield from modules_of(import_module(info.name))


def declared_in(module: ModuleType) -> Iterator[tuple[str, Callable[[Registry], Iterable[Claim]]]]:
    """The declarations of one module: the claim's name, or its family's, and what makes the claims for a registry."""
    for value in vars(module).values():
        # A measurement that another module imports is declared once, where it is defined.
        if inspect.isfunction(value) and value.__module__ == module.__name__:
            yield from getattr(value, _DECLARED, ())


def _declare(
    measure: Measure, *, name: str, make: Callable[[Measure, Registry], Iterator[Claim]], requires: str
) -> Measure:
    """Put a declaration on a measurement.

    Raises:
        TypeError: for what ``claims_of`` wouldn't come across.
    """
    if not inspect.isfunction(measure) or "<locals>" in measure.__qualname__:
        raise TypeError(
            f"claim '{name}' is declared on {measure!r}; wanted a function of a module, since claims are collected by "
            f"looking through modules. Define the measurement at the top level, and let `uses` hand on what it needs."
        )

    def claims(registry: Registry) -> Iterable[Claim]:
        return () if requires and find_spec(requires) is None else make(measure, registry)

    vars(measure).setdefault(_DECLARED, []).append((name, claims))
    return measure


def _resolve(value: Any, registry: Registry) -> Any:
    return value.make(registry) if isinstance(value, FromRegistry) else value


def _resolve_values(values: Mapping[str, Any], registry: Registry) -> dict[str, Any]:
    return {name: _resolve(value, registry) for name, value in values.items()}


def _with(measure: Measure, uses: Mapping[str, Any] | None, registry: Registry) -> Callable[..., float | Measurement]:
    """The measurement with its further arguments filled in."""
    return partial(measure, **_resolve_values(uses, registry)) if uses else measure


def _written(text: Text, name: str, item: Any) -> str:
    return text(item) if callable(text) else text.replace("{name}", name)
