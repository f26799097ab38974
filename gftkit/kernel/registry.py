"""The registry: loads plugins, refuses clashes, creates and describes components."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from gftkit.kernel.errors import ConfigError, GftkitError, PluginError, unknown
from gftkit.kernel.kinds import KINDS
from gftkit.kernel.options import Option, check_known

Spec = dict[str, Any]
"""A component as a configuration writes it: ``{name: ..., **options}``."""
ClaimHook = Callable[..., Sequence[Any]]
"""One plugin's hook for claims: the registry -> what each implementation gave."""


@dataclass(frozen=True)
class Origin:
    """The origin of a component: plugin name, distribution and its version ("" for a plain object)."""

    plugin: str
    distribution: str = ""
    version: str = ""

    def __str__(self) -> str:
        return f"plugin '{self.plugin}'" + (f" of {self.distribution} {self.version}" if self.distribution else "")


@dataclass(frozen=True)
class Plugin:
    """A plugin that was found: loaded, blocked, or failed with ``error``."""

    origin: Origin
    status: str
    error: str = ""
    traceback: str = ""


@dataclass(frozen=True)
class Component:
    """A registered factory."""

    kind: str
    name: str
    factory: Callable[..., Any]
    options: Mapping[str, Option]
    origin: Origin


@dataclass(frozen=True)
class Description:
    """The description of a component, for ``gft plugins show`` and the reference docs."""

    kind: str
    name: str
    doc: str
    options: tuple[Option, ...]
    plugin: str
    distribution: str
    version: str

    @property
    def summary(self) -> str:
        """The first line of the docstring."""
        return self.doc.split("\n", 1)[0]

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        own = {key: value for key, value in asdict(self).items() if key != "options"}
        return {**own, "options": [option.to_dict() for option in self.options]}


@dataclass(frozen=True)
class Wrapper:
    """Options that a plugin adds to every component of a kind, and ``wrap``: (component, **options) -> component."""

    wrap: Callable[..., Any]
    options: Mapping[str, Option]
    origin: Origin


class Resolved(dict[str, Any]):
    """A spec that was resolved: every option is checked and filled in, and it isn't resolved again."""


