"""Shared by the data sets of WILDS: rows chosen by split and domain, and the pictures that they name."""

import os
from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import Annotated, Any, Literal, NamedTuple

import numpy as np
import torch
from pydantic import Field
from torch import Tensor

from gftkit.data import select_subset
from gftkit.kernel import Batch, DataError, Dataset
from gftkit_plugins.datasets.images.pictures import Decoder
from gftkit_plugins.datasets.stretches import unreadable_file_error

Domain = int | str
Part = Literal["all", "train", "test"]
Size = Annotated[int, Field(gt=0)] | None


class Entry(NamedTuple):
    """A row of a metadata file.

    Attributes:
        split: by the rules of WILDS; None for a row of no split.
        domains: where it comes from, one value for each option that chooses by domain.
        label: its class.
        picture: its file, below the data set's folder, with ``/``.
    """

    split: str | None
    domains: tuple[Domain, ...]
    label: int
    picture: str


class Pictures:
    """Pictures by the names of their files, each decoded where it is asked for.

    Args:
        folder: the data set's.
        names: of the files, below the folder.
        labels: the class of each.
        classes: how many classes there are.
        size: side to which pictures are resized, at most their own; None leaves them.
        cure: what to do where files are missing.

    Raises:
        DataError: for files that are missing, a first picture that can't be read, and a size above its side.
    """

    range: tuple[float, float] | None = (0.0, 255.0)

    def __init__(
        self, folder: Path, names: Sequence[str], labels: Sequence[int], classes: int, size: int | None, cure: str
    ) -> None:
        _check_files(folder, names, cure)
        self.folder, self.classes = folder, classes
        self.names = np.array([os.fsencode(name) for name in names])  # one array, which forked processes go on sharing
        self.labels = torch.tensor(labels)
        first = self.file(0)
        _, height, width = Decoder(None, "RGB").decode(first, str(first)).shape
        if size is not None and size > min(height, width):
            raise DataError(
                f"size: wanted at most {min(height, width)}, the size of these pictures ({first}: {width} x "
                f"{height}), got {size}. Choose a smaller size."
            )
        self._decoder = Decoder(size, "RGB")
        self._decoder.first = first.name, (height, width)
        self.event_shape: tuple[int, ...] = (3, height, width) if size is None else (3, size, size)

    def __len__(self) -> int:
        return len(self.names)

    def file(self, index: int) -> Path:
        """The path of a picture."""
        return self.folder / os.fsdecode(self.names[index])

    def batch(self, indices: Tensor) -> Batch:
        """The pictures at these indices, (batch,) of int64.

        Raises:
            DataError: naming the file, for a picture that can't be read or, without ``size``, isn't of the first's.
        """
        pixels = np.empty((len(indices), *self.event_shape), np.float32)
        for place, index in enumerate(indices.tolist()):
            file = self.file(index)
            pixels[place] = self._decoder.decode(file, str(file))
        return Batch(torch.from_numpy(pixels), self.labels[indices])


def check_folder(folder: Path, name: str) -> None:
    """Refuse what isn't a folder, and the folder above the one that is meant.

    Args:
        folder: the user's.
        name: that the folder has where WILDS unpacks it.

    Raises:
        DataError: saying which folder to give.
    """
    if (folder / name).is_dir():
        raise DataError(f"{folder}: wanted the data set's own folder, which is inside this one. Give {folder / name}.")
    if not folder.is_dir():
        came = "a file" if folder.exists() else "nothing there"
        raise DataError(
            f"{folder}: wanted the folder {name} as WILDS unpacks it, found {came}. Check the path; relative ones "
            f"start at the config."
        )


def select_rows(
    entries: Iterable[Entry], split: str, domains: Mapping[str, Sequence[Domain] | None], file: Path
) -> tuple[list[str], list[int]]:
    """Pictures and labels of the rows of a split that come from the domains that are wanted.

    Args:
        entries: every row.
        split: its name, or "all", which has the rows of no split, too.
        domains: by option which values are wanted, None for all; in the order of ``Entry.domains``.
        file: the metadata file, for messages.

    Raises:
        DataError: for a domain of which there is no row, listing those that there are, and where no row is left.
    """
    wanted = [None if values is None else frozenset(values) for values in domains.values()]
    known: set[tuple[Domain, ...]] = set()
    in_split: set[tuple[Domain, ...]] = set()
    names, labels = [], []
    for entry in entries:
        known.add(entry.domains)
        if split not in ("all", entry.split):
            continue
        in_split.add(entry.domains)
        if all(values is None or value in values for values, value in zip(wanted, entry.domains, strict=True)):
            names.append(entry.picture)
            labels.append(entry.label)
    for place, (option, values) in enumerate(domains.items()):
        there = {row[place] for row in known}
        absent = [value for value in values or () if value not in there]
        if absent:
            raise DataError(f"{option}: {_join(absent)} isn't in {file}. Known: {_join(there)}.")
    if not names:
        asked = ", ".join(f"{option} {_join(values)}" for option, values in domains.items() if values is not None)
        choices = "; ".join(f"{option} {_join({row[k] for row in in_split})}" for k, option in enumerate(domains))
        raise DataError(
            f"{file}: no row is of split '{split}'{' and of ' if asked else ''}{asked}. "
            f"{f'That split has: {choices}' if in_split else 'No row is of that split'}. Choose another split"
            f"{' or domain' if asked else ''}."
        )
    return names, labels


def divide(dataset: Dataset, part: Part) -> Dataset:
    """A part of what was chosen, by the rule by which gftkit divides the data sets that have no splits."""
    return dataset if part == "all" else select_subset(dataset, split=part)


def _join(values: Iterable[Any]) -> str:
    return ", ".join(map(str, sorted(values)))


def _check_files(folder: Path, names: Sequence[str], cure: str) -> None:
    """Refuse rows without a picture, after one look into each folder."""
    listings: dict[str, frozenset[str]] = {}
    missing: list[str] = []
    for name in names:
        below, _, file = name.rpartition("/")
        if below not in listings:
            listings[below] = _files_in(folder / below)
        if file not in listings[below]:
            missing.append(name)
    if missing:
        raise DataError(
            f"{folder}: {len(missing)} of {len(names)} rows have no picture; the first is {missing[0]}. {cure}"
        )


def _files_in(folder: Path) -> frozenset[str]:
    """The names in a folder; none where there is no such folder."""
    try:
        return frozenset(os.listdir(folder))
    except (FileNotFoundError, NotADirectoryError):
        return frozenset()
    except OSError as error:
        raise unreadable_file_error(folder, error) from error
