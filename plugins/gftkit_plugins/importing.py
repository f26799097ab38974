"""Networks of the user's own, by the name of their class."""

import importlib
import sys
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from torch import nn

from gftkit.kernel import ConfigError


def import_target(target: str, folder: Path, kind: str) -> Callable[..., Any]:
    """The class or function that a target names.

    The folder is put at the front of Python's path, as that of a script is, so that the network's own module finds its
    neighbours whenever it looks for them.

    Args:
        target: ``package.module:Class``, or a function's name in the place of the class's.
        folder: where it is looked for, before Python's path.
        kind: of component that it is for, to name it in errors.

    Raises:
        ConfigError: naming the part that failed.
    """
    where, colon, name = target.partition(":")
    if not (colon and where and name):
        raise ConfigError(f"{kind}.target: wanted 'package.module:Class', got '{target}'.")
    place = str(folder.resolve())
    if place not in sys.path:
        sys.path.insert(0, place)
    importlib.invalidate_caches()  # the module may have been written since Python last looked
    top = where.partition(".")[0]
    other = getattr(sys.modules.get(top), "__file__", None)
    mine = [file for file in (folder / f"{top}.py", folder / top / "__init__.py") if file.is_file()]
    if other is not None and mine and Path(other).resolve() != mine[0].resolve():
        raise ConfigError(
            f"{kind}.target: the target is in {mine[0]}, and this process has already imported {other} under the name "
            f"'{top}'. Rename one of them."
        )
    try:
        target_object: Any = importlib.import_module(where)
    except ModuleNotFoundError as error:
        missing = error.name or where
        if f"{where}.".startswith(f"{missing}."):
            raise ConfigError(
                f"{kind}.target: no module '{missing}', neither in {place} nor on Python's path. Install it, or set "
                f"its folder: folder: DIR."
            ) from error
        raise ConfigError(
            f"{kind}.target: '{where}' imports '{missing}', which isn't installed. Install it."
        ) from error
    except Exception as error:
        raise ConfigError(f"{kind}.target: '{where}' fails to import: {type(error).__name__}: {error}") from error
    for part in name.split("."):
        if not hasattr(target_object, part):
            holder = getattr(target_object, "__name__", where)
            raise ConfigError(f"{kind}.target: {holder} has no '{part}'. Networks in it: {_networks(target_object)}.")
        target_object = getattr(target_object, part)
    if not callable(target_object) or isinstance(target_object, nn.Module):
        raise ConfigError(
            f"{kind}.target: wanted a class or function, and '{target}' is a {type(target_object).__name__}."
        )
    return target_object


def build_network(factory: Callable[..., Any], options: Mapping[str, Any], target: str, kind: str) -> nn.Module:
    """The network that a class or function gives.

    Raises:
        ConfigError: where it fails, or gives something else.
    """
    try:
        network = factory(**options)
    except Exception as error:
        raise ConfigError(f"{kind}.options: '{target}' fails: {type(error).__name__}: {error}") from error
    if not isinstance(network, nn.Module):
        raise ConfigError(f"{kind}.target: '{target}' gives a {type(network).__name__}; wanted a torch.nn.Module.")
    return network


def _networks(module: Any) -> str:
    names = [name for name, value in vars(module).items() if isinstance(value, type) and issubclass(value, nn.Module)]
    return ", ".join(sorted(names)) or "none"
