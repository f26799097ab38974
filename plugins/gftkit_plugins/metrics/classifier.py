"""The classifier two-sample test: can a small network tell samples from held-out data?"""

import math
from collections.abc import Mapping
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor
from torch.nn import functional

from gftkit.estimation import proportion
from gftkit.kernel import Estimate, EvaluationView, Feature
from gftkit_plugins.metrics.naming import SolverSteps, value_name
from gftkit_plugins.metrics.needs import FeatureMetric

FOLDS = 5
"""Parts of the cross-validation."""

STEPS, LEARNING_RATE, DECAY = 150, 1e-2, 1e-2
"""Of the classifier's training by AdamW, on all of its data in each step."""


class ClassifierTwoSample(FeatureMetric):
    """Classifier two-sample test (C2ST): held-out accuracy of a network that tells samples from held-out data.

    0.5 is chance: nothing that this network finds distinguishes them. 1 distinguishes always. Equal numbers of both
    are taken, min(n, m) at random. The network has one hidden layer of ``width`` units (ReLU) on standardised features;
    accuracy is by cross-validation in 5 parts, so each sample is judged once, by a network that hasn't seen it.

    Values: ``classifier_two_sample``, with the standard error of a share of independent draws and Wilson's interval;
    ``classifier_two_sample_null``: 0.5, with the standard deviation 1/(2 sqrt(N)) that the accuracy has where both laws
    are equal, N = 2 min(n, m). The five networks share data: on small samples the accuracy spreads a little more than
    that. With ``steps=4`` names end in ``_4_steps``.

    Args:
        feature: maps events to vectors; by default the flattened event itself.
        width: units in the hidden layer.
        steps: solver steps of the samples; the evaluation's own number by default.

    Raises:
        ValueError: for fewer than 20 samples or held-out data.

    Reference: Lopez-Paz and Oquab (2017), Revisiting classifier two-sample tests, section 3, arXiv:1610.06545.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> evaluation = SimpleNamespace(samples=lambda steps: x + 9, reference=Batch(x))
        >>> metric = gftkit.load().create("metric", "classifier-two-sample")
        >>> found = metric.measure(evaluation, torch.Generator())
        >>> found["classifier_two_sample"].value, found["classifier_two_sample_null"].stderr
        (1.0, 0.05)
    """

    def __init__(
        self, feature: Feature | None = None, width: Annotated[int, Field(gt=0)] = 20, steps: SolverSteps = None
    ) -> None:
        super().__init__(feature, steps)
        self.width = width

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The accuracy on the evaluation's samples and its reference."""
        vectors = self.vectors(evaluation)
        count = min(map(len, vectors))
        if count < 20:
            raise ValueError(f"wanted at least 20 samples and 20 data, got {count} samples. Make more samples.")
        x, y = (each[torch.randperm(len(each), generator=generator)[:count]] for each in vectors)
        share = accuracy(torch.cat([x, y]).float(), self.width, generator)
        size = 2 * count
        estimates = {
            "classifier_two_sample": proportion(share, math.sqrt(share * (1 - share) / size), size),
            "classifier_two_sample_null": Estimate(0.5, 0.5 / math.sqrt(size)),
        }
        return {value_name(name, self.steps): estimate for name, estimate in estimates.items()}


def accuracy(x: Tensor, width: int, generator: Generator) -> float:
    """The cross-validated accuracy of telling the first half of x, (2 count, d), in random order, from the second.

    Both halves are cut into 5 parts alike. The five networks are trained side by side.
    """
    count, d = len(x) // 2, x.shape[1]
    x = (x - x.mean(0)) / x.std(0).clamp(min=1e-6)
    label = (torch.arange(2 * count) >= count).float()
    part = torch.arange(count).repeat(2) % FOLDS
    seen = (part != torch.arange(FOLDS)[:, None]).float()  # (folds, 2 count)
    shapes = ((d, width), (1, width), (width, 1), (1, 1))
    scales = (math.sqrt(2 / d), 0.0, math.sqrt(1 / width), 0.0)
    weights = [
        (scale * torch.randn(FOLDS, *shape, generator=generator)).requires_grad_()
        for shape, scale in zip(shapes, scales, strict=True)
    ]
    optimizer = torch.optim.AdamW(weights, LEARNING_RATE, weight_decay=DECAY)
    with torch.enable_grad():  # metrics are measured without gradients
        for _ in range(STEPS):
            losses = functional.binary_cross_entropy_with_logits(
                _logits(x, weights), label.expand(FOLDS, -1), reduction="none"
            )
            optimizer.zero_grad()
            torch.autograd.backward((losses * seen).sum(1).div(seen.sum(1)).sum())
            optimizer.step()
    with torch.no_grad():
        right = (_logits(x, weights) > 0) == (label > 0.5)
    return float((right * (1 - seen)).sum() / (2 * count))


def _logits(x: Tensor, weights: list[Tensor]) -> Tensor:
    """(n, d) -> (folds, n)."""
    first, bias, second, offset = weights
    return (functional.relu(x @ first + bias) @ second + offset).squeeze(2)
