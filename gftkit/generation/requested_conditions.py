"""The conditions that a user asks for samples under: read from a file, checked, and laid out for each sample."""

import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from gftkit.data.conditions import LABEL, condition_names
from gftkit.kernel.errors import ConfigError
from gftkit.storage.tensors import read_tensors


def read_conditions(path: Path) -> dict[str, Tensor]:
    """Conditions to sample under, from a .npz or .safetensors file: arrays (n, ...) by name, ``label`` among them.

    Raises:
        ConfigError: for a file that is missing, of another kind, or holds anything but numbers.
        WeightsError: for a damaged .safetensors file.
    """
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        came = "a file" if path.is_file() else "nothing there"
        raise ConfigError(f"--conditions {path}: wanted a .npz or .safetensors file, found {came}.")
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as held:
            return {name: torch.from_numpy(held[name]) for name in held.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"--conditions {path}: wanted a whole .npz file of arrays of numbers, and this one can't be read as that "
            f"({str(error).splitlines()[0]}). Write it again by numpy.savez."
        ) from error


def conditions(
    drift: Any,
    given: Mapping[str, Tensor] | None,
    label: int | None,
    classes: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """The conditions that a user asks for, checked: rows for ``in_turn``.

    Args:
        drift: says which it is given.
        given: (n, ...) each.
        label: one class for all; without it and ``given``, all classes in turn.
        classes: how many there are.
        shapes: of the named conditions, for one sample.

    Raises:
        ConfigError: for a condition that is missing, not wanted, of the wrong shape or type, or out of range.
    """
    wanted, found = condition_names(drift), dict(given or {})
    if label is not None:
        if LABEL not in wanted:
            raise ConfigError("label: this drift is not conditional on a label. Leave --label out.")
        if LABEL in found:
            raise ConfigError("label: it is given twice, by --label and by --conditions. Leave one out.")
        found[LABEL] = torch.full((max(map(len, found.values()), default=1),), label)
    elif wanted == (LABEL,) and given is None and classes is not None:
        found[LABEL] = torch.arange(classes)
    if set(found) != set(wanted):
        raise ConfigError(
            f"conditions: this drift is given {', '.join(map(repr, wanted)) or 'none'}, got "
            f"{', '.join(map(repr, found)) or 'none'}. Give exactly these, one row for each sample: by --conditions "
            f"FILE, a label also by --label."
        )
    lengths = {name: len(values) if values.ndim else 0 for name, values in found.items()}
    if found and (len(set(lengths.values())) > 1 or 0 in lengths.values()):
        raise ConfigError(f"conditions: wanted as many rows in each array, and at least one, got {lengths}.")
    for name, values in found.items():
        if name == LABEL:
            _check_asked_label(values, classes)
            found[name] = values.to(torch.int64)
        else:
            _check_asked(name, values, shapes[name])
            found[name] = values.to(torch.float32)
    return {name: found[name] for name in wanted}


def in_turn(found: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    """The conditions of samples ``first`` to ``first + count - 1``: the rows in turn, (count, ...) each."""
    return {name: rows[torch.arange(first, first + count) % len(rows)] for name, rows in found.items()}


def _check_asked_label(values: Tensor, classes: int | None) -> None:
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise ConfigError(f"label: wanted whole numbers (n,), got {values.dtype} of shape {tuple(values.shape)}.")
    bad = values[(values < 0) | (values >= (2**63 - 1 if classes is None else classes))]
    if len(bad):
        last = "" if classes is None else f" to {classes - 1}"
        raise ConfigError(f"label: wanted 0{last}, got {int(bad[0])}.")


def _check_asked(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape[1:] != shape or values.is_complex():
        raise ConfigError(
            f"conditions: wanted '{name}' of shape {('n', *shape)}, as in training, got {tuple(values.shape)}."
        )
    bad = (~values.float()[:, None].flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise ConfigError(f"conditions: '{name}' holds NaN or infinity in row {int(bad[0])} (counted from 0).")
