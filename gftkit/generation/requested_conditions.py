"""The conditions that a user requests samples for: read from a file, checked, and assigned to the samples."""

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
    """Read conditions to sample with from a .npz or .safetensors file: arrays (n, ...) by name, such as ``label``.

    Raises:
        ConfigError: for a file that is missing, of another kind, or with anything but numbers.
        WeightsError: for a damaged .safetensors file.
    """
    if path.suffix not in (".npz", ".safetensors") or not path.is_file():
        received = "another kind of file" if path.is_file() else "nothing there"
        raise ConfigError(f"--conditions {path}: wanted a .npz or .safetensors file, got {received}.")
    if path.suffix == ".safetensors":
        return read_tensors(path)[0]
    try:
        with path.open("rb") as file, np.load(file, allow_pickle=False) as arrays:
            return {name: torch.from_numpy(arrays[name]) for name in arrays.files}
    except (OSError, ValueError, TypeError, EOFError, AttributeError, zipfile.BadZipFile) as error:
        raise ConfigError(
            f"--conditions {path}: wanted a .npz file of arrays of numbers, and this one can't be read "
            f"({str(error).splitlines()[0]}). Write it again with numpy.savez."
        ) from error


def parse_condition_request(
    drift: Any,
    requested: Mapping[str, Tensor] | None,
    label: int | None,
    classes: int | None,
    shapes: Mapping[str, tuple[int, ...]],
) -> dict[str, Tensor]:
    """Check requested conditions, and complete them: rows for ``conditions_at``.

    Args:
        drift: names the conditions that it takes.
        requested: by name, (n, ...) each.
        label: one class for all; without it and ``requested``, all classes in turn.
        classes: their number.
        shapes: of the named conditions, for one sample.

    Raises:
        ConfigError: for a condition that is missing, unknown, of the wrong shape or type, or out of range.
    """
    wanted, rows = condition_names(drift), dict(requested or {})
    if label is not None:
        if LABEL not in wanted:
            raise ConfigError("label: this drift is not conditional on a label. Leave --label out.")
        if LABEL in rows:
            raise ConfigError("label: got two, by --label and by --conditions. Leave one out.")
        rows[LABEL] = torch.full((max(map(len, rows.values()), default=1),), label)
    elif wanted == (LABEL,) and requested is None and classes is not None:
        rows[LABEL] = torch.arange(classes)
    if set(rows) != set(wanted):
        raise ConfigError(
            f"conditions: this drift takes {', '.join(map(repr, wanted)) or 'none'}, got "
            f"{', '.join(map(repr, rows)) or 'none'}. Give exactly those, one row for each sample: by --conditions "
            f"FILE, a label also by --label."
        )
    lengths = {name: len(values) if values.ndim else 0 for name, values in rows.items()}
    if rows and (len(set(lengths.values())) > 1 or 0 in lengths.values()):
        raise ConfigError(
            f"conditions: wanted the same number of rows in every array, and at least one, got {lengths}."
        )
    for name, values in rows.items():
        if name == LABEL:
            _check_label(values, classes)
            rows[name] = values.to(torch.int64)
        else:
            _check_condition(name, values, shapes[name])
            rows[name] = values.to(torch.float32)
    return {name: rows[name] for name in wanted}


def conditions_at(rows: Mapping[str, Tensor], first: int, count: int) -> dict[str, Tensor]:
    """The conditions of samples ``first`` to ``first + count - 1``: the rows in turn, (count, ...) each."""
    return {name: values[torch.arange(first, first + count) % len(values)] for name, values in rows.items()}


def _check_label(values: Tensor, classes: int | None) -> None:
    if values.ndim != 1 or values.is_floating_point() or values.is_complex():
        raise ConfigError(f"label: wanted whole numbers (n,), got {values.dtype} of shape {tuple(values.shape)}.")
    bad = values[(values < 0) | (values >= (2**63 - 1 if classes is None else classes))]
    if len(bad):
        last = "" if classes is None else f" to {classes - 1}"
        raise ConfigError(f"label: wanted 0{last}, got {int(bad[0])}.")


def _check_condition(name: str, values: Tensor, shape: tuple[int, ...]) -> None:
    if values.shape[1:] != shape or values.is_complex():
        raise ConfigError(
            f"conditions: wanted '{name}' of shape {('n', *shape)}, as in training, got {tuple(values.shape)}."
        )
    bad = (~values.float()[:, None].flatten(1).isfinite().all(1)).nonzero()
    if len(bad):
        raise ConfigError(f"conditions: '{name}' contains NaN or infinity in row {int(bad[0])} (counted from 0).")
