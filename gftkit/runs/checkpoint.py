"""Checkpoints: everything that a resumed run needs to repeat the undisturbed one, in one safetensors file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from torch import nn

from gftkit.kernel.errors import RunError, WeightsError
from gftkit.networks.state import frozen_weights, load_weights
from gftkit.storage.files import explain_file_errors
from gftkit.storage.tensors import State, read_tensors, write_tensors

_FILE = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimiser steps."""

    step: int
    path: Path
    tensors: State
    notes: dict[str, Any]

    def fill(self, drift: nn.Module) -> None:
        """Load the trained weights into a network that has all the others already.

        Raises:
            WeightsError: where they belong to another drift.
        """
        load_weights(drift, {**frozen_weights(drift), **self.part("drift.")}, self.path)

    def part(self, prefix: str) -> State:
        """The tensors whose names start with a prefix, without it."""
        return {name.removeprefix(prefix): tensor for name, tensor in self.tensors.items() if name.startswith(prefix)}


def write(folder: Path, step: int, tensors: State, notes: Mapping[str, Any], keep: int) -> Path:
    """Write ``step-N.safetensors``, whole or not at all, then delete all but the ``keep`` newest up to it.

    Later files exist where they are damaged, so that the run was resumed from an earlier one.

    Raises:
        RunError: where it can't be written; earlier checkpoints are kept.
    """
    path = folder / f"step-{step:09d}.safetensors"
    write_tensors(path, tensors, {**notes, "step": step})
    # Only after the new one is whole on disk: a run killed anywhere in here still has a checkpoint to resume from.
    with explain_file_errors(folder, "tidy"):
        for old in [other for other in checkpoints_of(folder) if other.name <= path.name][:-keep]:
            old.unlink()
    return path


def checkpoints_of(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _FILE.fullmatch(path.name))


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and a warning for each damaged one.

    Raises:
        RunError: where there are some, all of them damaged.
    """
    warnings: list[str] = []
    for path in reversed(checkpoints_of(folder)):
        try:
            tensors, notes = read_tensors(path, ours=True)
        except WeightsError as error:
            warnings.append(f"checkpoint {path.name} is damaged and was skipped: {error}")
        else:
            return Checkpoint(int(notes["step"]), path, tensors, notes), warnings
    if warnings:
        raise RunError(
            f"{folder}: wanted a checkpoint to resume from, and none can be read.\n  "
            + "\n  ".join(warnings)
            + "\nRestore a readable copy of one, or start again with another --out."
        )
    return None, warnings
