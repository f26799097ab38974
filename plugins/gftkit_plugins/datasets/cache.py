"""Tensors that take long to make, kept on disk between runs."""

import os
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

from torch import Tensor

from gftkit.kernel import RunError, WeightsError
from gftkit.storage import read_tensors, write_tensors

VARIABLE = "GFTKIT_CACHE"
"""Environment variable that names the cache folder."""


def folder() -> Path:
    """``$GFTKIT_CACHE``, else ``$XDG_CACHE_HOME/gftkit``, else ``~/.cache/gftkit``; it need not exist.

    Raises:
        RuntimeError: where none is set and the user has no home.
    """
    if configured := os.environ.get(VARIABLE):
        return Path(configured)
    xdg = os.environ.get("XDG_CACHE_HOME")
    return (Path(xdg) if xdg else Path.home() / ".cache") / "gftkit"


def cached(name: str, make: Callable[[], dict[str, Tensor]]) -> dict[str, Tensor]:
    """The result of ``make``, from the cache where it holds a readable copy.

    A missing or damaged copy is made again. A cache that can't be written costs time only. Two processes at once are
    safe: a file appears whole (written beside its place, then renamed) or not at all.

    Args:
        name: file name without ending; put the version of everything that ``make`` depends on into it.
        make: makes the tensors, by name.

    Example:
        >>> import torch
        >>> cached("doctest", lambda: {"one": torch.ones(1)})["one"]
        tensor([1.])
    """
    try:
        file = folder() / f"{name}.safetensors"
    except RuntimeError:
        return make()
    with suppress(WeightsError):
        return read_tensors(file)[0]
    tensors = make()
    with suppress(RunError):
        write_tensors(file, tensors, {})
    return tensors
