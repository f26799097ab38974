"""Samples on their way to a file: in parts beside it, which many processes make, and from which an end is resumed."""

import hashlib
import json
import re
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from gftkit.kernel.errors import RunError, WeightsError
from gftkit.sampling.noise import BLOCK
from gftkit.storage.documents import read_json, write_json
from gftkit.storage.files import explain_file_errors, remove_leftovers
from gftkit.storage.tensors import read_notes, read_tensors, write_tensors

_FILE = re.compile(r"samples-(\d+)-(\d+)\.safetensors")
_JOB, _WRITING = "job.json", "writing.json"

Span = tuple[int, int]
"""First index and number of samples."""


class Parts:
    """The parts of a target, in a folder beside it with its name and ``.parts``. Each is written whole or not at all.

    Args:
        target: where the samples will be written.
        identity: plain values that determine the samples; parts of others are refused.

    Attributes:
        folder: where the parts are.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.folder = target.with_name(target.name + ".parts")
        self._identity = dict(identity)
        self._bound = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()

    def __bool__(self) -> bool:
        """Whether there are any."""
        return bool(self.spans())

    @property
    def writing(self) -> bool:
        """Whether all were made and the target was begun: what stands there may be half of it."""
        return (self.folder / _WRITING).is_file()

    def spans(self) -> list[Span]:
        """Which samples are there, in order."""
        found = (_FILE.fullmatch(path.name) for path in self.folder.glob("samples-*"))
        return sorted((int(match[1]), int(match[2])) for match in found if match)

    def check(self) -> None:
        """Refuse to go on with parts of other samples.

        Raises:
            RunError: naming what differs.
        """
        before = read_json(self.folder / _JOB)
        if not isinstance(before, dict):
            raise RunError(f"{self.folder / _JOB} is damaged. Start anew with --force.")
        now = json.loads(json.dumps(self._identity))
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            told = [f"{key} ({before.get(key)} there, {now.get(key)} asked)" for key in changed if key in _SHOWN]
            told += [key for key in changed if key not in _SHOWN]
            raise RunError(
                f"{self.folder} holds parts of other samples: {', '.join(told)}. Ask for the same, choose another "
                f"--out, or start anew with --force instead of --resume."
            )

    def begin(self) -> None:
        """Make the folder, empty but for what determines the samples.

        Raises:
            RunError: where a folder of that name holds something else.
        """
        if self.folder.exists() and not (self.folder / _JOB).is_file() and any(self.folder.iterdir()):
            raise RunError(f"{self.folder} is where parts are kept, and holds something else. Choose another --out.")
        self.remove()
        write_json(self.folder / _JOB, self._identity)

    def mend(self) -> list[str]:
        """Remove what a killed process left and parts that can't be read, which are made again; a warning for each."""
        remove_leftovers(self.folder)
        warnings = []
        for first, count in self.spans():
            try:
                self._read(first, count)
            except (WeightsError, RunError) as error:
                warnings.append(f"a damaged part is made again: {error}")
                with explain_file_errors(self.folder, "tidy"):
                    self._path(first, count).unlink()
        return warnings

    def missing(self, total: int, size: int, processes: int = 1) -> list[Span]:
        """What is still to be made: whole blocks of 64, as many at a time as fit, and so that every process has some.

        Args:
            total: how many samples are wanted.
            size: of a batch.
            processes: how many will share them.
        """
        gaps, at = [], 0
        for first, count in [*self.spans(), (total, 0)]:
            if at < first:
                gaps.append((at, first))
            at = max(at, first + count)
        blocks = sum(-(-(end - first) // BLOCK) for first, end in gaps)
        step = max(1, min(size // BLOCK, -(-blocks // processes))) * BLOCK
        return [(at, min(step, end - at)) for first, end in gaps for at in range(first, end, step)]

    def write(self, first: int, samples: Tensor, evaluations: float) -> None:
        """Keep a part.

        Args:
            first: its first index.
            samples: (count, *event).
            evaluations: drift evaluations for each sample.
        """
        notes = {
            "identity": self._bound,
            "evaluations": evaluations,
            "low": float(samples.min()),
            "high": float(samples.max()),
        }
        write_tensors(self._path(first, len(samples)), {"samples": samples}, notes)

    def read(self) -> Iterator[Tensor]:
        """The samples in order, a part at a time, (count, *event).

        Raises:
            WeightsError: for a part that is damaged.
            RunError: for one of other samples.
        """
        for first, count in self.spans():
            yield self._read(first, count)

    def _read(self, first: int, count: int) -> Tensor:
        path = self._path(first, count)
        tensors, notes = read_tensors(path, ours=True)
        if notes.get("identity") != self._bound:
            raise RunError(f"{path} holds other samples: something else wrote there. Start anew with --force.")
        return tensors["samples"]

    def notes(self) -> list[tuple[int, dict[str, Any]]]:
        """Of each part, in order: how many samples, and their ``evaluations``, ``low`` and ``high``."""
        return [(count, read_notes(self._path(first, count))) for first, count in self.spans()]

    def begin_writing(self) -> None:
        """Remember that from now on the target may hold a half of what it should."""
        write_json(self.folder / _WRITING, {})

    def remove(self) -> None:
        """Delete the folder."""
        with explain_file_errors(self.folder, "tidy"):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"samples-{first:012d}-{count:06d}.safetensors"


_SHOWN = ("count", "seed", "guidance", "temperature", "precision", "device")
"""What determines samples and is short enough for a message."""
