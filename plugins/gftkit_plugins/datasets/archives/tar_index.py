"""The index of a tar shard: read once from its headers, kept in the cache folder."""

import hashlib
import tarfile
from collections.abc import Iterator
from dataclasses import astuple, dataclass
from pathlib import Path
from typing import IO

import torch
from torch import Tensor

from gftkit.kernel import DataError
from gftkit_plugins.datasets.archives.members import damaged_member_error, label_of, shape_of
from gftkit_plugins.datasets.cache import cached
from gftkit_plugins.datasets.stretches import unreadable_file_error

_LAYOUT = 1
"""Goes into the cached file's name; raise it when what is cached changes."""
_UNIT = tarfile.BLOCKSIZE
"""Members start at multiples of so many bytes, so that four bytes say where one lies, up to 1 TiB."""
_PACKED = {b"\x1f\x8b": "gzip", b"BZ": "bzip2", b"\xfd7": "xz", b"\x28\xb5": "zstd"}


@dataclass(frozen=True)
class Fields:
    """The members to read of each sample, by their endings.

    Attributes:
        arrays: of the sample itself, then of its conditions.
        labels: of the member with the class, or None.
        label_key: the key of the class in a JSON object.
    """

    arrays: tuple[str, ...]
    labels: str | None
    label_key: str


@dataclass(frozen=True)
class Sample:
    """Members of one sample, by ending, with what reads them."""

    key: str
    members: dict[str, tarfile.TarInfo]
    tar: tarfile.TarFile

    def open(self, ending: str) -> IO[bytes]:
        """The bytes of a member."""
        stream = self.tar.extractfile(self.members[ending])
        assert stream is not None  # regular files only
        return stream


def read_index(shard: Path, fields: Fields) -> dict[str, Tensor]:
    """The index of a shard's samples, from the cache where the shard is unchanged.

    Returns:
        ``place`` and ``size`` of each member in bytes, the former in units of 512, (n, arrays) of int32 each;
        ``shape0``, ``shape1``, ... of the arrays, (n, dimensions), or (1, dimensions) where all are alike; ``label``,
        (n,) of int32, where there are labels.

    Raises:
        DataError: naming shard and member, for a shard that is damaged, cut off, packed or empty, and for a sample
            that isn't whole.
    """
    try:
        about = shard.stat()
        with shard.open("rb"):
            pass
    except OSError as error:
        raise unreadable_file_error(shard, error) from error
    said = repr((str(shard.resolve()), about.st_size, about.st_mtime_ns, astuple(fields)))
    name = f"shard-{_LAYOUT}-{hashlib.sha256(said.encode()).hexdigest()[:32]}"
    return cached(name, lambda: _index(shard, fields))


def read_samples(shard: Path) -> Iterator[Sample]:
    """The samples of a shard, headers only: neighbours whose names are the same up to the first dot.

    Raises:
        DataError: naming the shard, for one that is damaged, cut off, packed, not a tar file, or holds links.
    """
    with shard.open("rb") as stream:
        start = stream.read(2)
        packed = _PACKED.get(start)
        if packed:
            raise DataError(
                f"{shard}: wanted a plain .tar file, got one compressed by {packed}. Decompress it, because samples "
                f"are read in random order."
            )
        if not start:
            raise DataError(f"{shard}: the shard is empty (0 bytes). Write it again, or remove it.")
        stream.seek(0)
        try:
            with tarfile.open(fileobj=stream, mode="r:") as tar:
                yield from _samples(shard, tar, stream)
        except (tarfile.TarError, EOFError, ValueError) as error:
            raise _broken(shard, str(error)) from error


def _samples(shard: Path, tar: tarfile.TarFile, stream: IO[bytes]) -> Iterator[Sample]:
    key = ""
    members: dict[str, tarfile.TarInfo] = {}
    while (member := tar.next()) is not None:
        tar.members.clear()  # type: ignore[attr-defined]  # they would pile up
        folder, _, base = member.name.rpartition("/")
        if member.isdir() or base.startswith((".", "__")):
            continue
        if not member.isreg() or member.issparse():
            raise DataError(f"{shard}, member '{member.name}': wanted a plain file, got a link or another special one.")
        stem, _, ending = base.partition(".")
        name = f"{folder}/{stem}" if folder else stem
        if members and name != key:
            yield Sample(key, members, tar)
            members = {}
        if ending.lower() in members:
            raise DataError(f"{shard}, member '{member.name}': it occurs twice in its sample. Remove one.")
        key = name
        members[ending.lower()] = member
    _check_end(shard, stream, tar.offset)  # before the last sample: where the shard is cut off, that one isn't whole
    if members:
        yield Sample(key, members, tar)


