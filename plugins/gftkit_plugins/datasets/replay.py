"""Target samples mixed with samples of the pretrained run: replay."""

import math
from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gftkit.data import Scaling, classes_of, condition_shapes_of
from gftkit.kernel import Batch, ConfigError, DataError, Dataset
from gftkit_plugins.datasets.generated_pairs import GeneratedPairs


class Replay:
    """Samples of a target set, mixed in a stated share with samples that the pretrained run generates.

    A flow that learns them ends in the arithmetic mixture (1 - share) q + share q_pre of the target's law and the run's
    (theory, T17): it keeps the old law beside the new one. The set is finite. It holds every target sample equally
    often, and as many generated ones as the share requires; so each epoch visits all of them, in one random order, and
    a batch holds the share up to chance.

    Values and their range are the target's. Generated samples come with the same place in the range: black stays black.
    Labels and conditions of generated samples are those that they were made under; there are labels where the target
    and the run have them. Choose a part of the target by the target's own ``count`` and ``split``, not by those of this
    set, which would cut the mixture.

    Args:
        target: the samples to learn, a finite set.
        run: the folder of a finished run, whose samples are replayed.
        share: of generated samples, in (0, 1).
        size: how many are generated, at least; more where the target has many samples.
        source_seed: of the generated samples.
        solver: how they are sampled, {name: ..., steps: ...}; null for as the run is evaluated.
        conditions: a .npz or .safetensors file of conditions for them, taken in turn; null for all classes in turn.
        file: a .safetensors file that keeps the generated samples; see the data set generated-pairs.

    Raises:
        ValueError: for a target without end.
        GftkitError: for a folder without a finished run, what ``gft sample`` would refuse, and a run whose samples have
            another shape or other conditions than the target's.

    Reference: Robins (1995), Catastrophic forgetting, rehearsal and pseudorehearsal, Connection Science 7(2); Shin,
    Lee, Kim, Kim (2017), Continual Learning with Deep Generative Replay, arXiv:1705.08690.
    """

    def __init__(
        self,
        target: Dataset,
        run: Path,
        share: Annotated[float, Field(gt=0, lt=1)] = 0.5,
        size: Annotated[int, Field(gt=0)] = 5000,
        source_seed: Annotated[int, Field(ge=0, lt=2**63)] = 0,
        solver: dict[str, Any] | None = None,
        conditions: Path | None = None,
        file: Path | None = None,
    ) -> None:
        if not isinstance(target, Dataset):
            raise ValueError("target: wanted a finite set, and a synthetic one is infinite. Set its `count`.")
        if len(target) == 0:
            raise DataError("target: the data set is empty. Give at least one sample.")
        self._target = target
        # Whole copies of the target, so that every one of its samples counts equally.
        self._copies = math.ceil(size * (1 - share) / (share * len(target)))
        self._targets = self._copies * len(target)
        count = max(1, round(self._targets * share / (1 - share)))
        self._old = GeneratedPairs(run, count, source_seed=source_seed, solver=solver, conditions=conditions, file=file)
        if tuple(self._old.event_shape) != tuple(target.event_shape):
            raise ConfigError(
                f"run: wanted samples of the target's shape {tuple(target.event_shape)}, and {run} gives "
                f"{tuple(self._old.event_shape)}. Resize or crop the target (image sets take `size`)."
            )
        if condition_shapes_of(target) != self._old.condition_shapes:
            raise ConfigError(
                f"run: wanted samples with the target's conditions {condition_shapes_of(target)}, and {run} gives "
                f"{self._old.condition_shapes}. Replay a run with the same conditions."
            )
        self.event_shape = tuple(target.event_shape)
        self.range = None if target.range is None else (float(target.range[0]), float(target.range[1]))
        self.condition_shapes = self._old.condition_shapes
        known = getattr(target, "labels", None)
        self.labels: Tensor | None = None
        self.classes: int | None = None
        if known is not None and self._old.labels is not None:
            self.labels = torch.cat([known.repeat(self._copies), self._old.labels])
            self.classes = max(classes_of(target) or 0, self._old.classes or 0)

    def __len__(self) -> int:
        return self._targets + len(self._old)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices: those of the target first, copy after copy, then the generated ones."""
        new = indices < self._targets
        target = self._target.batch(indices[new] % len(self._target))
        if target.x0 is not None:
            raise DataError(
                "target: its samples have fixed partners, and generated ones have none. Use another data set."
            )
        old = self._old.batch(indices[~new] - self._targets)
        unscaled = Scaling(self.range).unscale(Scaling(self._old.range).scale(old.x1))
        conditions = {
            name: _merged(new, target.conditions[name], old.conditions[name]) for name in self.condition_shapes
        }
        label = None if self.labels is None else self.labels[indices]
        return Batch(_merged(new, target.x1, unscaled), label, None, conditions)


def _merged(first: Tensor, one: Tensor, other: Tensor) -> Tensor:
    """Rows of one tensor where ``first`` is true, in their order, and of another elsewhere."""
    merged = one.new_empty(len(first), *one.shape[1:])
    merged[first] = one
    merged[~first] = other.to(one.dtype)
    return merged
