"""How often the 95 % intervals of the metrics hold what they estimate: a metric's mean over all repetitions.

Samples and data are drawn anew in every repetition from normal laws in the plane: equal ones, and ones whose means are
1 apart in each coordinate. Training data, which `memorisation` compares with, are of the data's law. Where a metric
gives no interval, value ± 2 standard errors stands for it.

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


def measured(metric: str, size: int, shift: float, seed: int) -> dict[str, Estimate]:
    """A metric's estimates of one repetition."""
    generator = torch.Generator().manual_seed(seed)
    x, y, old = torch.randn(3, size, 2, generator=generator, dtype=torch.float64)
    evaluation = SimpleNamespace(
        samples=lambda _: x + shift, reference=Batch(y), training=Batch(old), held_out=True, count=size, seed=seed
    )
    found: dict[str, Estimate] = REGISTRY.create("metric", metric).measure(evaluation, generator)
    return {name: one for name, one in found.items() if not name.endswith(("_null", "_reference"))}


def holds(one: Estimate, truth: float) -> bool:
    """Whether the interval of an estimate holds a value."""
    low, high = one.interval or (one.value - 2 * one.stderr, one.value + 2 * one.stderr)
    return low <= truth <= high


def main(arguments: Sequence[str] | None = None) -> None:
    """Print a table in Markdown, and a line for each metric as it is done."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repetitions", type=int, default=400)
    parser.add_argument("--sizes", type=int, nargs="+", default=[50, 200])
    given = parser.parse_args(arguments)
    columns = [(size, shift) for size in given.sizes for shift in SHIFTS]
    print("| value | interval |" + "".join(f" n = m = {size}, {shift:g} apart |" for size, shift in columns))
    print("|---|---|" + "---|" * len(columns))
    for metric in METRICS:
        held: dict[str, list[str]] = {}
        for size, shift in columns:
            made = [measured(metric, size, shift, seed) for seed in range(given.repetitions)]
            for name in made[0]:
                ones = [each[name] for each in made]
                truth = statistics.fmean(one.value for one in ones)
                share = statistics.fmean(holds(one, truth) for one in ones)
                kind = "its own" if ones[0].interval else "± 2 errors"
                held.setdefault(f"| `{name}` | {kind} |", []).append(f" {100 * share:.0f} % |")
        for name, shares in held.items():
            print(name + "".join(shares), flush=True)


if __name__ == "__main__":
    main()
