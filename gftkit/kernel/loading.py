"""Loading: find plugins, collect their components, and refuse clashes and broken ones."""

import inspect
import os
import re
import traceback
from collections.abc import Iterable, Mapping
from dataclasses import replace
from importlib.metadata import Distribution, EntryPoint, entry_points

import pluggy

from gftkit.kernel.errors import PluginError, unknown
from gftkit.kernel.hooks import CLAIMS, HOOKS, WRAPPERS, specifications
from gftkit.kernel.kinds import KINDS, PROJECT
from gftkit.kernel.options import options_of
from gftkit.kernel.registry import ClaimHook, Component, Origin, Plugin, Registry, Wrapper

BLOCK_VARIABLE = "GFTKIT_BLOCK"
_NAME = re.compile(r"[a-z0-9]+(-[a-z0-9]+)*")


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
    manager.add_hookspecs(specifications())  # type: ignore[arg-type]
    known: list[Plugin] = []
    components: dict[tuple[str, str], Component] = {}
    loaded: list[tuple[Origin, object]] = []
    for origin, source in _sources(plugins):
        if origin.plugin in blocked:
            known.append(Plugin(origin, "blocked"))
            continue
        try:
            plugin = source.load() if isinstance(source, EntryPoint) else source
            _register(manager, plugin, origin)
            contributed = list(_components_of(manager, plugin, origin))
        except PluginError as error:
            raise PluginError(f"{error} To go on without this plugin, set {BLOCK_VARIABLE}={origin.plugin}.") from error
        except (Exception, SystemExit) as error:  # a module may be a script that exits
            if strict:
                raise PluginError(f"{origin} failed to load: {type(error).__name__}: {error}") from error
            known.append(Plugin(origin, "failed", f"{type(error).__name__}: {error}", traceback.format_exc()))
            continue
        for component in contributed:
            key = component.kind, component.name
            if key in components:
                raise PluginError(
                    f"{component.kind} '{component.name}' is registered twice: by {components[key].origin} and by "
                    f"{origin}. Block one of them ({BLOCK_VARIABLE}=NAME) or uninstall it."
                )
            components[key] = component
        loaded.append((origin, plugin))
        known.append(Plugin(origin, "loaded"))
    claims: list[tuple[Origin, ClaimHook]] = [(origin, _caller(manager, plugin, CLAIMS)) for origin, plugin in loaded]
    return Registry(components, known, claims, _wrappers_of(manager, loaded))


def _sources(plugins: Mapping[str, object] | Iterable[object]) -> list[tuple[Origin, object]]:
    """Every plugin there is, each with its origin; two of one name are refused."""
    sources: list[tuple[Origin, object]] = []
    for point in sorted(entry_points(group=PROJECT), key=lambda point: point.name):
        distribution: Distribution | None = point.dist
        name, version = (distribution.name, distribution.version) if distribution else ("", "")
        # A library may have put the backport importlib_metadata in the place of Python's own: its points are others.
        sources.append((Origin(point.name, name, version), EntryPoint(point.name, point.value, point.group)))
    named = (
        plugins.items()
        if isinstance(plugins, Mapping)
        else [(getattr(p, "__name__", type(p).__name__), p) for p in plugins]
    )
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


def _register(manager: pluggy.PluginManager, plugin: object, origin: Origin) -> None:
    """Register one plugin, and refuse hooks that are misspelt or not marked."""
    hooks = set(HOOKS)
    manager.register(plugin, origin.plugin)
    implemented = {caller.name for caller in manager.get_hookcallers(plugin) or []}
    for name, _ in inspect.getmembers(plugin, callable):
        if not name.startswith(f"{PROJECT}_") or name in implemented & hooks:
            continue
        if name in hooks:
            raise PluginError(f"{origin}: '{name}' is not marked. Put @gftkit.hookimpl above it.")
        raise PluginError(f"{origin}: {unknown('hook', name, hooks)}")
    try:
        manager.check_pending()
    except pluggy.PluginValidationError as error:
        raise PluginError(f"{origin}: {error}") from None
    if not implemented:
        raise PluginError(f"{origin} implements no hook. Known: {', '.join(sorted(hooks))}.")


def _components_of(manager: pluggy.PluginManager, plugin: object, origin: Origin) -> Iterable[Component]:
    """Ask one plugin alone for its components, so that each knows where it comes from."""
    for kind in KINDS.values():
        for factories in _caller(manager, plugin, kind.hook)():
            if not isinstance(factories, Mapping):
                raise PluginError(f"{origin}: {kind.hook}: wanted a mapping from name to factory, got {factories!r}.")
            for name, factory in factories.items():
                who = f"{kind.name} '{name}' of {origin}"
                if not (isinstance(name, str) and _NAME.fullmatch(name)):
                    raise PluginError(f"{who}: names are lower case letters, digits and single hyphens.")
                if not callable(factory):
                    raise PluginError(f"{who}: wanted a class or function, got {factory!r}.")
                yield Component(kind.name, name, factory, options_of(factory, who), origin)


def _wrappers_of(manager: pluggy.PluginManager, loaded: Iterable[tuple[Origin, object]]) -> dict[str, Wrapper]:
    """The wrapper of each kind that has one: one plugin's at most."""
    wrappers: dict[str, Wrapper] = {}
    for hook, kind in WRAPPERS.items():
        for origin, plugin in loaded:
            for wrap in _caller(manager, plugin, hook)():
                if kind in wrappers:
                    both = f"by {wrappers[kind].origin} and by {origin}"
                    raise PluginError(f"{hook} is implemented twice: {both}. Block one: {BLOCK_VARIABLE}=NAME.")
                _, *options = options_of(wrap, f"{hook} of {origin}").values()
                added = {option.name: replace(option, supplied=False) for option in options}
                wrappers[kind] = Wrapper(wrap, added, origin)
    return wrappers


def _caller(manager: pluggy.PluginManager, plugin: object, hook: str) -> pluggy.HookCaller:
    """One hook of one plugin alone."""
    return manager.subset_hook_caller(hook, [other for other in manager.get_plugins() if other is not plugin])
