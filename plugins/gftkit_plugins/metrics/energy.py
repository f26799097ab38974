"""The energy distance between generated and held-out samples."""

from collections.abc import Mapping

import torch
from torch import Generator

from gftkit.estimation import discrepancy
from gftkit.evaluation import Scope
from gftkit.kernel import Estimate, EvaluationView
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import check_enough


class Energy:
    """Energy distance 2 E|x - y| - E|x - x'| - E|y - y'| between samples x and held-out data y.

    |.| is the Euclidean norm of the flattened event. 0 exactly where the two laws are equal. The expectations are
    unbiased U-statistics, so that a good model may score slightly below 0. Memory grows with the square of the
    number of samples: 12 bytes for every pair, in each of three matrices.

    Value: ``energy``, or ``energy_4_steps`` for ``steps=4``; standard error by the jackknife, which errs upwards
    by up to sqrt(2) near 0; interval by the Bayesian bootstrap, ``gftkit.estimation.bootstrap_weights``.

    Args:
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: in use, for fewer than 20 samples or held-out data.

    Reference: Szekely and Rizzo (2013), Energy statistics: a class of statistics based on distances, Eq. 2.5.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 5, reference=Batch(x))
        >>> metric = gftkit.load().create("metric", "energy")
        >>> metric.measure(evaluation, torch.Generator())["energy"].value > 5
        True
    """

    def __init__(self, steps: SolverSteps = None) -> None:
        self.steps = steps

    def check(self, scope: Scope) -> None:
        """Refuse too few samples."""
        check_enough(scope)

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The distance of the evaluation's samples from its reference."""
        x = evaluation.samples(self.steps).flatten(1).double()
        y = evaluation.reference.x1.flatten(1).double()
        xx, yy, xy = (-torch.cdist(*pair) for pair in ((x, x), (y, y), (x, y)))
        return {value_name("energy", self.steps): discrepancy(xx, yy, xy, generator)}
