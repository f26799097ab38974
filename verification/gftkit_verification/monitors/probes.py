"""States at which monitors measure a drift, and the exact target drift at them where it is known."""

from collections.abc import Sequence
from typing import Any

import torch
from torch import Tensor

from gftkit.training.state import Draw, TrainingState

CHUNK = 512
"""States in one pass of a network."""

LARGEST = 200_000_000
"""Numbers in the largest training set that the oracle reads whole: 0.8 GB."""

WORK = {"cpu": 1e10, "cuda": 3e11}
"""States times numbers of the training set that the oracle may compare: seconds, once in a run."""


def why_no_oracle(state: TrainingState) -> list[str]:
    """Why b_tgt is not the empirical oracle's drift in this run, each a clause; nothing where it is.

    The source is told by name; a coupling says by its member ``independent`` whether it is.
    """
    source = state.config.source
    reasons = []
    standard = source["name"] == "gaussian" and source.get("std") in (None, 1.0) and source.get("covariance") is None
    if not standard or source.get("mean", 0.0) != 0.0:
        reasons.append("the source is not N(0, I)")
    if not getattr(state.coupling, "independent", False):
        reasons.append(f"the coupling is '{state.config.coupling['name']}', not an independent one")
    if state.conditional:
        reasons.append("the drift is given conditions, and each has a target drift of its own")
    if state.dataset.size is None:
        reasons.append("the training data are a law, not a finite set")
        return reasons
    probe = torch.arange(min(8, state.dataset.size))
    first, again = state.dataset.at(probe), state.dataset.at(probe)
    if first.x0 is not None:
        reasons.append("the data come with partners of their own")
    if not torch.equal(first.x1, again.x1):
        reasons.append("the training data are augmented: reading one sample twice gives two")
    if state.dataset.size * first.x1[0].numel() > LARGEST:
        reasons.append(f"the training set has more than {LARGEST:,} numbers")
    return reasons


def exact_drift(state: TrainingState, drawn: Sequence[Draw]) -> Tensor:
    """b_tgt of the training set at as many states of each batch as the work allows, (batches * few, *event).

    Raises:
        ValueError: for a path whose empirical drift isn't known.
    """
    from gftkit_verification.oracles.empirical import EmpiricalFlow

    device = state.device if state.device.type == "cuda" else torch.device("cpu")  # float64 is needed
    size = state.dataset.size
    assert size is not None  # why_no_oracle has refused laws
    points = state.dataset.at(torch.arange(size)).x1.to(device)
    flow = EmpiricalFlow(points, state.path)
    few = max(1, min(len(drawn[0].t), int(WORK[device.type] / points.numel() / len(drawn))))
    some = joined([leading(one, few) for one in drawn])
    return flow.drift(some.t.to(device), some.x.to(device)).to(state.device)


def values_at(drift: Any, drawn: Draw) -> Tensor:
    """A drift at every state, some states at a time."""
    parts = []
    for first in range(0, len(drawn.t), CHUNK):
        here = slice(first, first + CHUNK)
        conditions = {key: value[here] for key, value in drawn.conditions.items()}
        parts.append(drift(drawn.t[here], drawn.x[here], **conditions))
    return torch.cat(parts)


def leading(drawn: Draw, count: int) -> Draw:
    """The first states."""
    conditions = {key: value[:count] for key, value in drawn.conditions.items()}
    return Draw(drawn.t[:count], drawn.x[:count], drawn.target[:count], conditions)


def joined(drawn: Sequence[Draw]) -> Draw:
    """States of several batches, one after another."""
    conditions = {key: torch.cat([one.conditions[key] for one in drawn]) for key in drawn[0].conditions}
    t, x, target = (torch.cat([getattr(one, key) for one in drawn]) for key in ("t", "x", "target"))
    return Draw(t, x, target, conditions)
