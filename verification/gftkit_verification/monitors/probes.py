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


def oracle_obstacles(state: TrainingState) -> list[str]:
    """Reasons why b_tgt is not the empirical oracle's drift in this run, each a clause; none where it is.

    The source is recognised by its name, an independent coupling by its member ``independent``.
    """
    source = state.config.source
    reasons = []
    standard = source["name"] == "gaussian" and source.get("std") in (None, 1.0) and source.get("covariance") is None
    if not standard or source.get("mean", 0.0) != 0.0:
        reasons.append("the source is not N(0, I)")
    if not getattr(state.coupling, "independent", False):
        reasons.append(f"the coupling is '{state.config.coupling['name']}', not an independent one")
    if state.conditional:
        reasons.append("the drift has conditions, and each has a different target drift")
    if state.dataset.size is None:
        reasons.append("the training data are a law, not a finite set")
        return reasons
    probe = torch.arange(min(8, state.dataset.size))
    first, again = state.dataset.at(probe), state.dataset.at(probe)
    if first.x0 is not None:
        reasons.append("the data bring their own source samples")
    if not torch.equal(first.x1, again.x1):
        reasons.append("the training data are augmented: reading a sample twice gives two different ones")
    if state.dataset.size * first.x1[0].numel() > LARGEST:
        reasons.append(f"the training set has more than {LARGEST:,} numbers")
    return reasons


def exact_drift(state: TrainingState, batches: Sequence[Draw]) -> Tensor:
    """b_tgt of the training set at the first states of each batch, as many as WORK allows: (batches * few, *event).

    Raises:
        ValueError: for a path whose empirical drift isn't known.
    """
    from gftkit_verification.oracles.empirical import EmpiricalFlow

    device = state.device if state.device.type == "cuda" else torch.device("cpu")  # float64 is needed
    size = state.dataset.size
    assert size is not None  # oracle_obstacles has excluded laws
    points = state.dataset.at(torch.arange(size)).x1.to(device)
    flow = EmpiricalFlow(points, state.path)
    few = max(1, min(len(batches[0].t), int(WORK[device.type] / points.numel() / len(batches))))
    states = concatenate([first_states(batch, few) for batch in batches])
    return flow.drift(states.t.to(device), states.x.to(device)).to(state.device)


def evaluate_in_chunks(drift: Any, states: Draw) -> Tensor:
    """A drift at every state, CHUNK states at a time."""
    parts = []
    for first in range(0, len(states.t), CHUNK):
        chunk = slice(first, first + CHUNK)
        conditions = {key: value[chunk] for key, value in states.conditions.items()}
        parts.append(drift(states.t[chunk], states.x[chunk], **conditions))
    return torch.cat(parts)


def first_states(states: Draw, count: int) -> Draw:
    """The first ``count`` states."""
    named = [{key: value[:count] for key, value in each.items()} for each in _conditions(states)]
    return Draw(states.t[:count], states.x[:count], states.target[:count], *named)


def concatenate(batches: Sequence[Draw]) -> Draw:
    """States of several batches, one after another."""
    named = [
        {key: torch.cat([each[key] for each in parts]) for key in parts[0]}
        for parts in zip(*map(_conditions, batches), strict=True)
    ]
    t, x, target = (torch.cat([getattr(batch, key) for batch in batches]) for key in ("t", "x", "target"))
    return Draw(t, x, target, *named)


def _conditions(states: Draw) -> tuple[dict[str, Tensor], dict[str, Tensor]]:
    """The drift's and the anchor's."""
    return states.conditions, states.anchor_conditions
