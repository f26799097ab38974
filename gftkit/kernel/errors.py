"""Errors that a user can mend: shown as one message, without a traceback, by the command line."""

import difflib
from collections.abc import Iterable


class GftkitError(Exception):
    """Base of every error whose message says what was wanted, what came and what to do.

    ``exit_code`` is what the command line ends with: 2 where the input was wrong, 1 where a result fell short.
    """

    exit_code = 2


class PluginError(GftkitError):
    """A plugin breaks a rule of loading or a contract."""


class UnknownNameError(GftkitError):
    """A kind, component or option that nobody registered."""


class ConfigError(GftkitError):
    """A key of a configuration, or an option of a component, has no valid value."""


class DataError(GftkitError):
    """Samples that can't be used: missing, empty, of the wrong shape, not finite."""


class WeightsError(GftkitError):
    """A weights file that is damaged, unsafe, or doesn't fit the drift."""


class RunError(GftkitError):
    """A run folder that is missing, taken, incomplete or can't be written."""


class DivergenceError(GftkitError):
    """The loss stopped being finite; the last good checkpoint is kept."""

    exit_code = 1


def unknown(what: str, name: object, known: Iterable[str], hint: str = "") -> UnknownNameError:
    """An error for an unknown name: it suggests the nearest and lists the known ones."""
    known = sorted(known)
    nearest = difflib.get_close_matches(str(name), known, n=1, cutoff=0.5)
    suggestion = f" Did you mean '{nearest[0]}'?" if nearest else ""
    listing = f" Known: {', '.join(known)}." if known else " None is known."
    return UnknownNameError(f"unknown {what} '{name}'.{suggestion}{listing}{' ' + hint if hint else ''}")
