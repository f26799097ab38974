"""The kernel distance between the features of generated and held-out samples."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.estimation import GROUPS, discrepancy
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import FeatureMetric

SUBSETS = 100
"""Default number of subsets, as in the reference."""


class KernelDistance(FeatureMetric):
    """Kernel distance (KID): the unbiased MMD^2 of features under the kernel (x.y/d + 1)^3.

    E k(x, x') + E k(y, y') - 2 E k(x, y) for samples x and held-out data y. Unlike the Frechet distance it isn't biased
    for few samples: a good model may score slightly below 0. It sees the first three moments of the features.

    Value: ``kernel_distance``, or ``kernel_distance_4_steps`` for ``steps=4``. Of the whole samples, with a standard
    error by the jackknife and an interval by the Bayesian bootstrap; memory 12 bytes for each pair, in each of
    three matrices. With ``subset`` the mean over random subsets, in memory for these alone: then the standard error is
    s (1/``subsets`` + ``subset``/min(n, m))^(1/2), s the standard deviation over subsets, which errs upwards near 0,
    and there is no interval.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        subset: samples, and data, in a subset; null for the whole.
        subsets: how many random subsets are averaged.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: for fewer than 20 samples or held-out data, or than a subset takes.

    Reference: Binkowski et al. (2018), Demystifying MMD GANs, section 4, arXiv:1801.01401.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 5, reference=Batch(x))
        >>> metric = gftkit.load().create("metric", "kernel-distance")
        >>> metric.measure(evaluation, torch.Generator())["kernel_distance"].value > 1000
        True
    """

    def __init__(
        self,
        feature: Feature | None = None,
        subset: Annotated[int, Field(ge=20)] | None = None,
        subsets: Annotated[int, Field(gt=1)] = SUBSETS,
        steps: SolverSteps = None,
    ) -> None:
        super().__init__(feature, steps)
        self.subset, self.subsets = subset, subsets
        self.least = subset or GROUPS

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The distance of the evaluation's samples from its reference."""
        x, y = self.vectors(evaluation)
        name = value_name("kernel_distance", self.steps)
        if self.subset is None:
            return {name: discrepancy(cubic(x, x), cubic(y, y), cubic(x, y), generator)}
        return {name: self._over_subsets(x, y, self.subset, generator)}

    def _over_subsets(self, x: Tensor, y: Tensor, size: int, generator: Generator) -> Estimate:
        """The mean over random subsets of one size."""
        smaller = min(len(x), len(y))
        if smaller < size:
            raise ValueError(
                f"wanted at least {size} samples for a subset, got {smaller}. Lower `subset`, or make more samples."
            )
        distances = torch.empty(self.subsets, dtype=torch.float64)
        for index in range(self.subsets):
            some = [each[torch.randperm(len(each), generator=generator)[:size]] for each in (x, y)]
            within = [(cubic(each, each).sum() - cubic_of_itself(each)) / (size * (size - 1)) for each in some]
            distances[index] = within[0] + within[1] - 2 * cubic(*some).mean()
        return Estimate(float(distances.mean()), float(distances.std()) * (1 / self.subsets + size / smaller) ** 0.5)


def cubic(x: Tensor, y: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m): the kernel (x.y/d + 1)^3.

    Example:
        >>> cubic(torch.tensor([[1.0, 1.0]]), torch.tensor([[2.0, 0.0], [0.0, 0.0]]))
        tensor([[8., 1.]])
    """
    return (x @ y.T / x.shape[1] + 1).pow(3)


def cubic_of_itself(x: Tensor) -> Tensor:
    """The sum over i of the kernel of x_i with itself."""
    return (x.square().sum(1) / x.shape[1] + 1).pow(3).sum()
