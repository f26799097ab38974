"""Settings put into a configuration before it is resolved: ``--set a.b=c``."""

from collections.abc import Mapping
from typing import Any

from gftkit.kernel.errors import ConfigError
from gftkit.storage.documents import parse_yaml


def override(raw: dict[str, Any], setting: str) -> dict[str, Any]:
    """A copy of a configuration with one ``a.b=c`` put in.

    Raises:
        ConfigError: where it isn't of that form, or a.b lies inside something that isn't a mapping.
    """
    path, equals, text = setting.partition("=")
    if not equals or not all(path.strip().split(".")):
        raise ConfigError(f"--set {setting}: wanted a.b=c, e.g. --set train.steps=100.")
    return put(raw, path.strip(), parse_yaml(text, f"--set {setting}"), f"--set {setting}")


def put(raw: Mapping[str, Any], path: str, value: Any, where: str) -> dict[str, Any]:
    """A copy of a configuration with a value at ``a.b``.

    Args:
        raw: a configuration as it is written.
        path: the keys that lead there, joined by dots.
        value: to put there.
        where: the option or key that sets it, for errors.

    Raises:
        ConfigError: where a.b lies inside something that isn't a mapping.
    """
    keys = path.split(".")
    changed = dict(raw)
    inner = changed
    for depth, key in enumerate(keys[:-1], 1):
        below = as_spec(inner.get(key, {}))
        if not isinstance(below, Mapping):
            raise ConfigError(f"{where}: {'.'.join(keys[:depth])} is {below!r}, not a mapping.")
        inner[key] = inner = dict(below)
    inner[keys[-1]] = value
    return changed


def as_spec(value: Any) -> Any:
    """The spec of a bare name, which is a component without options; other values as they are."""
    return {"name": value} if isinstance(value, str) else value
