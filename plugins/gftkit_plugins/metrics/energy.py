"""The energy distance between generated and held-out samples."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from gftkit.contracts import Estimate
from gftkit.evaluation import Evaluation
from gftkit.jackknife import jackknife
from gftkit_plugins.metrics.naming import Steps, key


class Energy:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'| between samples x and held-out data y.

    |.| is the Euclidean norm of the flattened event. 0 exactly where the two laws are equal. The expectations are
    unbiased U-statistics, so that a good model may score slightly below 0. Memory grows with the square of the
    number of samples: 8 bytes for every pair, in each of three matrices.

    Value: ``energy``, or ``energy_4_steps`` for ``steps=4``; standard error by ``gftkit.jackknife``, which errs upwards
    by up to sqrt(2) near 0.

    Args:
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: in use, for fewer than 20 samples or held-out data.

    Reference: Szekely and Rizzo (2013), Energy statistics: a class of statistics based on distances, Eq. 2.5.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.contracts import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 5, reference=Batch(x))
        >>> metric = gftkit.load().create("metric", "energy")
        >>> metric.measure(evaluation, torch.Generator())["energy"].value > 5
        True
    """

    def __init__(self, steps: Steps = None) -> None:
        self.steps = steps

    def measure(self, evaluation: Evaluation, generator: Generator) -> Mapping[str, Estimate]:
        """The distance of the evaluation's samples from its reference."""
        x = evaluation.samples(self.steps).flatten(1).double()
        y = evaluation.reference.x1.flatten(1).double()
        xy, xx, yy = torch.cdist(x, y), _within(x), _within(y)

        def distance(of_x: Tensor, of_y: Tensor) -> float:
            u, v = _indicator(of_x, len(x)), _indicator(of_y, len(y))
            n, m = len(of_x), len(of_y)
            across = u @ xy @ v / (n * m)
            return float(2 * across - u @ xx @ u / (n * (n - 1)) - v @ yy @ v / (m * (m - 1)))

        return {key("energy", self.steps): jackknife(distance, [torch.arange(len(x)), torch.arange(len(y))], generator)}


def _within(x: Tensor) -> Tensor:
    """(n, n): distances within a sample, exactly 0 from a point to itself."""
    return torch.cdist(x, x).fill_diagonal_(0)


def _indicator(indices: Tensor, size: int) -> Tensor:
    """(size,): 1 at the indices, 0 elsewhere."""
    return torch.zeros(size, dtype=torch.float64).index_fill_(0, indices, 1)
