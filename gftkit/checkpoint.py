"""Checkpoints: everything a run needs to go on as if it had never stopped, as one safetensors file."""

import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.averages import Averages
from gftkit.errors import RunError, WeightsError
from gftkit.files import State, explained, load_weights, read_tensors, write_tensors

_FILE = re.compile(r"step-(\d+)\.safetensors")


@dataclass(frozen=True)
class Checkpoint:
    """The state of a run after ``step`` optimiser steps."""

    step: int
    path: Path
    tensors: State
    notes: dict[str, Any]

    def restore(self, drift: nn.Module, averages: Averages, optimizer: torch.optim.Optimizer) -> None:
        """Put the saved state back, bit for bit.

        Raises:
            WeightsError: where it belongs to another drift.
        """
        load_weights(drift, self.part("drift."), self.path)
        averages.restore(self.part("ema."), self.path)
        state: dict[int, dict[str, Any]] = {int(key): dict(held) for key, held in self.notes["optimizer"].items()}
        for name, tensor in self.part("optimizer.").items():
            index, _, key = name.partition(".")
            state.setdefault(int(index), {})[key] = tensor
        groups = optimizer.state_dict()["param_groups"]
        optimizer.load_state_dict({"state": state, "param_groups": groups})

    def part(self, prefix: str) -> State:
        """The tensors whose names start with a prefix, without it."""
        return {name.removeprefix(prefix): held for name, held in self.tensors.items() if name.startswith(prefix)}


def write(
    folder: Path,
    step: int,
    drift: nn.Module,
    averages: Averages,
    optimizer: torch.optim.Optimizer,
    notes: Mapping[str, Any],
    keep: int,
) -> Path:
    """Write ``step-N.safetensors``, whole or not at all, then delete all but the ``keep`` newest up to it.

    Later ones are there where a run went back to an earlier one because they are damaged.

    Raises:
        RunError: where it can't be written; earlier checkpoints are kept.
    """
    tensors: dict[str, Tensor] = {}
    tensors |= {f"drift.{name}": held for name, held in drift.state_dict().items()}
    tensors |= {f"ema.{name}": held for name, held in averages.tensors().items()}
    numbers: dict[str, dict[str, Any]] = {}
    for index, state in optimizer.state_dict()["state"].items():
        for key, held in state.items():
            if isinstance(held, Tensor):
                tensors[f"optimizer.{index}.{key}"] = held
            else:
                numbers.setdefault(str(index), {})[key] = held
    path = folder / f"step-{step:09d}.safetensors"
    write_tensors(path, tensors, {**notes, "step": step, "optimizer": numbers})
    with explained(folder, "tidy"):
        for old in [other for other in found(folder) if other.name <= path.name][:-keep]:
            old.unlink()
    return path


def found(folder: Path) -> list[Path]:
    """The checkpoints of a folder, oldest first."""
    return sorted(path for path in folder.glob("step-*.safetensors") if _FILE.fullmatch(path.name))


def latest(folder: Path) -> tuple[Checkpoint | None, list[str]]:
    """The newest checkpoint that can be read, and a warning for each damaged one.

    Raises:
        RunError: where there are some, all of them damaged.
    """
    warnings: list[str] = []
    for path in reversed(found(folder)):
        try:
            tensors, notes = read_tensors(path, ours=True)
        except WeightsError as error:
            warnings.append(f"{path.name} is damaged and was passed over: {error}")
        else:
            return Checkpoint(int(notes["step"]), path, tensors, notes), warnings
    if warnings:
        raise RunError(
            f"{folder}: wanted a checkpoint to go on from, and none can be read.\n  "
            + "\n  ".join(warnings)
            + "\nPut a sound copy of one there, or start anew with another --out."
        )
    return None, warnings
