"""Two sides of a comparison in one process, in turns, for all benchmarks."""

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
    """Turns in which both sides are timed."""
    steps: int
    """Steps in a turn."""
    sides: Sides
    whole: bool = False
    """Whether the steps differ and are added up; otherwise their median counts."""


def measure(row: Row, device: torch.device, *, quick: bool) -> dict[str, Any]:
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
    """A description of the machine of the figures."""
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
    """Let glibc's allocator keep freed memory, for both sides.

    Otherwise, with tensors near 128 KiB, it depends on earlier allocations whether each of them is requested from the
    operating system again, page by page: differences of a fifth, on either side.
    """
    mallopt = getattr(ctypes.CDLL(None), "mallopt", None) if sys.platform == "linux" else None
    if mallopt is not None:
        for parameter in (-1, -3):  # M_TRIM_THRESHOLD, M_MMAP_THRESHOLD
            mallopt(parameter, 2**30)


def main(about: str | None, rows: Callable[[torch.device], Sequence[Row]]) -> None:
    """Measure and print every row; write them as JSON where asked."""
    parser = argparse.ArgumentParser(description=about, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--json", type=Path, metavar="FILE", help="write the rows here too")
    parser.add_argument("--only", default="", metavar="TEXT", help="rows whose name contains this text")
    parser.add_argument("--device", default="cpu", help="cpu or cuda")
    parser.add_argument("--quick", action="store_true", help="one step a side: tries the script, measures nothing")
    options = parser.parse_args()
    device = torch.device(options.device)
    available = rows(device)
    selected = [row for row in available if options.only in row.name]
    if not selected:
        parser.error(
            f"--only: no row contains '{options.only}'; there are: " + "; ".join(row.name for row in available)
        )
    print(machine(device))
    done = []
    for row in selected:
        result = measure(row, device, quick=options.quick)
        done.append(result)
        print(
            f"{result['name']:<86} {1e3 * result['ours_seconds']:>10.2f} ms  {result['peer']:<28} "
            f"{1e3 * result['peer_seconds']:>10.2f} ms  ratio {result['ratio']:.3f} (target {result['target']})",
            flush=True,
        )
    if options.json is not None:
        write_json(options.json, done)
