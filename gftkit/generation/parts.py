"""Samples on their way to a file, in parts in a folder next to it: processes can share the work and resume it."""

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
    """The parts of a target, in the folder ``TARGET.parts`` next to it. Each is written whole or not at all.

    Args:
        target: the file or folder of the samples.
        identity: plain values that determine the samples; parts of other samples are refused.

    Attributes:
        folder: where the parts are.
    """

    def __init__(self, target: Path, identity: Mapping[str, Any]) -> None:
        self.folder = target.with_name(target.name + ".parts")
        self._identity = dict(identity)
        self._identity_hash = hashlib.sha256(json.dumps(self._identity, sort_keys=True).encode()).hexdigest()

    def __bool__(self) -> bool:
        """True where there are any."""
        return bool(self.spans())

    @property
    def writing(self) -> bool:
        """True where the target was begun: it may be incomplete."""
        return (self.folder / _WRITING).is_file()

    def spans(self) -> list[Span]:
        """The samples that exist as parts, in order."""
        matches = (_FILE.fullmatch(path.name) for path in self.folder.glob("samples-*"))
        return sorted((int(match[1]), int(match[2])) for match in matches if match)

    def check(self) -> None:
        """Refuse parts of other samples.

        Raises:
            RunError: naming what differs.
        """
        before = read_json(self.folder / _JOB)
        if not isinstance(before, dict):
            raise RunError(f"{self.folder / _JOB} is damaged. Start again with --force.")
        now = json.loads(json.dumps(self._identity))  # as a file gives it back: tuples become lists
        changed = sorted(key for key in {*before, *now} if before.get(key) != now.get(key))
        if changed:
            differences = [f"{key} (was {before.get(key)}, now {now.get(key)})" for key in changed if key in _SHORT]
            differences += [key for key in changed if key not in _SHORT]
            raise RunError(
                f"{self.folder} contains parts of other samples, which differ in {', '.join(differences)}. Request the "
                f"same samples, choose another --out, or start again with --force instead of --resume."
            )

    def begin(self) -> None:
        """Make the folder, empty but for the identity of the samples.

        Raises:
            RunError: where a folder of that name contains other files.
        """
        if self.folder.exists() and not (self.folder / _JOB).is_file() and any(self.folder.iterdir()):
            raise RunError(f"{self.folder} is the folder for parts, and contains other files. Choose another --out.")
        self.remove()
        write_json(self.folder / _JOB, self._identity)

    def mend(self) -> list[str]:
        """Remove leftovers of a killed process, and parts that can't be read; a warning for each of those."""
        remove_leftovers(self.folder)
        warnings = []
        for first, count in self.spans():
            try:
                self._read(first, count)
            except (WeightsError, RunError) as error:
                warnings.append(f"a damaged part is sampled again: {error}")
                with explain_file_errors(self.folder, "tidy"):
                    self._path(first, count).unlink()
        return warnings

    def missing(self, total: int, size: int, processes: int = 1) -> list[Span]:
        """The samples still to be made: whole blocks of 64, as many at a time as fit, and some for every process.

        Args:
            total: number of samples.
            size: of a batch.
            processes: number of processes that share the work.
        """
        # Gaps, and not the parts of a plan: an earlier call may have had another batch size or number of processes.
        gaps, at = [], 0
        for first, count in [*self.spans(), (total, 0)]:
            if at < first:
                gaps.append((at, first))
            at = max(at, first + count)
        blocks = sum(-(-(end - first) // BLOCK) for first, end in gaps)
        step = max(1, min(size // BLOCK, -(-blocks // processes))) * BLOCK
        return [(at, min(step, end - at)) for first, end in gaps for at in range(first, end, step)]

    def write(self, first: int, samples: Tensor, evaluations: float) -> None:
        """Write a part.

        Args:
            first: its first index.
            samples: (count, *event).
            evaluations: drift evaluations for each sample.
        """
        notes = {
            "identity": self._identity_hash,
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
        if notes.get("identity") != self._identity_hash:
            raise RunError(
                f"{path} contains other samples: another process has written there. Start again with --force."
            )
        return tensors["samples"]

    def notes(self) -> list[tuple[int, dict[str, Any]]]:
        """The number of samples of each part, in order, with their ``evaluations``, ``low`` and ``high``."""
        return [(count, read_notes(self._path(first, count))) for first, count in self.spans()]

    def begin_writing(self) -> None:
        """Mark the target as begun: from now on it may be incomplete, and a resumed call may overwrite it."""
        write_json(self.folder / _WRITING, {})

    def remove(self) -> None:
        """Delete the folder."""
        with explain_file_errors(self.folder, "tidy"):
            if self.folder.exists():
                shutil.rmtree(self.folder)

    def _path(self, first: int, count: int) -> Path:
        return self.folder / f"samples-{first:012d}-{count:06d}.safetensors"


_SHORT = ("count", "seed", "guidance", "retention", "precision", "device")
"""Keys of the identity whose values are short enough for a message."""
