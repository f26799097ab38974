"""Coverage of the metrics' 95 % intervals: the share that contains the estimated value, a mean over all repetitions.

Samples and data are drawn again in every repetition from normal laws in the plane: equal ones, and ones whose means are
1 apart in each coordinate. Training data, which `memorisation` compares with, are of the data's law. Where a metric
gives no interval, value ± 2 standard errors is used.

    python benchmarks/intervals.py
"""

import argparse
import statistics
from collections.abc import Sequence
from types import SimpleNamespace

import torch

import gftkit
from gftkit.kernel.contracts import Batch, Estimate

METRICS = (
    "energy",
    "kernel-distance",
    "precision-recall",
    "classifier-two-sample",
    "memorisation",
    "frechet",
    "sliced-wasserstein",
    "vendi",
)
SHIFTS = 0.0, 1.0
REGISTRY = gftkit.load()


def measure(metric: str, size: int, shift: float, seed: int) -> dict[str, Estimate]:
    """A metric's estimates of one repetition."""
    generator = torch.Generator().manual_seed(seed)
    x, y, old = torch.randn(3, size, 2, generator=generator, dtype=torch.float64)
    evaluation = SimpleNamespace(
        samples=lambda _: x + shift, reference=Batch(y), training=Batch(old), held_out=True, count=size, seed=seed
    )
    estimates: dict[str, Estimate] = REGISTRY.create("metric", metric).measure(evaluation, generator)
    return {name: one for name, one in estimates.items() if not name.endswith(("_null", "_reference"))}


def covers(one: Estimate, truth: float) -> bool:
    """True where the interval of an estimate contains a value."""
    low, high = one.interval or (one.value - 2 * one.stderr, one.value + 2 * one.stderr)
    return low <= truth <= high


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table in Markdown, and a line for each metric as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400, help="of every metric, size and shift")
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200], help="numbers of samples")
    options = parser.parse_args(arguments)
    columns = [(size, shift) for size in options.sizes for shift in SHIFTS]
    print("| value | interval |" + "".join(f" n = m = {size}, {shift:g} apart |" for size, shift in columns))
    print("|---|---|" + "---|" * len(columns))
    for metric in METRICS:
        shares: dict[str, list[str]] = {}
        for size, shift in columns:
            repetitions = [measure(metric, size, shift, seed) for seed in range(options.repetitions)]
            for name in repetitions[0]:
                ones = [each[name] for each in repetitions]
                truth = statistics.fmean(one.value for one in ones)
                share = statistics.fmean(covers(one, truth) for one in ones)
                kind = "its own" if ones[0].interval else "± 2 errors"
                shares.setdefault(f"| `{name}` | {kind} |", []).append(f" {100 * share:.0f} % |")
        for name, cells in shares.items():
            print(name + "".join(cells), flush=True)


if __name__ == "__main__":
    main()
