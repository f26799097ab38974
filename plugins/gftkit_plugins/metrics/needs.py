"""Requirements of metrics, checked before anything is sampled, and the features that they compare."""

import torch
from torch import Tensor

from gftkit.estimation import GROUPS
from gftkit.evaluation import Scope
from gftkit.kernel import EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps


def check_enough(scope: Scope, least: int = GROUPS) -> None:
    """Refuse fewer samples, or data to compare them with, than ``least``.

    Raises:
        ValueError: with the number that is too small.
    """
    if scope.count < least:
        raise ValueError(f"wanted at least {least} samples, and evaluate.count is {scope.count}. Raise evaluate.count.")
    if scope.reference < least:
        raise ValueError(
            f"wanted at least {least} samples to compare with, got {scope.reference}. Give more data, or leave the "
            f"metric out."
        )


def features(feature: Feature | None, x: Tensor) -> Tensor:
    """(n, *event) -> (n, d) of float64: what a feature makes of events, by default the flattened events themselves.

    Raises:
        ValueError: where it isn't (n, d), or not finite.
    """
    with torch.no_grad():
        vectors = x.flatten(1) if feature is None else feature(x)
    if not isinstance(vectors, Tensor) or vectors.ndim != 2 or len(vectors) != len(x):
        came = tuple(vectors.shape) if isinstance(vectors, Tensor) else type(vectors).__name__
        raise ValueError(
            f"wanted a feature that maps {tuple(x.shape)} to ({len(x)}, d), got {came}. Flatten its output."
        )
    vectors = vectors.double()
    if not vectors.isfinite().all():
        raise ValueError("the feature gives NaN or infinity. Check its weights, and the range of events that it takes.")
    return vectors


def feature_size(feature: Feature | None, scope: Scope) -> int:
    """Try a feature on two events of zeros: its size d.

    Raises:
        ValueError: where it refuses events of this shape, or gives something else than vectors.
    """
    return features(feature, torch.zeros(2, *scope.event_shape)).shape[1]


def distances(x: Tensor, y: Tensor) -> Tensor:
    """(n, d), (m, d) -> (n, m): Euclidean distances, exactly 0 between equal points."""
    # Not by |x|^2 + |y|^2 - 2 x.y, cdist's way for many points: round-off would give copies a distance above 0.
    return torch.cdist(x, y, compute_mode="donot_use_mm_for_euclid_dist")


class CachedFeatures:
    """Features of data that are asked for again and again: those of the last data are kept.

    Args:
        feature: maps events to vectors; None for the flattened events.
    """

    def __init__(self, feature: Feature | None) -> None:
        self._feature = feature
        self._last: tuple[Tensor, Tensor] | None = None

    def __call__(self, x: Tensor) -> Tensor:
        """The features of x, (n, *event) -> (n, d)."""
        if self._last is None or self._last[0] is not x:
            self._last = x, features(self._feature, x)
        return self._last[1]


class FeatureMetric:
    """Base of the metrics of features: the feature, the solver steps, the checks, and the vectors to compare.

    Args:
        feature: maps events to vectors; None for the flattened events.
        steps: solver steps of the samples; None for the evaluation's own number.

    Attributes:
        least: the least number of samples, and of data.
    """

    least = GROUPS

    def __init__(self, feature: Feature | None = None, steps: SolverSteps = None) -> None:
        self.feature, self.steps = feature, steps
        self._of_data = CachedFeatures(feature)

    def check(self, scope: Scope) -> None:
        """Refuse too few samples, and events that the feature isn't for."""
        check_enough(scope, self.least)
        feature_size(self.feature, scope)

    def vectors(self, evaluation: EvaluationView) -> tuple[Tensor, Tensor]:
        """The features of the evaluation's samples, (n, d), and of its reference, (m, d)."""
        return features(self.feature, evaluation.samples(self.steps)), self._of_data(evaluation.reference.x1)
