"""Forgetting: how far the samples are from what the pretrained model knew."""

from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from torch import Generator

from gftkit.data import Samples
from gftkit.evaluation import Scope
from gftkit.kernel import Batch, Dataset, Estimate, EvaluationView, Metric, Sampler
from gftkit.runtime import stream
from gftkit_plugins.metrics.energy import Energy


class Forgetting:
    """Any distance of the samples, but to the old distribution: what the pretrained model was trained on.

    A fine-tune is meant to leave the old distribution; this says how far it has gone. Read it beside the distance to
    the new one, and beside its value at step 0, which is the pretrained model's own.

    Values: those of ``metric``, with ``forgetting_`` before their names, such as ``forgetting_energy``.

    Args:
        data: the old distribution; by default the data of the pretrained run.
        metric: what is measured against it; by default ``energy``.

    Raises:
        DataError: for data of another shape.
        ValueError: without ``data`` where no pretrained run is known, and as ``metric`` does.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> from gftkit.kernel import Batch
        >>> x = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
        >>> old, new = Batch(x + 1), Batch(x + 9)
        >>> model = SimpleNamespace(samples=lambda n: x, reference=new, count=50, inherited=lambda n: old)
        >>> metric = gftkit.load().create("metric", "forgetting")
        >>> found = metric.measure(model, torch.Generator())
        >>> list(found), found["forgetting_energy"].value < 1
        (['forgetting_energy'], True)
    """

    def __init__(self, data: Dataset | Sampler | None = None, metric: Metric | None = None) -> None:
        self.data, self.metric = data, metric or Energy()
        self._old: Batch | None = None

    def check(self, scope: Scope) -> None:
        """Refuse a run whose old data aren't known, and what the metric refuses."""
        if self.data is None and not scope.inherits:
            raise ValueError(
                "the old distribution isn't known: nothing was pretrained in a run of gftkit. Name it: "
                "{name: forgetting, data: {name: ...}}."
            )
        count = scope.count
        if self.data is not None:
            known = Samples(self.data, "data", scope.event_shape).size
            count = count if known is None else min(count, known)
        ask = getattr(self.metric, "check", None)
        if ask is not None:
            ask(replace(scope, reference=count, held_out=True))

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:
        """The metric's values for the evaluation's samples and the old distribution."""
        if self._old is None:
            self._old = self._draw_old(evaluation)
        compared: Any = _Compared(evaluation, self._old)
        estimates = self.metric.measure(compared, generator)
        return {f"forgetting_{name}": estimate for name, estimate in estimates.items()}

    def _draw_old(self, evaluation: EvaluationView) -> Batch:
        """As many data of the old distribution as there are samples, if there are so many; scaled."""
        if self.data is not None:
            shape = tuple(evaluation.reference.x1.shape[1:])
            return Samples(self.data, "data", shape).some(evaluation.count, stream(evaluation.seed, "old"))
        if evaluation.inherited is None:
            raise ValueError("the old distribution isn't known. Name it: {name: forgetting, data: {name: ...}}.")
        return evaluation.inherited(evaluation.count)


class _Compared:
    """An evaluation, with other data to compare its samples with."""

    def __init__(self, evaluation: EvaluationView, reference: Batch) -> None:
        self._evaluation, self.reference = evaluation, reference

    def __getattr__(self, name: str) -> Any:
        return getattr(self._evaluation, name)
