"""Pairs (x0, x1) that a finished run makes: reflow."""

from pathlib import Path
from typing import Annotated, Any, Literal

import torch
from pydantic import Field
from rich.console import Console
from rich.progress import Progress
from torch import Tensor

from gftkit.generation import Request, RunSampler, read_conditions
from gftkit.kernel import Batch, ConfigError, plain
from gftkit.runs import RunFolder
from gftkit.storage import read_tensors, write_tensors

PART = 2**14
"""Samples that are made before the next ones are begun, a multiple of 64."""


class GeneratedPairs:
    """Pairs of a finished run: x1 is where its flow brings x0. A fine-tune on them is reflow.

    Index by index x1 is the sample that ``gft sample`` gives for this seed, and x0 the source sample that it came from.
    They stay together: no coupling is used. So x0 and x1 have the laws of the run's own source and samples, and
    the flow that is learned ends in the run's law, along straighter paths. Conditions are those that each was made
    under. Values and their range are those of the run's data.

    Args:
        run: the folder of a finished run.
        size: how many pairs are made.
        source_seed: of the source samples, and of the noise where the flow has any.
        solver: how they are sampled, {name: ..., steps: ...}; null for as the run is evaluated. The pairs are as exact
            as it is.
        guidance: scale of classifier-free guidance; null for as the run is evaluated.
        conditions: a .npz or .safetensors file of conditions, taken in turn; null for all classes in turn.
        weights: the run's averaged weights, or the raw ones.
        file: a .safetensors file that keeps the pairs: written where it isn't there, and read where it is. null keeps
            them in memory only, and they are made anew whenever the data are opened.

    Raises:
        GftkitError: for a folder without a finished run, what ``gft sample`` would refuse, and a file of other pairs.

    Reference: Liu, Gong, Liu (2022), Flow Straight and Fast, section 2.2 and Theorem 3.3, arXiv:2209.03003.
    """

    def __init__(
        self,
        run: Path,
        size: Annotated[int, Field(gt=0)] = 10_000,
        source_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
        solver: dict[str, Any] | None = None,
        guidance: Annotated[float, Field(ge=0)] | None = None,
        conditions: Path | None = None,
        weights: Literal["ema", "raw"] = "ema",
        file: Path | None = None,
    ) -> None:
        if file is not None and file.suffix != ".safetensors":
            raise ConfigError(f"file: wanted a name that ends in .safetensors, got {file}. Rename it.")
        requested = None if conditions is None else read_conditions(conditions)
        request = Request(
            count=size, seed=source_seed, solver=solver, weights=weights, guidance=guidance, conditions=requested
        )
        self._sampler: RunSampler | None = RunSampler(RunFolder.open(run), request)
        self._file, self._size = file, size
        facts, conditions_in_turn = self._sampler.facts, self._sampler.conditions(0, size)
        self.event_shape, self.range, self.classes = facts.event_shape, facts.range, facts.classes
        self.labels: Tensor | None = conditions_in_turn.pop("label", None)
        self.condition_shapes = {name: tuple(values.shape[1:]) for name, values in conditions_in_turn.items()}
        self._conditions = conditions_in_turn
        self._pairs: dict[str, Tensor] = {}

    def __len__(self) -> int:
        return self._size

    def __getstate__(self) -> dict[str, Any]:
        self._all_pairs()  # once, and not in every process that reads
        return {**vars(self), "_sampler": None}

    def batch(self, indices: Tensor) -> Batch:
        """The pairs at these indices; the first call makes all of them."""
        pairs = self._all_pairs()
        label = None if self.labels is None else self.labels[indices]
        conditions = {name: values[indices] for name, values in self._conditions.items()}
        return Batch(pairs["x1"][indices], label, pairs["x0"][indices], conditions)

    def _all_pairs(self) -> dict[str, Tensor]:
        if self._sampler is not None:
            self._pairs = self._read_or_make(self._sampler)
            self._sampler = None
        return self._pairs

    def _read_or_make(self, sampler: RunSampler) -> dict[str, Tensor]:
        """The pairs of the file, or new ones."""
        if self._file is None:
            return _generate(sampler, self._size)
        wanted = plain(sampler.identity)
        if self._file.exists():
            pairs, notes = read_tensors(self._file, ours=True)
            known = notes.get("pairs", {})
            differs = sorted(key for key in wanted if known.get(key) != wanted[key])
            if differs:
                raise ConfigError(
                    f"file: {self._file} contains pairs of another run, or made with other options "
                    f"({', '.join(differs)}). Choose another file, or delete this one."
                )
            return pairs
        pairs = _generate(sampler, self._size)
        write_tensors(self._file, pairs, {"pairs": wanted})
        return pairs


def _generate(sampler: RunSampler, count: int) -> dict[str, Tensor]:
    """x0 and x1, (count, *event) each, in the data's values."""
    console = Console(stderr=True)
    ends, starts = [], []
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("pairs", total=count)
        for first in range(0, count, PART):
            size = min(PART, count - first)
            starts.append(sampler.sources(first, size))
            ends.append(sampler.part(first, size, lambda done: progress.advance(task, done)))
    return {"x0": torch.cat(starts), "x1": torch.cat(ends)}
