"""Memory and speed of reading large data: peak memory against the size of the set, samples a second by data set.

    python benchmarks/streaming.py                      # sets of 50 MB to 5 GB, in a temporary folder: takes minutes
    python benchmarks/streaming.py --megabytes 30 300   # smaller ones

Every set is written, read for one epoch in the order of training by a process of its own, and deleted. Peak memory is
the largest resident set of that process (VmHWM of Linux), with the interpreter and torch in it: a process that reads
nothing shows how much that is. The allocator is set to give large blocks back at once. Speeds are medians of
interleaved rounds over the same pictures, in the system's cache.
"""

import argparse
import io
import json
import os
import shutil
import statistics
import subprocess
import sys
import tarfile
import tempfile
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

import gftkit
from gftkit.data.samples import Samples, VisitOrder
from gftkit.storage.documents import write_json

SHAPE = (3, 128, 128)
"""Of a sample in the sets whose memory is measured: 48 KiB of uint8."""
BATCH = 128
SHARD = 1000
"""Samples in a shard."""
PICTURES, SIDE = 2048, 64
"""Number and side of the pictures whose reading is timed."""
SMALLEST_ARRAY = 1200
"""Megabytes from which an array counts as large."""


def samples() -> Callable[[int], np.ndarray[Any, np.dtype[np.uint8]]]:
    """Sample number i of a synthetic set: noise from a small pool, shifted, so that writing it is quick."""
    pool = np.random.default_rng(0).integers(256, size=(16, *SHAPE), dtype=np.uint8)
    return lambda i: np.roll(pool[i % 16], i // 16 % SHAPE[-1], -1)


def write_shards(folder: Path, count: int) -> dict[str, Any]:
    """Tar shards of .npy members and classes."""
    sample = samples()
    for first in range(0, count, SHARD):
        with tarfile.open(folder / f"{first // SHARD:06}.tar", "w") as tar:
            for i in range(first, min(first + SHARD, count)):
                add(tar, f"{i:09}.npy", npy(sample(i)))
                add(tar, f"{i:09}.cls", str(i % 10).encode())
    return {"name": "shards", "files": str(folder)}


def write_array(folder: Path, count: int) -> dict[str, Any]:
    """One .npy file."""
    sample = samples()
    values = np.lib.format.open_memmap(folder / "all.npy", "w+", np.uint8, (count, *SHAPE))
    for i in range(count):
        values[i] = sample(i)
    values.flush()
    return {"name": "arrays", "file": str(folder / "all.npy")}


WRITERS = {"shards": write_shards, "array": write_array}


def add(tar: tarfile.TarFile, name: str, content: bytes) -> None:
    """One member."""
    about = tarfile.TarInfo(name)
    about.size = len(content)
    tar.addfile(about, io.BytesIO(content))


def npy(values: np.ndarray[Any, Any]) -> bytes:
    """The bytes of an .npy file."""
    stream = io.BytesIO()
    np.save(stream, values)
    return stream.getvalue()


def read(spec: dict[str, Any] | None, *, keep: bool = False) -> dict[str, float]:
    """One epoch of a data set in the order of training: samples, seconds and this process's peak memory in MB.

    Args:
        spec: the data set; None reads nothing.
        keep: keep everything that was read, as a reader does that doesn't stream.
    """
    torch.set_num_threads(1)
    registry, kept, count = gftkit.load(), [], 0
    opened = started = time.perf_counter()
    if spec is not None:
        samples_read = Samples(registry.build("dataset", spec), "data")
        opened = time.perf_counter()
        order, count = VisitOrder(samples_read, 0), samples_read.size or 0
        for first in range(0, count, BATCH):
            batch = order.take(first, min(BATCH, count - first))
            if keep:
                kept.append(batch)
    now = time.perf_counter()
    return {"samples": count, "opening": opened - started, "seconds": now - opened, "peak_mb": peak()}


def peak() -> float:
    """Largest resident set of this process so far, in MB (10^6 bytes)."""
    for line in Path("/proc/self/status").read_text().splitlines():
        if line.startswith("VmHWM"):
            return int(line.split()[1]) * 1024 / 1e6
    raise SystemExit("/proc/self/status has no VmHWM: this benchmark needs Linux.")


def in_a_process(spec: dict[str, Any] | None, *, keep: bool, folder: Path) -> dict[str, float]:
    """``read`` in a process of its own, with a cache folder of its own."""
    words = [sys.executable, __file__, "--read", json.dumps(spec), *(["--keep"] if keep else [])]
    # glibc would keep freed blocks of up to 32 MB; how many differs from run to run by more than what is measured.
    environment = {"GFTKIT_CACHE": str(folder / "cache"), "OMP_NUM_THREADS": "1", "MALLOC_MMAP_THRESHOLD_": "1048576"}
    done = subprocess.run(words, env={**os.environ, **environment}, capture_output=True, text=True, check=False)
    if done.returncode:
        raise SystemExit(done.stderr)
    figures: dict[str, float] = json.loads(done.stdout)
    return figures


def memory(kind: str, megabytes: int, where: Path | None, *, keep: bool = False) -> dict[str, Any]:
    """Peak memory of one epoch over a set of this size.

    Raises:
        SystemExit: where the disk is too small.
    """
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        check_disk(folder, megabytes)
        (folder / "set").mkdir()
        spec = WRITERS[kind](folder / "set", max(1, round(megabytes * 1e6 / np.prod(SHAPE))))
        return {"kind": kind, "megabytes": megabytes, **in_a_process(spec, keep=keep, folder=folder)}


def check_disk(folder: Path, megabytes: float) -> None:
    """Refuse a set that doesn't fit on the disk.

    Raises:
        SystemExit: with the wanted and the free space.
    """
    free = shutil.disk_usage(folder).free / 1e6
    if free < 1.2 * megabytes + 500:
        raise SystemExit(
            f"{folder}: wanted {1.2 * megabytes + 500:.0f} MB, and {free:.0f} MB are free. Free some, or choose "
            f"another folder with --folder."
        )


def speed(count: int, rounds: int, where: Path | None) -> list[dict[str, Any]]:
    """Samples a second over the same pictures, by data set."""
    from PIL import Image

    from gftkit_plugins.datasets.images import image_folder

    registry = gftkit.load()
    generator = np.random.default_rng(0)
    with tempfile.TemporaryDirectory(dir=where) as name:
        folder = Path(name)
        (folder / "pictures").mkdir()
        smooth = generator.integers(256, size=(count, 8, 8, 3), dtype=np.uint8)
        pictures = [np.asarray(Image.fromarray(one).resize((SIDE, SIDE))) for one in smooth]
        with tarfile.open(folder / "png.tar", "w") as png, tarfile.open(folder / "npy.tar", "w") as raw:
            for i, pixels in enumerate(pictures):
                file = folder / "pictures" / f"{i:06}.png"
                Image.fromarray(pixels).save(file)
                add(png, f"{i:06}.png", file.read_bytes())
                add(raw, f"{i:06}.npy", npy(pixels.transpose(2, 0, 1)))
        np.save(folder / "all.npy", np.stack(pictures).transpose(0, 3, 1, 2).copy())
        specs = {
            "image-folder": {"name": "image-folder", "folder": str(folder / "pictures")},
            "shards of .png": {"name": "shards", "files": str(folder / "png.tar")},
            "shards of .npy": {"name": "shards", "files": str(folder / "npy.tar")},
            "arrays, mapped": {"name": "arrays", "file": str(folder / "all.npy")},
        }
        kept, image_folder._MEMORY = image_folder._MEMORY, 0  # decode batch by batch, as a large folder is
        try:
            orders = {key: VisitOrder(Samples(registry.build("dataset", spec), key), 0) for key, spec in specs.items()}
        finally:
            image_folder._MEMORY = kept
        speeds: dict[str, list[float]] = {key: [] for key in orders}
        for turn in range(rounds + 1):
            for key, order in orders.items():
                started = time.perf_counter()
                for first in range(turn * count, (turn + 1) * count, BATCH):
                    order.take(first, BATCH)
                speeds[key].append(count / (time.perf_counter() - started))
    medians = {key: statistics.median(values[1:]) for key, values in speeds.items()}  # the first round warms up
    return [
        {"kind": key, "samples_per_second": median, "times_image_folder": median / medians["image-folder"]}
        for key, median in medians.items()
    ]


def main(arguments: Sequence[str] | None = None) -> None:
    """Measure, print tables, and write them with ``--json``."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--megabytes", type=int, nargs="+", default=[50, 500, 5000], help="sizes of the sets")
    parser.add_argument("--rounds", type=int, default=7, help="rounds of timing; 0 for none")
    parser.add_argument("--pictures", type=int, default=PICTURES, help="number of pictures whose reading is timed")
    parser.add_argument("--folder", type=Path, help="folder for the sets, which are deleted afterwards")
    parser.add_argument("--json", type=Path, help="file for the figures")
    parser.add_argument("--read", help=argparse.SUPPRESS)
    parser.add_argument("--keep", action="store_true", help=argparse.SUPPRESS)
    options = parser.parse_args(arguments)
    if options.read:
        print(json.dumps(read(json.loads(options.read), keep=options.keep)))
        return
    sets = [("shards", size) for size in options.megabytes]
    sets += [("array", size) for size in options.megabytes if size >= SMALLEST_ARRAY]
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        check_disk(Path(name), max(options.megabytes))
        nothing = in_a_process(None, keep=False, folder=Path(name))
    rows = [{"kind": "nothing", "megabytes": 0, **nothing}]
    print("| set | MB on disk | samples | peak memory, MB | opening, s | samples/s |\n|---|---|---|---|---|---|")
    for kind, size in (("nothing", 0), *sets):
        row = rows[0] if kind == "nothing" else memory(kind, size, options.folder)
        rows += [] if kind == "nothing" else [row]
        rate = f"{row['samples'] / row['seconds']:.0f}" if row["samples"] else ""
        line = f"| {kind} | {size} | {row['samples']} | {row['peak_mb']:.0f} | {row['opening']:.1f} | {rate} |"
        print(line, flush=True)
    speeds = speed(options.pictures, options.rounds, options.folder) if options.rounds else []
    if speeds:
        print(f"\n| {options.pictures} pictures of {SIDE} x {SIDE} | samples/s | times image-folder |\n|---|---|---|")
    for each in speeds:
        print(f"| {each['kind']} | {each['samples_per_second']:.0f} | {each['times_image_folder']:.2f} |")
    if options.json:
        write_json(options.json, {"memory": rows, "speed": speeds})


if __name__ == "__main__":
    main()
