"""The registry: loads plugins, refuses clashes, creates and describes components."""

import inspect
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from gftkit.contracts import CONTRACTS
from gftkit.errors import ConfigError, GftkitError, PluginError, unknown
from gftkit.hooks import KINDS
from gftkit.options import Option, check_known
from gftkit.subset import SUBSET_OPTIONS, subset

if TYPE_CHECKING:
    from gftkit.claims import Claim

ClaimHook = Callable[..., Sequence[Any]]
"""One plugin's hook for claims: the registry -> what each implementation gave."""


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
        own = {key: value for key, value in asdict(self).items() if key != "options"}
        return {**own, "options": [described(option) for option in self.options]}


class Registry:
    """Components by kind and name. Made by ``gftkit.load``; there is no global one."""

    def __init__(
        self,
        components: Mapping[tuple[str, str], Component],
        plugins: Sequence[Plugin],
        claims: Sequence[tuple[Origin, ClaimHook]] = (),
    ) -> None:
        self._components = dict(components)
        self.plugins = tuple(plugins)
        self._claims = tuple(claims)

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

    def claims(self) -> "tuple[Claim, ...]":
        """Every plugin's claims about this registry, sorted by name. Plugins are asked anew at each call.

        Raises:
            PluginError: for a plugin whose claims can't be made, what isn't a claim, or two of one name.
        """
        from gftkit.claims import Claim

        found: dict[str, tuple[Claim, Origin]] = {}
        for origin, hook in self._claims:
            try:
                given = [claim for each in hook(registry=self) for claim in each]
            except Exception as error:
                raise PluginError(f"{origin}: its claims can't be made: {type(error).__name__}: {error}") from error
            for claim in given:
                if not isinstance(claim, Claim):
                    raise PluginError(f"{origin}: gftkit_claims gave {claim!r}; wanted gftkit.claims.Claim objects.")
                if claim.name in found:
                    raise PluginError(
                        f"claim '{claim.name}' is made twice: by {found[claim.name][1]} and by {origin}. Rename one."
                    )
                found[claim.name] = claim, origin
        return tuple(claim for _, (claim, _) in sorted(found.items()))

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

    def resolve(
        self, kind: str, spec: Mapping[str, Any] | str, where: str = "", base: Path | None = None
    ) -> dict[str, Any]:
        """``spec`` with every option checked and every default filled in; relative paths start at ``base``.

        A bare name stands for a component without options. Options that the kernel supplies are left out unless given.
        A factory with a class method ``resolve(options)`` completes them: what it reads from files then stands in the
        run's configuration.

        Raises:
            UnknownNameError: for an unknown name or option.
            ConfigError: for an option that is missing, of the wrong type or out of range.
        """
        where = where or kind
        spec = {"name": spec} if isinstance(spec, str) else spec
        if not isinstance(spec, Mapping) or not isinstance(spec.get("name"), str):
            raise ConfigError(f"{where}: wanted the name of a {kind}, or {{name: ...}} with options, got {spec!r}.")
        name = spec["name"]
        component = self.component(kind, name, where)
        known = self.options(component)
        given = {key: value for key, value in spec.items() if key != "name"}
        supplied = [option.name for option in known.values() if option.supplied]
        check_known(given, [*known, "name"], f"{where} '{name}'", unlisted=supplied)
        resolved: dict[str, Any] = {"name": name}
        for option in known.values():
            key = f"{where}.{option.name}"
            if option.name not in given:
                if option.supplied:
                    continue
                if option.required:
                    raise ConfigError(f"{key} is missing: {kind} '{name}' wants it ({option.type_text}).")
                value = option.default
                if option.is_file and isinstance(value, Path) and base is not None:
                    value = base / value
            else:
                value = given[option.name]
            if option.kind and isinstance(value, (Mapping, str)):
                resolved[option.name] = self.resolve(option.kind, value, key, base)
            elif option.name in given:
                value = option.validate(value, key)
                if option.is_file and isinstance(value, Path) and base is not None:
                    value = base / value
                resolved[option.name] = value
            else:
                resolved[option.name] = value
        complete = getattr(component.factory, "resolve", None)
        return resolved if complete is None else {"name": name, **complete(resolved)}

    def without_files(self, kind: str, spec: Mapping[str, Any]) -> dict[str, Any]:
        """A resolved ``spec`` without the options that name files, nested components included: what it is anywhere."""
        known = self.options(self.component(kind, spec["name"]))
        return {
            key: self.without_files(known[key].kind or "", value)
            if key in known and known[key].kind and isinstance(value, Mapping)
            else value
            for key, value in spec.items()
            if key not in known or not known[key].is_file
        }

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
            raise error if where == kind else type(error)(f"{where}: {error}") from error
        except (ValueError, ImportError, OSError) as error:
            raise ConfigError(f"{where} ({kind} '{found.name}'): {error}") from error
        if not isinstance(made, tuple(CONTRACTS[kind])):
            wanted = " or ".join(contract.__name__ for contract in CONTRACTS[kind])
            raise PluginError(
                f"{kind} '{found.name}' of {found.origin} gave a {type(made).__name__}, which isn't a {wanted} "
                f"(see gftkit.contracts)."
            )
        return made


def described(option: Option) -> dict[str, Any]:
    """An option as plain values, for JSON."""
    return {
        "name": option.name,
        "type": option.type_text,
        "required": option.required and not option.supplied,
        "default": None if option.required else plain(option.default),
        "supplied": option.supplied,
        "help": option.help,
    }


def plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
