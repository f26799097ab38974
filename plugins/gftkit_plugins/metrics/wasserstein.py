"""The exact Wasserstein distance between generated and held-out samples."""

import importlib.util
from collections.abc import Mapping
from typing import Literal

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.estimation import jackknife_estimate
from gftkit.evaluation import Scope
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import FeatureMetric


class Wasserstein(FeatureMetric):
    """Exact Wasserstein distance W_p = (min over plans of E|x - y|^p)^(1/p) between samples x and held-out data y.

    |.| is the Euclidean norm of the features. Equal numbers are an assignment, which scipy solves; others are a linear
    programme, which needs POT. It is biased upwards, and in d dimensions the bias falls only as n^(-1/d): in many
    dimensions two samples of one law are far apart. Compare equal numbers only, in few dimensions.

    Value: ``wasserstein``, or ``wasserstein_4_steps`` for ``steps=4``, in the unit of the features; standard error by
    the jackknife, about the expectation for these n and m, bias included. 21 problems are solved: see the guide
    for what they take.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        p: order of the distance.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: for fewer than 20 samples or held-out data, or for unequal numbers of them without POT.

    Reference: Villani (2009), Optimal Transport, Definition 6.1; del Barrio and Loubes (2019), Annals of Probability
        47, 926-951, for its normal law about its expectation.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> shifted = x[torch.randperm(50)] + torch.tensor([3.0, 4.0])
        >>> evaluation = SimpleNamespace(samples=lambda steps: shifted, reference=Batch(x))
        >>> found = gftkit.load().create("metric", "wasserstein").measure(evaluation, torch.Generator())["wasserstein"]
        >>> round(found.value, 4), round(found.stderr, 4) < 1
        (5.0, True)
    """

    def __init__(self, feature: Feature | None = None, p: Literal[1, 2] = 2, steps: SolverSteps = None) -> None:
        super().__init__(feature, steps)
        self.p = p

    def check(self, scope: Scope) -> None:
        """Refuse too few samples, unequal numbers without POT, and events that the feature isn't for."""
        super().check(scope)
        _solvable(scope.count, scope.reference)

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The distance of the evaluation's samples from its reference."""
        x, y = self.vectors(evaluation)
        _solvable(len(x), len(y))
        costs = torch.cdist(x, y).pow(self.p)

        def distance(kept_x: Tensor, kept_y: Tensor) -> float:
            return least_cost(costs[kept_x][:, kept_y].numpy()) ** (1 / self.p)

        kept = [torch.arange(len(x)), torch.arange(len(y))]
        return {value_name("wasserstein", self.steps): jackknife_estimate(distance, kept, generator)}


def _solvable(n: int, m: int) -> None:
    """Refuse unequal numbers where POT isn't installed."""
    if n != m and importlib.util.find_spec("ot") is None:
        raise ValueError(
            f"unequal numbers ({n} samples, {m} data) require the package POT. Set evaluate.count to {min(n, m)}, or "
            f"install it: pip install 'gftkit[transport]'"
        )


def least_cost(costs: "np.ndarray[tuple[int, ...], np.dtype[np.float64]]") -> float:
    """The least mean cost of a plan between n and m points of equal weights, (n, m) -> number.

    Example:
        >>> least_cost(np.array([[0.0, 4.0], [1.0, 1.0]]))
        0.5
    """
    if costs.shape[0] == costs.shape[1]:
        from scipy.optimize import linear_sum_assignment

        return float(costs[linear_sum_assignment(costs)].mean())
    import ot

    weights = [np.full(count, 1 / count) for count in costs.shape]
    return float(ot.emd2(*weights, np.ascontiguousarray(costs), numItermax=10_000_000))
