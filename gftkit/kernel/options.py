"""The options of a component, derived from its factory's signature.

One signature serves validation, ``gft plugins show`` and the reference docs.
"""

import inspect
import json
import re
import types
import typing
from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Annotated, Any, Literal, Union, get_args, get_origin, get_type_hints

from pydantic import ConfigDict, TypeAdapter, ValidationError
from torch import nn

from gftkit.kernel.errors import ConfigError, PluginError, unknown
from gftkit.kernel.kinds import KIND_OF

SUPPLIED = ("event_shape", "classes", "condition_shapes", "generator")
"""Options that the kernel supplies where a factory has them and the user gives none; and ``path: Path``."""

_STRICT = ConfigDict(strict=True, arbitrary_types_allowed=True, allow_inf_nan=False)
ARGUMENTS = re.compile(r"^Args:\n((?:[ \t]+.*\n?|\n)+)", re.MULTILINE)
_REQUIRED = inspect.Parameter.empty


@dataclass(frozen=True)
class Option:
    """One keyword option of a factory.

    Attributes:
        name: the keyword.
        annotation: its type, with ranges as ``Annotated[float, Field(gt=0)]``.
        default: its default, or ``inspect.Parameter.empty`` where it must be given.
        help: its sentence in the docstring's ``Args``, or "".
        supplied: whether the kernel fills it in from the data where the user gives none.
    """

    name: str
    annotation: Any
    default: Any
    help: str
    supplied: bool = False

    @property
    def required(self) -> bool:
        """True where it has no default."""
        return self.default is _REQUIRED

    @property
    def kind(self) -> str | None:
        """The kind of component that this option takes, if it takes one."""
        for part in _parts(self.annotation):
            if part in KIND_OF:
                return KIND_OF[part]
        return None

    @property
    def is_file(self) -> bool:
        """True where it names a file or folder."""
        return Path in _parts(self.annotation)

    @property
    def type_text(self) -> str:
        """Its type and range in words, as shown to users."""
        return type_text(self.annotation)

    @property
    def default_text(self) -> str:
        """Its default in words, as shown to users."""
        if self.supplied:
            return "from the data"
        return "required" if self.required else json.dumps(self.default, default=str)

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for JSON."""
        default = None if self.required else plain(self.default)
        own = {"name": self.name, "type": self.type_text, "required": self.required and not self.supplied}
        return {**own, "default": default, "supplied": self.supplied, "help": self.help}

    def validate(self, value: Any, where: str) -> Any:
        """The value, checked against type and range; raises as the function ``validate``."""
        return validate(self.annotation, value, where)


def validate(annotation: Any, value: Any, where: str) -> Any:
    """``value`` as ``annotation``: strict about types, except that a list serves as a tuple and a string as a path.

    Raises:
        ConfigError: with the key ``where``, the wanted type and the value.
    """
    try:
        adapter: TypeAdapter[Any] = TypeAdapter(annotation, config=_STRICT)
        try:
            text = json.dumps(value)  # as JSON, where strict types take a list for a tuple and text for a path
        except (TypeError, ValueError):
            return adapter.validate_python(value)
        return adapter.validate_json(text)
    except ValidationError as error:
        first = error.errors()[0]
        reason = "" if first["type"] == "needs_python_object" else f" {first['msg']}."
        shown = repr(value) if len(repr(value)) < 80 else repr(value)[:77] + "..."
        raise ConfigError(
            f"{where}: wanted {type_text(annotation)}, got {shown} ({type(value).__name__}).{reason}"
        ) from None


def options_of(factory: Callable[..., Any], who: str) -> dict[str, Option]:
    """The options of a factory, in order.

    Raises:
        PluginError: for a factory with ``*args`` or ``**kwargs``, an option without a type, or no docstring.
    """
    if not inspect.getdoc(factory):
        raise PluginError(f"{who} has no docstring. Say what it is, its options and its source.")
    if _has_no_init(factory):
        return {}
    hints = get_type_hints(factory.__init__ if inspect.isclass(factory) else factory, include_extras=True)
    helps = _argument_help(inspect.getdoc(factory) or "")
    options = {}
    for name, parameter in inspect.signature(factory).parameters.items():
        if parameter.kind in (parameter.VAR_KEYWORD, parameter.VAR_POSITIONAL):
            stars = "**" if parameter.kind is parameter.VAR_KEYWORD else "*"
            raise PluginError(
                f"{who} takes {stars}{name}: a misspelt option would pass unseen. Name every option with its type."
            )
        if name not in hints:
            raise PluginError(f"{who} has an option '{name}' without a type. Annotate it.")
        option = Option(name, hints[name], parameter.default, helps.get(name, ""))
        options[name] = replace(option, supplied=name in SUPPLIED or (name, option.kind) == ("path", "path"))
    return options


def check_known(options: Mapping[str, Any], known: Collection[str], where: str, unlisted: Collection[str] = ()) -> None:
    """Refuse options that nobody declared; those ``unlisted`` are taken, and not suggested.

    Raises:
        UnknownNameError: with the nearest known option.
    """
    for name in options:
        if name not in known:
            raise unknown(f"option of {where}:", name, set(known) - set(unlisted))


def type_text(annotation: Any) -> str:
    """A type in words: ``int, > 0``, ``'a' or 'b'``, ``{name: feature}``."""
    if annotation in KIND_OF:
        return f"a {KIND_OF[annotation]} {{name: ...}}"
    origin, args = get_origin(annotation), get_args(annotation)
    if origin is Annotated:
        bounds = [bound for extra in args[1:] for bound in _bounds(extra)]
        return ", ".join([type_text(args[0]), *bounds])
    if origin is Literal:
        return " or ".join(repr(arg) for arg in args)
    if origin in (Union, types.UnionType):
        return " or ".join(type_text(arg) for arg in args)
    if annotation is types.NoneType:
        return "null"
    if annotation is Path:
        return "file or folder"
    if origin in (tuple, list) or (origin is not None and issubclass(origin, (list, tuple))):
        inner = [type_text(arg) for arg in args if arg is not Ellipsis]
        return f"list of {' and '.join(inner)}" if Ellipsis in args or origin is list else f"list [{', '.join(inner)}]"
    if origin is typing.get_origin(Callable[..., Any]):
        return "function"
    if origin is dict and args[1] is not Any:
        return f"mapping from {type_text(args[0])} to {type_text(args[1])}"
    return getattr(annotation, "__name__", str(annotation))


def _has_no_init(factory: Callable[..., Any]) -> bool:
    """True for a class with only the ``__init__`` of ``nn.Module`` or of a Protocol, whose arguments mean nothing."""
    if not inspect.isclass(factory):
        return False
    owner = next(base for base in factory.__mro__ if "__init__" in vars(base))
    return owner is nn.Module or getattr(owner, "_is_protocol", False)


def _parts(annotation: Any) -> list[Any]:
    """An annotation and, for unions and Annotated, what it is made of."""
    if get_origin(annotation) in (Union, types.UnionType, Annotated):
        args = get_args(annotation)[: 1 if get_origin(annotation) is Annotated else None]
        return [part for arg in args for part in _parts(arg)]
    return [annotation]


def _bounds(extra: Any) -> list[str]:
    """The ranges of a pydantic Field, as ``> 0``."""
    signs = {"gt": ">", "ge": ">=", "lt": "<", "le": "<=", "min_length": "length >=", "max_length": "length <="}
    bounds = []
    for constraint in getattr(extra, "metadata", [extra]):
        bounds += [f"{sign} {getattr(constraint, key)}" for key, sign in signs.items() if hasattr(constraint, key)]
    return bounds


def _argument_help(doc: str) -> dict[str, str]:
    """The sentences of a Google-form ``Args:`` section, by argument."""
    section = ARGUMENTS.search(doc)
    if not section:
        return {}
    entries = re.split(r"^ {4}(?=\w+(?: \([^)]*\))?:)", section.group(1), flags=re.MULTILINE)[1:]
    pairs = (entry.split(":", 1) for entry in entries)
    return {name.split(" ")[0]: " ".join(text.split()) for name, text in pairs}


def plain(value: Any) -> Any:
    """A value as YAML and JSON can hold it: paths as text, tuples as lists."""
    if isinstance(value, Mapping):
        return {key: plain(inner) for key, inner in value.items()}
    if isinstance(value, (list, tuple)):
        return [plain(inner) for inner in value]
    return value if value is None or isinstance(value, (bool, int, float, str)) else str(value)
