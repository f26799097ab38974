"""How far samples travel."""

import math
from collections.abc import Mapping

from torch import Generator

from gftkit.contracts import Estimate
from gftkit.evaluation import Evaluation
from gftkit_plugins.metrics.naming import Steps, key


class PathLength:
    """Mean length of the polygon of a sample's states: E sum_k |x_(k+1) - x_k|, from source to data.

    |.| is the Euclidean norm of the whole event. At least E|x_1 - x_0|, with equality for straight flows. Of a
    stochastic flow the length has no limit: it grows like the square root of the number of steps, so compare equal
    numbers of steps only.

    Value: ``path_length``, or ``path_length_4_steps`` where ``steps`` is 4; standard error std/sqrt(n) over the first
    250 samples at most.

    Args:
        steps: solver steps; the evaluation's own number by default.

    Raises:
        ValueError: in use, for fewer than 2 samples.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> states = torch.tensor([[[0.0, 0.0]] * 2, [[3.0, 4.0]] * 2, [[3.0, 5.0]] * 2])  # (times, count, event)
        >>> evaluation = SimpleNamespace(trajectory=lambda steps: states)
        >>> gftkit.load().create("metric", "path-length").measure(evaluation, torch.Generator())["path_length"]
        Estimate(value=6.0, stderr=0.0)
    """

    def __init__(self, steps: Steps = None) -> None:
        self.steps = steps

    def measure(self, evaluation: Evaluation, generator: Generator) -> Mapping[str, Estimate]:  # noqa: ARG002
        """The mean length over the evaluation's first samples."""
        states = evaluation.trajectory(self.steps).flatten(2).double()  # (times, count, size)
        lengths = states.diff(dim=0).norm(dim=2).sum(0)  # (count,)
        if len(lengths) < 2:
            raise ValueError(f"path-length wants at least 2 samples for a standard error, got {len(lengths)}.")
        value = Estimate(float(lengths.mean()), float(lengths.std()) / math.sqrt(len(lengths)))
        return {key("path_length", self.steps): value}
