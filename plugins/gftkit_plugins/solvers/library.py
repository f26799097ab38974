"""Shared by the adapters of libraries' solvers."""

import importlib.util
import warnings
from collections.abc import Iterator
from contextlib import contextmanager

from gftkit.kernel import DivergenceError


def check_installed(package: str) -> None:
    """Look for a package without importing it.

    Raises:
        ImportError: where it isn't installed, naming the extra.
    """
    if importlib.util.find_spec(package) is None:
        raise ImportError(f"the package {package} is required. Install it: pip install 'gftkit[solvers]'")


@contextmanager
def explain_failures(causes: tuple[str, ...], advice: str) -> Iterator[None]:
    """Turn a library's way of giving up into an error that says what to do.

    Args:
        causes: how the messages of its assertions and warnings begin.
        advice: what to do.

    Raises:
        DivergenceError: with the library's message and the advice.
    """
    try:
        with warnings.catch_warnings():
            for cause in causes:
                warnings.filterwarnings("error", message=cause)
            yield
    except (AssertionError, UserWarning) as error:
        if not str(error).startswith(causes):
            raise
        raise DivergenceError(f"{str(error).splitlines()[0].rstrip('.')}: {advice}") from error
