"""Fidelity and diversity by nearest neighbours: precision, recall, density, coverage."""

from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.estimation import GROUPS, jackknife_estimates, proportion
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import FeatureMetric, distances


class PrecisionRecall(FeatureMetric):
    """Precision, recall, density and coverage of samples x against held-out data y, in the space of features.

    With B(y) the ball about y that reaches to its k-th nearest neighbour among the data, B(x) likewise among samples:

    - ``precision``: share of the samples in some B(y): how many look like data;
    - ``recall``: share of the data in some B(x): how much of the data the samples cover;
    - ``density``: mean over the samples of the number of B(y) they lie in, over k: as precision, but one outlying datum
      with a large ball counts little; 1 in expectation for equal laws, and may be above;
    - ``coverage``: share of the B(y) that hold a sample: as recall, but without balls about bad samples. For equal laws
      1 - C(m-1, k)/C(n+m-1, k) in expectation, about 1 - 2^-k for n = m.

    Precision and recall of equal laws are below 1 and depend on law, n, m and k: compare equal numbers only.

    Values: ``precision`` and the others, or ``precision_4_steps`` for ``steps=4``. Standard errors by
    the jackknife: a bootstrap repeats points, whose balls then have radius 0. The shares have Wilson's interval,
    ``gftkit.estimation.proportion``. Memory: 12 bytes for each pair, in each of three matrices.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        neighbours: k.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: for fewer than 20 samples or data, or than 2 (k + 1); for data or samples whose features are so
            often equal that no ball has a radius.

    Reference: Kynkaanniemi et al. (2019), Eq. 2, arXiv:1904.06991 (precision, recall); Naeem et al. (2020), section 3
        and Lemma 2, arXiv:2002.09797 (density, coverage, and their values for equal laws).

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x, y = torch.randn(2, 60, 2, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 100, reference=Batch(y))
        >>> found = gftkit.load().create("metric", "precision-recall").measure(evaluation, torch.Generator())
        >>> {name: each.value for name, each in found.items()}
        {'precision': 0.0, 'recall': 0.0, 'density': 0.0, 'coverage': 0.0}
    """

    def __init__(
        self, feature: Feature | None = None, neighbours: Annotated[int, Field(gt=0)] = 5, steps: SolverSteps = None
    ) -> None:
        super().__init__(feature, steps)
        self.neighbours = neighbours
        self.least = max(GROUPS, 2 * (neighbours + 1))

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The four numbers for the evaluation's samples and its reference."""
        x, y = self.vectors(evaluation)
        least = 2 * (self.neighbours + 1)
        if min(len(x), len(y)) < least:
            raise ValueError(
                f"{self.neighbours} neighbours require at least {least} samples and data, got {min(len(x), len(y))}. "
                f"Make more samples, hold out more data, or lower `neighbours`."
            )
        xx, yy, xy = (distances(*pair).float() for pair in ((x, x), (y, y), (x, y)))
        for within, what in ((yy, "data"), (xx, "samples")):
            if not radii(within, self.neighbours).any():
                raise ValueError(
                    f"the features of the {what} coincide, so no ball has a radius. Is there only one class, or one "
                    f"image? Use data that differ, or another feature."
                )

        def of(kept_x: Tensor, kept_y: Tensor) -> tuple[float, ...]:
            return shares(xx[kept_x][:, kept_x], yy[kept_y][:, kept_y], xy[kept_x][:, kept_y], self.neighbours)

        kept = [torch.arange(len(x)), torch.arange(len(y))]
        estimates = dict(
            zip(("precision", "recall", "density", "coverage"), jackknife_estimates(of, kept, generator), strict=True)
        )
        for name, count in (("precision", len(x)), ("recall", len(y)), ("coverage", len(y))):
            estimates[name] = proportion(estimates[name].value, estimates[name].stderr, count)
        return {value_name(name, self.steps): estimate for name, estimate in estimates.items()}


def shares(xx: Tensor, yy: Tensor, xy: Tensor, neighbours: int) -> tuple[float, float, float, float]:
    """Precision, recall, density and coverage.

    Args:
        xx: (n, n), distances within the samples.
        yy: (m, m), within the data.
        xy: (n, m), between them.
        neighbours: k.
    """
    about_data = xy <= radii(yy, neighbours)
    about_samples = xy <= radii(xx, neighbours)[:, None]
    means = (about_data.any(1), about_samples.any(0), about_data.double().sum(1) / neighbours, about_data.any(0))
    precision, recall, density, coverage = (float(each.double().mean()) for each in means)
    return precision, recall, density, coverage


def radii(within: Tensor, neighbours: int) -> Tensor:
    """(n, n) distances within a sample -> (n,): to the k-th nearest other point."""
    return within.kthvalue(neighbours + 1, dim=1).values  # the nearest is the point itself
