"""Packages that only some need: loaded when first used, and named with their extra where they are missing."""

from collections.abc import Mapping
from importlib.util import find_spec

from gftkit.kernel.errors import GftkitError

EXTRAS: Mapping[str, Mapping[str, str]] = {
    "report": {"matplotlib": "matplotlib", "jinja2": "Jinja2"},
    "symbolic": {"sympy": "sympy"},
}
"""Extra of pyproject.toml -> its modules -> the packages that they come in."""


class MissingPackageError(GftkitError):
    """A package that only some need, and that isn't installed."""


def missing(extra: str) -> str:
    """A sentence with the packages of an extra that aren't installed and the cure; "" where all of them are.

    Example:
        >>> missing("report")
        ''
    """
    packages = [package for module, package in EXTRAS[extra].items() if find_spec(module) is None]
    if not packages:
        return ""
    noun, verb, them = ("package", "isn't", "it") if len(packages) == 1 else ("packages", "aren't", "them")
    return (
        f"wanted the {noun} {' and '.join(packages)}, which {verb} installed. "
        f"Install {them}: pip install 'gftkit[{extra}]'."
    )


def require(extra: str, task: str) -> None:
    """Refuse a task that can't be done without an extra.

    Args:
        extra: a name of ``EXTRAS``.
        task: what the packages are for; the message begins with it.

    Raises:
        MissingPackageError: for a package that isn't installed.
    """
    sentence = missing(extra)
    if sentence:
        raise MissingPackageError(f"{task}: {sentence}")
