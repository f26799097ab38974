"""The sliced Wasserstein distance between generated and held-out samples."""

from collections.abc import Mapping
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.estimation import jackknife_estimate
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import FeatureMetric


class SlicedWasserstein(FeatureMetric):
    """Sliced Wasserstein distance: (mean over directions u of W_p(u.x, u.y)^p)^(1/p), u uniform on the unit sphere.

    Of each direction the one-dimensional distance is exact, for any numbers of samples x and held-out data y. It is
    biased upwards: two samples of one law are about (1/n + 1/m)^(1/2) apart. Compare equal numbers of samples. The
    directions are the same at every evaluation of a run.

    Value: ``sliced_wasserstein``, or ``sliced_wasserstein_4_steps`` for ``steps=4``, in the unit of the features;
    standard error over samples and data, of these directions, by the jackknife.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        p: order of the distance.
        projections: how many directions.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: for fewer than 20 samples or held-out data.

    Reference: Bonneel et al. (2015), Sliced and Radon Wasserstein barycenters of measures, Journal of Mathematical
        Imaging and Vision 51, 22-45, Definition 1.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 1, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 5, reference=Batch(x))
        >>> metric = gftkit.load().create("metric", "sliced-wasserstein")
        >>> round(metric.measure(evaluation, torch.Generator())["sliced_wasserstein"].value, 4)
        5.0
    """

    def __init__(
        self,
        feature: Feature | None = None,
        p: Literal[1, 2] = 2,
        projections: Annotated[int, Field(gt=0)] = 200,
        steps: SolverSteps = None,
    ) -> None:
        super().__init__(feature, steps)
        self.p, self.projections = p, projections

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The distance of the evaluation's samples from its reference."""
        x, y = self.vectors(evaluation)
        directions = torch.randn(self.projections, x.shape[1], generator=generator, dtype=torch.float64)
        directions /= directions.norm(dim=1, keepdim=True)
        (x, rank_x), (y, rank_y) = ((directions @ each.T).sort(dim=1) for each in (x, y))

        def distance(kept_x: Tensor, kept_y: Tensor) -> float:
            powers = on_lines(_select(x, rank_x, kept_x), _select(y, rank_y, kept_y), self.p)
            return float(powers.mean()) ** (1 / self.p)

        counts = [torch.arange(each.shape[1]) for each in (x, y)]
        return {value_name("sliced_wasserstein", self.steps): jackknife_estimate(distance, counts, generator)}


def _select(ordered: Tensor, rank: Tensor, kept: Tensor) -> Tensor:
    """The values of the kept points alone, still sorted: (lines, n) -> (lines, kept)."""
    selected = torch.zeros(ordered.shape[1], dtype=torch.bool)
    selected[kept] = True
    return ordered[selected[rank]].view(len(ordered), -1)


def on_lines(x: Tensor, y: Tensor, p: int) -> Tensor:
    """W_p^p between samples on lines: int_0^1 |F^-1(q) - G^-1(q)|^p dq, exactly.

    Args:
        x: (lines, n), sorted.
        y: (lines, m), sorted.
        p: order.

    Returns:
        (lines,).

    Example:
        >>> on_lines(torch.tensor([[0.0, 1.0]]), torch.tensor([[0.0, 0.0, 3.0]]), p=1)  # 1/6 + 2/3
        tensor([0.8333])
    """
    n, m = x.shape[1], y.shape[1]
    if n == m:
        return (x - y).abs().pow(p).mean(1)
    ends = torch.unique(torch.cat([torch.arange(1, n + 1) * m, torch.arange(1, m + 1) * n]))  # levels q, times n m
    widths = ends.diff(prepend=ends.new_zeros(1)).to(x.dtype) / (n * m)
    first = ends - 1  # in the stretch that ends there
    return ((x[:, first // m] - y[:, first // n]).abs().pow(p) * widths).sum(1)
