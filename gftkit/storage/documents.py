"""Text, JSON and YAML files."""

import json
import math
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any, TypeVar

import yaml

from gftkit.kernel.errors import ConfigError, RunError
from gftkit.kernel.options import check_known, options_of
from gftkit.storage.files import explain_file_errors, write_atomically


def write_text(path: Path, text: str) -> None:
    """Write a text file, whole or not at all."""

    def write(temporary: Path) -> None:
        temporary.write_text(text, encoding="utf-8")

    write_atomically(path, write)


def write_json(path: Path, value: Any) -> None:
    """Write JSON; a number that is not finite becomes null, since JSON has none."""
    write_text(path, json.dumps(nan_to_none(value), indent=2, allow_nan=False) + "\n")


def read_json(path: Path) -> Any:
    """A JSON file.

    Raises:
        RunError: where it is missing or damaged.
    """
    with explain_file_errors(path, "read"):
        text = path.read_text(encoding="utf-8")
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise RunError(f"{path} is damaged: {error}.") from None


def nan_to_none(value: Any) -> Any:
    """The value with nan and infinities replaced by None."""
    if isinstance(value, Mapping):
        return {key: nan_to_none(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [nan_to_none(inner) for inner in value]
    return None if isinstance(value, float) and not math.isfinite(value) else value


T = TypeVar("T")


class _Loader(yaml.SafeLoader):
    """YAML in which ``1e-3`` is a number and a key may stand once, as in YAML 1.2."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Any, Any]:  # noqa: FBT001, FBT002
        """The mapping, with keys that stand twice refused."""
        keys = [(key.tag, key.value) for key, _ in node.value if isinstance(key, yaml.ScalarNode)]
        twice = {value for tag, value in keys if tag != "tag:yaml.org,2002:merge" and keys.count((tag, value)) > 1}
        if twice:
            raise yaml.constructor.ConstructorError(None, None, f"'{min(twice)}' occurs twice", node.start_mark)
        return super().construct_mapping(node, deep)


# YAML 1.1, which PyYAML reads, requires a dot and a sign in 1.0e+3: `learning_rate: 1e-3` would be text.
_Loader.add_implicit_resolver(
    "tag:yaml.org,2002:float",
    re.compile(r"^[-+]?(\d[\d_]*\.?[\d_]*|\.\d[\d_]*)([eE][-+]?\d+)$|^[-+]?(\d[\d_]*\.[\d_]*|\.\d[\d_]*)$"),
    list("-+0123456789."),
)


def parse_yaml(text: str, where: str) -> Any:
    """YAML as plain values.

    Raises:
        ConfigError: where it isn't YAML, with line and column.
    """
    try:
        return yaml.load(text, Loader=_Loader)
    except yaml.YAMLError as error:
        raise ConfigError(f"{where} is not YAML: {' '.join(str(error).split())}") from None


def read_yaml(path: Path) -> dict[str, Any]:
    """A YAML file that holds a mapping.

    Raises:
        ConfigError: for a file that is missing, empty, not YAML, or not a mapping.
    """
    try:
        text = path.read_text(encoding="utf-8")
    except FileNotFoundError:
        raise ConfigError(f"{path}: there is no such file.") from None
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read ({error}).") from None
    document = parse_yaml(text, str(path))
    if not isinstance(document, dict) or not document:
        raise ConfigError(
            f"{path}: wanted a YAML mapping such as `data: {{name: digits}}`, got {type(document).__name__}."
        )
    return document


def parse_section(cls: type[T], values: Any, where: str) -> T:
    """A section of a document as a dataclass, with every value checked.

    Raises:
        ConfigError: for a value of the wrong type or out of range, or a key that is missing.
        UnknownNameError: for an unknown key, with the nearest.
    """
    if not isinstance(values, Mapping):
        raise ConfigError(f"{where}: wanted a mapping, got {values!r}.")
    known = options_of(cls, where)
    check_known(values, known, where)
    for name, option in known.items():
        if option.required and name not in values:
            raise ConfigError(f"{where}: {name} is missing: {option.help} Wanted {option.type_text}.")
    return cls(**{key: known[key].validate(value, f"{where}.{key}") for key, value in values.items()})
