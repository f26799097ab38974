"""The Vendi score: how many different samples there are, effectively."""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from gftkit.estimation import jackknife_estimate
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import FeatureMetric


class Vendi(FeatureMetric):
    """Vendi score of the samples: exp(-sum_i l_i log l_i), l the eigenvalues of K/n, K the cosines of their features.

    1 where all features point the same way, n where they are orthogonal: an effective number of different samples, of
    whatever quality. It says nothing without the data's own score beside it; both are of min(n, m) samples, as the
    score grows with the number. A good score is near the data's; below it, diversity is lost.

    Values: ``vendi`` of the samples and ``vendi_reference`` of the data, with ``steps=4`` ``vendi_4_steps`` and so on;
    standard errors by the jackknife (with repeated draws, as in a bootstrap, the score would be lower). 42
    eigendecompositions of size min(n, d).

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: for fewer than 20 samples or held-out data, or a feature that is zero, which has no direction.

    Reference: Friedman and Dieng (2023), The Vendi score, Definition 3.1, arXiv:2210.02410.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.eye(4).repeat(10, 1)
        >>> evaluation = SimpleNamespace(samples=lambda steps: x[:, :1] + torch.zeros(40, 4) + 1, reference=Batch(x))
        >>> found = gftkit.load().create("metric", "vendi").measure(evaluation, torch.Generator())
        >>> round(found["vendi"].value, 4), round(found["vendi_reference"].value, 4)
        (1.0, 4.0)
    """

    def __init__(self, feature: Feature | None = None, steps: SolverSteps = None) -> None:
        super().__init__(feature, steps)
        self._reference: tuple[Tensor, int, Estimate] | None = None  # the data's features, how many, and their score

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The score of the evaluation's samples and that of its reference."""
        x, y = self.vectors(evaluation)
        count = min(len(x), len(y))
        # The samples first: whether the data's score is kept already, both see the same random numbers.
        own = jackknife_estimate(vendi_score, [_directions(x[:count], "samples")], generator)
        if self._reference is None or self._reference[0] is not y or self._reference[1] != count:
            self._reference = y, count, jackknife_estimate(vendi_score, [_directions(y[:count], "data")], generator)
        return {value_name("vendi", self.steps): own, value_name("vendi_reference", self.steps): self._reference[2]}


def _directions(x: Tensor, what: str) -> Tensor:
    """(n, d) -> (n, d) of norm 1."""
    norms = x.norm(dim=1, keepdim=True)
    if not (norms > 0).all():
        raise ValueError(f"a feature of the {what} is zero, which has no direction. Choose another feature.")
    return x / norms


def vendi_score(directions: Tensor) -> float:
    """(n, d) of norm 1 -> the Vendi score; K/n has the eigenvalues of the smaller of its two Gram matrices."""
    n, d = directions.shape
    gram = directions.T @ directions if d < n else directions @ directions.T
    values = torch.linalg.eigvalsh(gram / n).clamp(min=0)
    return float(torch.special.entr(values).sum().exp())