class Registry:
    """Components by kind and name. Made by ``gftkit.load``; there is no global one."""

    def __init__(
        self,
        components: Mapping[tuple[str, str], Component],
        plugins: Sequence[Plugin],
        claims: Sequence[tuple[Origin, ClaimHook]] = (),
        wrappers: Mapping[str, Wrapper] | None = None,
    ) -> None:
        self._components = dict(components)
        self.plugins = tuple(plugins)
        self.claim_hooks = tuple(claims)
        self._wrappers = dict(wrappers or {})

    def kinds(self) -> tuple[str, ...]:
        """Every kind of component."""
        return tuple(KINDS)

    def names(self, kind: str) -> tuple[str, ...]:
        """The names registered for a kind, sorted; raises an UnknownNameError for an unknown kind."""
        if kind not in KINDS:
            raise unknown("kind", kind, KINDS)
        return tuple(sorted(name for of, name in self._components if of == kind))

    def component(self, kind: str, name: str, where: str = "") -> Component:
        """The component of this kind and name.

        Raises:
            UnknownNameError: with the nearest name, and the plugins that failed to load and may have given it.
        """
        if name not in self.names(kind):
            failed = [plugin for plugin in self.plugins if plugin.status == "failed"]
            blocked = [plugin for plugin in self.plugins if plugin.status == "blocked"]
            hints = [f"{plugin.origin} may provide it but failed to load: {plugin.error}." for plugin in failed]
            hints += [f"{plugin.origin} is blocked." for plugin in blocked]
            what = kind if where in ("", kind) else f"{kind} at {where}:"
            raise unknown(what, name, self.names(kind), " ".join(hints))
        return self._components[kind, name]

    def describe(self, kind: str, name: str) -> Description:
        """Docstring, typed options with defaults, and origin of a component; raises as ``component``."""
        component = self.component(kind, name)
        options = tuple(self.options(component).values())
        return Description(kind, name, inspect.getdoc(component.factory) or "", options, **asdict(component.origin))

    def options(self, component: Component) -> dict[str, Option]:
        """A component's own options and those that are added to every component of its kind."""
        own = component.options
        return {key: option for key, option in self.added_options(component.kind).items() if key not in own} | {**own}

    def added_options(self, kind: str) -> Mapping[str, Option]:
        """The options that a wrapper adds to every component of a kind; none where the kind has no wrapper."""
        return self._wrappers[kind].options if kind in self._wrappers else {}

    def create(self, kind: str, name: str, **options: Any) -> Any:
        """A component, with its options checked.

        An option that takes a component is given as one, or as ``{"name": ..., **options}``. Raises as ``build``.
        """
        return self.build(kind, {"name": name, **options})

    def resolve(self, kind: str, spec: Mapping[str, Any] | str, where: str = "", base: Path | None = None) -> Resolved:
        """``spec`` with every option checked and every default filled in; relative paths start at ``base``.

        A bare name stands for a component without options. Options that the kernel supplies are left out unless given.
        A factory with a class method ``resolve(options)`` completes them: what it reads from files is then part of
        the run's configuration.

        Raises:
            UnknownNameError: for an unknown name or option.
            ConfigError: for an option that is missing, of the wrong type or out of range.
        """
        if isinstance(spec, Resolved):
            return spec
        where = where or kind
        spec = {"name": spec} if isinstance(spec, str) else spec
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise ConfigError(f"{where}: wanted the name of a {kind}, or {{name: ...}} with options, got {spec!r}.")
        name = spec["name"]
        component = self.component(kind, name, where)
        known = self.options(component)
        values = {key: value for key, value in spec.items() if key != "name"}
        supplied = [option.name for option in known.values() if option.supplied]
        check_known(values, [*known, "name"], f"{where} '{name}'", unlisted=supplied)
        resolved: dict[str, Any] = {}
        for option in known.values():
            key = f"{where}.{option.name}"
            stated = option.name in values
            if option.supplied and not stated:
                continue
            if option.required and not stated:
                raise ConfigError(f"{key} is missing: {kind} '{name}' requires it ({option.type_text}).")
            value = values.get(option.name, option.default)
            if option.kind and isinstance(value, (Mapping, str)):
                resolved[option.name] = self.resolve(option.kind, value, key, base)
                continue
            value = option.validate(value, key) if stated else value
            if option.is_file and isinstance(value, Path) and base is not None:
                value = base / value
            resolved[option.name] = value
        complete = getattr(component.factory, "resolve", None)
        return Resolved({"name": name} | (resolved if complete is None else complete({"name": name, **resolved})))

    def build(
        self, kind: str, spec: Mapping[str, Any] | str, where: str = "", base: Path | None = None, **supplied: Any
    ) -> Any:
        """A component from ``{name: ..., **options}``; ``supplied`` goes to factories that ask for it.

        Raises:
            UnknownNameError: for an unknown name or option.
            ConfigError: for an option that is missing, of the wrong type, out of range, or refused by the factory.
            PluginError: where the factory's result doesn't meet its kind's contract.
        """
        where = where or kind
        resolved = self.resolve(kind, spec, where, base)
        component = self.component(kind, resolved["name"])
        options = {key: value for key, value in resolved.items() if key != "name"}
        for option in component.options.values():
            if option.supplied and option.name not in options and supplied.get(option.name) is not None:
                options[option.name] = supplied[option.name]
            elif option.supplied and option.required and option.name not in options:
                raise ConfigError(f"{where}.{option.name} is missing, and there are no data to take it from. State it.")
            if option.kind and isinstance(options.get(option.name), Mapping):
                nested = options[option.name]
                options[option.name] = self.build(option.kind, nested, f"{where}.{option.name}", None, **supplied)
        added = {key: options.pop(key) for key in list(options) if key not in component.options}
        try:
            built = component.factory(**options)
            if any(value != self.added_options(kind)[key].default for key, value in added.items()):
                built = self._wrappers[kind].wrap(built, **added)
        except GftkitError as error:
            raise error if where == kind else type(error)(f"{where}: {error}") from error  # names the key if nested
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"{where} ({kind} '{component.name}'): {error}") from error
        contracts = KINDS[kind].contracts
        if not isinstance(built, contracts):
            wanted = " or ".join(contract.__name__ for contract in contracts)
            raise PluginError(
                f"{kind} '{component.name}' of {component.origin} made a {type(built).__name__}, which isn't a "
                f"{wanted} (see gftkit.kernel.contracts)."
            )
        return built
