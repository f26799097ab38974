"""The registry: loads plugins, refuses clashes, creates and describes components."""

import inspect
import os
import re
import traceback
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from importlib.metadata import Distribution, EntryPoint, entry_points
from pathlib import Path
from typing import Any

import pluggy

from gftkit.contracts import CONTRACTS
from gftkit.errors import ConfigError, GftkitError, PluginError, UnknownNameError, unknown
from gftkit.hooks import KINDS, PROJECT, Hooks
from gftkit.options import Option, check_known, options_of
from gftkit.subset import SUBSET_OPTIONS, subset

BLOCK_VARIABLE = "GFTKIT_BLOCK"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


@dataclass(frozen=True)
class Origin:
    """Where a component comes from: plugin name, distribution and its version ("" for a plain object)."""

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
    """What a component is: for ``gft plugins show`` and the reference docs."""

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
        options = [
            {
                "name": option.name,
                "type": option.type_text,
                "required": option.required and not option.supplied,
                "default": None if option.required else plain(option.default),
                "supplied": option.supplied,
                "help": option.help,
            }
            for option in self.options
        ]
        return {**{key: value for key, value in asdict(self).items() if key != "options"}, "options": options}


class Registry:
    """Components by kind and name. Made by ``gftkit.load``; there is no global one."""

    def __init__(self, components: Mapping[tuple[str, str], Component], plugins: Sequence[Plugin]) -> None:
        self._components = dict(components)
        self.plugins = tuple(plugins)

    def kinds(self) -> tuple[str, ...]:
        """Every kind of component."""
        return KINDS

    def names(self, kind: str) -> tuple[str, ...]:
        """The names registered for a kind, sorted.

        Raises:
            UnknownNameError: for an unknown kind.
        """
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
            hints = [f"{plugin.origin} may give it but failed to load: {plugin.error}." for plugin in failed]
            hints += [f"{plugin.origin} is blocked." for plugin in blocked]
            raise unknown(
                kind if where in ("", kind) else f"{kind} at {where}:", name, self.names(kind), " ".join(hints)
            )
        return self._components[kind, name]

    def describe(self, kind: str, name: str) -> Description:
        """Docstring, typed options with defaults, plugin, distribution and version of a component.

        Raises:
            UnknownNameError: for an unknown kind or name.
        """
        found = self.component(kind, name)
        origin = found.origin
        return Description(
            kind,
            name,
            inspect.getdoc(found.factory) or "",
            tuple(self.options(found).values()),
            origin.plugin,
            origin.distribution,
            origin.version,
        )

    def options(self, component: Component) -> dict[str, Option]:
        """A component's own options and those that the kernel adds to every component of its kind."""
        added = SUBSET_OPTIONS if component.kind == "dataset" else {}
        return {**{key: option for key, option in added.items() if key not in component.options}, **component.options}

    def create(self, kind: str, name: str, **options: Any) -> Any:
        """A component, with its options checked.

        An option that takes a component is given as one, or as ``{"name": ..., **options}``.

        Raises:
            UnknownNameError: for an unknown kind, name or option.
            ConfigError: for an option that is missing, of the wrong type, out of range, or refused by the factory.
            PluginError: where the factory's result doesn't meet its kind's contract.
        """
        return self.build(kind, {"name": name, **options})

    def resolve(self, kind: str, spec: Mapping[str, Any], where: str = "", base: Path | None = None) -> dict[str, Any]:
        """``spec`` with every option checked and every default filled in; relative paths start at ``base``.

        Options that the kernel supplies are left out unless given.

        Raises:
            UnknownNameError: for an unknown name or option.
            ConfigError: for an option that is missing, of the wrong type or out of range.
        """
        where = where or kind
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise ConfigError(f"{where}: wanted {{name: ...}} with the name of a {kind}, got {spec!r}.")
        name = spec["name"]
        known = self.options(self.component(kind, name, where))
        given = {key: value for key, value in spec.items() if key != "name"}
        check_known(given, known, f"{where} '{name}'")
        resolved: dict[str, Any] = {"name": name}
        for option in known.values():
            key = f"{where}.{option.name}"
            if option.name not in given:
                if option.supplied:
                    continue
                if option.required:
                    raise ConfigError(f"{key} is missing: {kind} '{name}' wants it ({option.type_text}).")
                value = option.default
            else:
                value = given[option.name]
            if option.kind and isinstance(value, Mapping):
                resolved[option.name] = self.resolve(option.kind, value, key, base)
            elif option.name in given:
                value = option.validate(value, key)
                if option.is_file and isinstance(value, Path) and base is not None:
                    value = base / value
                resolved[option.name] = value
            else:
                resolved[option.name] = value
        return resolved

    def build(
        self, kind: str, spec: Mapping[str, Any], where: str = "", base: Path | None = None, **supplied: Any
    ) -> Any:
        """A component from ``{name: ..., **options}``; ``supplied`` goes to factories that ask for it.

        Raises:
            UnknownNameError: for an unknown name or option.
            ConfigError: for an option that is missing, of the wrong type, out of range, or refused by the factory.
            PluginError: where the factory's result doesn't meet its kind's contract.
        """
        where = where or kind
        resolved = self.resolve(kind, spec, where, base)
        found = self.component(kind, resolved.pop("name"))
        for option in found.options.values():
            if option.supplied and option.name not in resolved and supplied.get(option.name) is not None:
                resolved[option.name] = supplied[option.name]
            elif option.supplied and option.required and option.name not in resolved:
                raise ConfigError(
                    f"{where}.{option.name} is missing: nothing here tells it to {kind} '{found.name}'; give it."
                )
            if option.kind and isinstance(resolved.get(option.name), Mapping):
                nested = resolved[option.name]
                resolved[option.name] = self.build(option.kind, nested, f"{where}.{option.name}", None, **supplied)
        selection = {key: resolved.pop(key) for key in list(resolved) if key not in found.options}
        try:
            made = found.factory(**resolved)
            if selection and any(selection[key] != SUBSET_OPTIONS[key].default for key in selection):
                made = subset(made, **selection)
        except GftkitError as error:
            raise type(error)(f"{where}: {error}") from error
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"{where} ({kind} '{found.name}'): {error}") from error
        if not isinstance(made, tuple(CONTRACTS[kind])):
            wanted = " or ".join(contract.__name__ for contract in CONTRACTS[kind])
            raise PluginError(
                f"{kind} '{found.name}' of {found.origin} gave a {type(made).__name__}, which isn't a {wanted} "
                f"(see gftkit.contracts)."
            )
        return made


def plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)


def load(
    plugins: Mapping[str, object] | Iterable[object] = (), block: Iterable[str] = (), strict: bool = False
) -> Registry:
    """Load every plugin: the entry points of group ``gftkit``, then the objects in ``plugins``.

    Args:
        plugins: more plugins, as modules or objects, by name or named after themselves.
        block: names of plugins not to load, built-ins too; ``GFTKIT_BLOCK=a,b`` in the environment adds to them.
        strict: raise where a plugin fails to load, instead of recording it in ``Registry.plugins``.

    Raises:
        PluginError: for a misspelt hook, two plugins of one name, one component registered twice, a factory whose
            options can't be checked, and with ``strict`` for a plugin that fails to load.

    Example:
        >>> import gftkit
        >>> registry = gftkit.load()
        >>> registry.create("schedule", "exponential").temperature(0.0)
        4.0
    """
    blocked = {*block, *filter(None, os.environ.get(BLOCK_VARIABLE, "").split(","))}
    manager = pluggy.PluginManager(PROJECT)
    manager.add_hookspecs(Hooks)
    found: list[Plugin] = []
    components: dict[tuple[str, str], Component] = {}
    for origin, source in _sources(plugins):
        if origin.plugin in blocked:
            found.append(Plugin(origin, "blocked"))
            continue
        try:
            plugin = source.load() if isinstance(source, EntryPoint) else source
            _register(manager, plugin, origin)
            given = list(_components_of(manager, plugin, origin))
        except PluginError:
            raise
        except (Exception, SystemExit) as error:  # a module may be a script that exits
            if strict:
                raise PluginError(f"{origin} failed to load: {type(error).__name__}: {error}") from error
            found.append(Plugin(origin, "failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
            continue
        for component in given:
            key = component.kind, component.name
            if key in components:
                raise PluginError(
                    f"{component.kind} '{component.name}' is registered twice: by {components[key].origin} and by "
                    f"{origin}. Block one of them ({BLOCK_VARIABLE}=NAME) or uninstall it."
                )
            components[key] = component
        found.append(Plugin(origin, "loaded"))
    return Registry(components, found)


def _sources(plugins: Mapping[str, object] | Iterable[object]) -> list[tuple[Origin, object]]:
    """Every plugin there is, each with its origin; two of one name are refused."""
    sources: list[tuple[Origin, object]] = []
    for point in sorted(entry_points(group=PROJECT), key=lambda point: point.name):
        distribution: Distribution | None = point.dist
        name, version = (distribution.name, distribution.version) if distribution else ("", "")
        sources.append((Origin(point.name, name, version), point))
    named = plugins.items() if isinstance(plugins, Mapping) else [(_name_of(plugin), plugin) for plugin in plugins]
    sources += [(Origin(name), plugin) for name, plugin in named]
    unique: dict[str, tuple[Origin, object]] = {}
    for origin, source in sources:
        if origin.plugin in unique:
            other, same = unique[origin.plugin]
            if isinstance(source, EntryPoint) and source == same and origin == other:
                continue  # one distribution that the import path shows twice
            raise PluginError(
                f"two plugins are named '{origin.plugin}': one from {other.distribution or 'an object'} and one from "
                f"{origin.distribution or 'an object'}. Uninstall one, or rename its entry point."
            )
        unique[origin.plugin] = origin, source
    return list(unique.values())


def _name_of(plugin: object) -> str:
    return getattr(plugin, "__name__", type(plugin).__name__)


def _register(manager: pluggy.PluginManager, plugin: object, origin: Origin) -> None:
    """Register one plugin, and refuse hooks that are misspelt or not marked."""
    hooks = {f"{PROJECT}_{kind}s" for kind in KINDS}
    manager.register(plugin, origin.plugin)
    implemented = {caller.name for caller in manager.get_hookcallers(plugin) or []}
    for name, _ in inspect.getmembers(plugin, callable):
        if not name.startswith(f"{PROJECT}_") or name in implemented & hooks:
            continue
        if name in hooks:
            raise PluginError(f"{origin}: '{name}' is not marked. Put @gftkit.hookimpl above it.")
        try:
            raise unknown("hook", name, hooks)
        except UnknownNameError as error:
            raise PluginError(f"{origin}: {error}") from None
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{origin}: {error}") from None
    if not implemented:
        raise PluginError(f"{origin} implements no hook. Known: {', '.join(sorted(hooks))}.")


def _components_of(manager: pluggy.PluginManager, plugin: object, origin: Origin) -> Iterable[Component]:
    """Ask one plugin alone for its components, so that each knows where it comes from."""
    others = [other for other in manager.get_plugins() if other is not plugin]
    for kind in KINDS:
        hook = f"{PROJECT}_{kind}s"
        for factories in manager.subset_hook_caller(hook, others)():
            if not isinstance(factories, Mapping):
                raise PluginError(f"{origin}: {hook} gave {factories!r}; wanted a mapping from name to factory.")
            for name, factory in factories.items():
                who = f"{kind} '{name}' of {origin}"
                if not (isinstance(name, str) and _NAME.fullmatch(name)):
                    raise PluginError(f"{who}: names are lower case letters, digits and single hyphens.")
                if not callable(factory):
                    raise PluginError(f"{who}: wanted a class or function, got {factory!r}.")
                yield Component(kind, name, factory, options_of(factory, who), origin)
