"""Memorisation: are samples nearer to the training data than to data of the same law that weren't trained on?"""

from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from gftkit.estimation import GROUPS, jackknife_estimate, log_normal
from gftkit.evaluation import Scope
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import CachedFeatures, FeatureMetric, distances


class Memorisation(FeatureMetric):
    """Nearest-neighbour ratio: mean distance of samples to the training data over that to held-out data.

    mean_i min_(y in A) |x_i - y| / mean_i min_(y in B) |x_i - y|: x are the samples, A and B are c training and c
    held-out data, c the smaller of both numbers, each chosen at random where there are more; distances are Euclidean
    between features. If the model knows no training datum better than a held-out one, A and B may be swapped, and the
    ratio is 1 up to chance. Below 1 samples lie nearer to what was trained on; 0 is a copy of every sample. It needs
    held-out data of the training data's law: with other data it compares laws.

    At most ``evaluate.count`` training data are looked at: of a larger set copies are found in proportion only.

    Value: ``memorisation``, or ``memorisation_4_steps`` for ``steps=4``; standard error by the jackknife over
    samples, training and held-out data, which errs upwards for neighbours; the interval is normal for the logarithm. A
    bootstrap would leave a third of the data out, and with them the originals of copies.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: without ``evaluate.data``, for fewer than 20 samples, training or held-out data, and where every
            sample is a copy of held-out data.

    Reference: Meehan, Chaudhuri, Dasgupta (2020), A non-parametric test to detect data-copying in generative models,
        arXiv:2004.05675, for the comparison with held-out data; Efron and Stein (1981), Annals of Statistics 9,
        586-596, for the jackknife's upward error.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> old, new = torch.randn(2, 50, 2, generator=torch.Generator().manual_seed(0))
        >>> copies = SimpleNamespace(samples=lambda n: old, reference=Batch(new), training=Batch(old), held_out=True)
        >>> gftkit.load().create("metric", "memorisation").measure(copies, torch.Generator())["memorisation"].value
        0.0
    """

    def __init__(self, feature: Feature | None = None, steps: SolverSteps = None) -> None:
        super().__init__(feature, steps)
        self._of_training = CachedFeatures(feature)

    def check(self, scope: Scope) -> None:
        """Refuse a run without held-out data, too few samples, and events that the feature isn't for."""
        _held_out(available=scope.held_out)
        super().check(scope)
        if scope.training < GROUPS:
            raise ValueError(f"wanted at least {GROUPS} training data, got {scope.training}. Leave the metric out.")

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The ratio for the evaluation's samples, the run's training data and its held-out data."""
        _held_out(available=evaluation.held_out and evaluation.training is not None)
        assert evaluation.training is not None
        x, held_out = self.vectors(evaluation)
        sets = self._of_training(evaluation.training.x1), held_out
        count = min(map(len, sets))
        old, new = (distances(x, each[torch.randperm(len(each), generator=generator)[:count]]) for each in sets)

        def ratio(samples: Tensor, training: Tensor, held_out: Tensor) -> float:
            near = [d[samples][:, kept].amin(1).mean() for d, kept in ((old, training), (new, held_out))]
            return float(near[0] / near[1])

        if not new.amin(1).any():
            raise ValueError("every sample is a copy of a held-out sample. Hold out other data.")
        indices = [torch.arange(len(x)), torch.arange(count), torch.arange(count)]
        return {value_name("memorisation", self.steps): log_normal(jackknife_estimate(ratio, indices, generator))}


def _held_out(*, available: bool) -> None:
    """Refuse to compare without held-out data."""
    if not available:
        raise ValueError(
            "memorisation compares training data with held-out data, and none are held out. Set evaluate.data, for "
            "example to the same data set with `split: test`."
        )
