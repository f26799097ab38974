"""Two sides of a comparison in one process, in turns: what the benchmarks share."""

import argparse
import ctypes
import platform
import statistics
import sys
import time
from collections.abc import Callable, Sequence
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from gftkit.storage.documents import write_json

Step = Callable[[int], Any]
Sides = Callable[[torch.device, ExitStack], tuple[Step, Step]]


@dataclass(frozen=True)
class Row:
    """A comparison: two ways to take step k, and how many of them to time."""

    name: str
    peer: str
    target: float | None
    turns: int
    """How often both sides are timed, in turns."""
    steps: int
    """Steps in a turn."""
    sides: Sides
    whole: bool = False
    """Whether the steps differ and are added up, where else their median counts."""


def measure(row: Row, device: torch.device, quick: bool) -> dict[str, Any]:
    """Seconds of a step on both sides, and their ratio."""
    turns, steps = (1, 1) if quick else (row.turns, row.steps)
    spent: tuple[list[float], list[float]] = ([], [])
    with ExitStack() as stack:
        sides = row.sides(device, stack)
        warm = 0 if row.whole else 2
        for step in range(warm):
            for take in sides:
                take(step)
        for turn in range(turns):
            order = (0, 1) if turn % 2 == 0 else (1, 0)
            for side in order:
                _wait(device)
                started = time.perf_counter()
                for step in range(steps):
                    sides[side](warm + turn * steps + step)
                _wait(device)
                spent[side].append((time.perf_counter() - started) / steps)
    ours, peer = (sum(times) * steps if row.whole else statistics.median(times) for times in spent)
    return {
        "name": row.name,
        "ours_seconds": ours,
        "peer": row.peer,
        "peer_seconds": peer,
        "ratio": ours / peer,
        "target": row.target,
    }


def _wait(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)


def machine(device: torch.device) -> str:
    """What the figures were measured on."""
    if device.type == "cuda":
        return torch.cuda.get_device_name(device)
    names = [line.partition(":")[2].strip() for line in _cpu_lines() if line.startswith("model name")]
    return (
        f"{names[0] if names else platform.processor()}, {torch.get_num_threads()} threads, torch {torch.__version__}"
    )


def _cpu_lines() -> list[str]:
    path = Path("/proc/cpuinfo")
    return path.read_text().splitlines() if path.is_file() else []


def keep_freed_memory() -> None:
    """Let glibc's allocator keep what is freed, for both sides.

    Otherwise, where tensors are near 128 KiB, it depends on what ran before whether each of them is asked of the kernel
    anew, page by page: differences of a fifth, on either side.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 2**30)


def main(about: str | None, rows: Callable[[torch.device], Sequence[Row]]) -> None:
    """Measure and print every row; write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name holds this text")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="one step a side: tries the script, measures nothing")
    given = parser.parse_args()
    device = torch.device(given.device)
    there = rows(device)
    chosen = [row for row in there if given.only in row.name]
    if not chosen:
        parser.error(f"--only: no row holds '{given.only}'; there are: " + "; ".join(row.name for row in there))
    print(machine(device))
    done = []
    for row in chosen:
        found = measure(row, device, given.quick)
        done.append(found)
        print(
            f"{found['name']:<86} {1e3 * found['ours_seconds']:>10.2f} ms  {found['peer']:<28} "
            f"{1e3 * found['peer_seconds']:>10.2f} ms  ratio {found['ratio']:.3f} (target {found['target']})",
            flush=True,
        )
    if given.json is not None:
        write_json(given.json, done)
