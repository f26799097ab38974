"""The Frechet distance between the features of generated and held-out samples."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from gftkit.estimation import jackknife_estimate
from gftkit.kernel import Estimate, EvaluationView
from gftkit_plugins.metrics.naming import value_name
from gftkit_plugins.metrics.needs import FeatureMetric


class Frechet(FeatureMetric):
    """Frechet distance between the Gaussians with the mean and covariance of the features of samples and data.

    It is biased upwards: n samples and m data of one law N(0, I) in d dimensions score about
    (1/n + 1/m)(d + d(d + 1)/4) instead of 0, for d much below n and m. So compare values of equal n and m only, and
    take n well above d.

    Value: ``frechet``, or ``frechet_4_steps`` for ``steps=4``; standard error by the jackknife. The features of
    the held-out data are computed once. It takes 42 symmetric eigendecompositions of size d: about 0.04 s for d = 64,
    18 s for d = 1280, on two cores.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: in use, for fewer than 20 samples or held-out data.

    Reference: Heusel et al. (2017), Eq. 6, arXiv:1706.08500; Dowson and Landau (1982) for the distance.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 5, reference=Batch(x))
        >>> metric = gftkit.load().create("metric", "frechet", feature={"name": "identity"}, steps=4)
        >>> round(metric.measure(evaluation, torch.Generator())["frechet_4_steps"].value, 3)
        50.0
    """

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The distance of the evaluation's samples from its reference."""

        def distance(x: Tensor, y: Tensor) -> float:
            return frechet_distance(x.mean(0), covariance(x), y.mean(0), covariance(y))

        return {value_name("frechet", self.steps): jackknife_estimate(distance, self.vectors(evaluation), generator)}


def covariance(x: Tensor) -> Tensor:
    """(n, d) -> (d, d): the unbiased covariance of n > 1 vectors."""
    centred = x - x.mean(0)
    return centred.T @ centred / (len(x) - 1)


def frechet_distance(mean1: Tensor, cov1: Tensor, mean2: Tensor, cov2: Tensor) -> float:
    """|m1 - m2|^2 + tr(S1 + S2 - 2 (S1 S2)^(1/2)), the squared 2-Wasserstein distance between two Gaussians.

    (S1 S2)^(1/2) has the trace of (R S2 R)^(1/2), R = S1^(1/2), which is symmetric: nothing here can turn complex, and
    singular covariances are welcome. In float64 the error is about 1e-8 times the scale of the covariances for
    singular ones, near round-off for others.

    Args:
        mean1: (d,).
        cov1: (d, d), symmetric and positive semidefinite.
        mean2: (d,).
        cov2: (d, d), likewise.

    Reference: Dowson and Landau (1982), Journal of Multivariate Analysis 12, 450-455.

    Example:
        >>> zero, one = torch.zeros(2), torch.eye(2)
        >>> frechet_distance(zero, one, zero + 3, 4 * one)  # 2 (3^2 + (2 - 1)^2)
        20.0
    """
    mean1, cov1, mean2, cov2 = (value.double() for value in (mean1, cov1, mean2, cov2))
    values, vectors = torch.linalg.eigh(cov1)
    root = vectors * values.clamp(min=0).sqrt() @ vectors.T
    cross = torch.linalg.eigvalsh(root @ cov2 @ root).clamp(min=0).sqrt().sum()
    distance = (mean1 - mean2).square().sum() + cov1.trace() + cov2.trace() - 2 * cross
    return max(0.0, float(distance))