def _check_end(shard: Path, stream: IO[bytes], offset: int) -> None:
    """Refuse a shard that doesn't end as one does: tarfile takes what it can't read for the end."""
    stream.seek(offset)
    mark = stream.read(_UNIT)
    if len(mark) < _UNIT or any(mark):
        what = "has no mark of its end" if len(mark) < _UNIT else "isn't readable"
        raise _broken(shard, f"from byte {offset} on it {what}")
    while rest := stream.read(2**20):
        if rest.strip(b"\0"):
            raise DataError(
                f"{shard}: the archive ends at byte {offset}, and more bytes follow. To join shards use `tar "
                f"--concatenate`, not `cat`, or give them one by one."
            )


def _index(shard: Path, fields: Fields) -> dict[str, Tensor]:
    places, sizes, labels = [], [], []
    shapes: list[list[tuple[int, ...]]] = [[] for _ in fields.arrays]
    wanted = [*fields.arrays, *([fields.labels] if fields.labels else [])]
    for sample in read_samples(shard):
        for ending in wanted:
            if ending not in sample.members:
                raise DataError(
                    f"{shard}, sample '{sample.key}': no member .{ending}, only "
                    f"{', '.join('.' + name for name in sample.members)}. The members of a sample are neighbours "
                    f"whose names agree up to the first dot. Add what is missing, or choose other members (`field`, "
                    f"`labels`, `conditions`)."
                )
        members = [sample.members[ending] for ending in fields.arrays]
        for array_shapes, ending, member in zip(shapes, fields.arrays, members, strict=True):
            who = member_name(shard, sample.key, ending)
            try:
                with sample.open(ending) as stream:
                    array_shapes.append(shape_of(ending, stream, member.size, who))
            except OSError as error:
                raise damaged_member_error(who, ending, error) from error
            if len(array_shapes[-1]) != len(array_shapes[0]):
                raise DataError(
                    f"{who}: wanted an array of shape {array_shapes[0]}, as the first, got {array_shapes[-1]}. "
                    f"Reshape or drop it."
                )
        if fields.labels:
            with sample.open(fields.labels) as stream:
                who = member_name(shard, sample.key, fields.labels)
                labels.append(label_of(fields.labels, stream.read(), fields.label_key, who))
        places.append([member.offset_data // _UNIT for member in members])
        sizes.append([member.size for member in members])
    if not places:
        raise DataError(f"{shard}: the shard is empty: it holds no sample. Write it again, or remove it.")
    index = {"place": torch.tensor(places, dtype=torch.int32), "size": torch.tensor(sizes, dtype=torch.int32)}
    for number, array_shapes in enumerate(shapes):
        alike = array_shapes[:1] if len(set(array_shapes)) == 1 else array_shapes
        index[f"shape{number}"] = torch.tensor(alike, dtype=torch.int32).reshape(len(alike), -1)
    if fields.labels:
        index["label"] = torch.tensor(labels, dtype=torch.int32)
    return index


def position(place: int) -> int:
    """The offset of a member, in bytes."""
    return place * _UNIT


def member_name(shard: Path, key: str, ending: str) -> str:
    """A member's name in messages."""
    return f"{shard}, member '{key}.{ending}'"


def find_member(shard: Path, offset: int) -> str:
    """The name in messages of the member whose content starts at this byte; slow, and only for messages."""
    try:
        for sample in read_samples(shard):
            for ending, member in sample.members.items():
                if member.offset_data == offset:
                    return member_name(shard, sample.key, ending)
    except (DataError, OSError):
        pass
    return f"{shard}, member at byte {offset}"


def _broken(shard: Path, reason: str) -> DataError:
    return DataError(
        f"{shard}: wanted a complete .tar file, and this one is damaged, incomplete or of another format ({reason}). "
        f"Write or copy it again."
    )
