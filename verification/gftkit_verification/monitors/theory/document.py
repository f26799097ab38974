"""The content of theory.json: what a run's monitor measured, and what the theory predicts for each evaluation."""

import math
from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.contracts import Estimate
from gftkit.storage.documents import nan_to_none
from gftkit.theory.gap import ratio_estimate, root_estimate
from gftkit.theory.predictions import drift_error

Point = Mapping[str, Any]
"""An evaluation: measurements, their standard errors (``KEY_stderr``) and predictions by name."""

SETTING = ("oracle", "batches", "states", "pairing_batch")
"""What the monitor's line of step 0 says about the measurement itself."""


def build_document(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of theory.json from the monitor's lines of metrics.jsonl: the setting, the gap, and a point for each.

    A point has what was measured and what is predicted for it. ``gap``, |Delta|_w, is the oracle's where that applies;
    otherwise it is ``reachable_gap``. That one is the run's own, from the decrease of the flow matching loss at its
    last evaluation, (G/(1 - rho^2))^(1/2): the part of |Delta| that the network and the training could close. It is
    too small where the run ends before it arrives. ``remaining`` = 1 - P/reachable_gap^2 is the share of it that is
    left: T13's c, which is the retention rho at the optimum, and is not raised by noise.
    """
    if not lines:
        return {"setting": {}, "gap": None, "points": []}
    first, last = lines[0], lines[-1]
    reachable = root_estimate(estimate_of(last, "gap_squared_by_loss"))
    gap = estimate_of(first, "gap") if first.get("gap") is not None else reachable
    floor = math.sqrt(max(gap.value**2 - reachable.value**2, 0.0))
    points = []
    for line in lines:
        point = {key: value for key, value in line.items() if key not in ("kind", "monitor", *SETTING)}
        rho = line["retention"]
        if "retention_low" not in line:
            point["predicted_drift_error"] = drift_error(rho, gap.value)
            point["predicted_drift_error_with_floor"] = drift_error(rho, reachable.value, floor)
            point["predicted_distance_from_pretrained"] = (1 - rho) * reachable.value
        else:  # rho is inside the norm (T19), which only the oracle knows time by time
            point["predicted_drift_error"] = line.get("optimum_error")
        closed = ratio_estimate(progress_by_batch(line), closed_square_by_batch(last))
        point["remaining"], point["remaining_stderr"] = 1 - closed.value, closed.stderr
        points.append(point)
    document = {
        "setting": {key: first[key] for key in SETTING if key in first},
        "gap": {"value": gap.value, "stderr": gap.stderr},
        "reachable_gap": {"value": reachable.value, "stderr": reachable.stderr},
        "points": points,
    }
    return dict(nan_to_none(document))


def estimate_of(point: Point, key: str) -> Estimate:
    """A measurement with its standard error; nan for what is missing."""
    value, stderr = point.get(key), point.get(f"{key}_stderr")
    return Estimate(math.nan if value is None else value, math.nan if stderr is None else stderr)


def score_of(point: Point, key: str) -> float | None:
    """A measurement in standard errors; None where it has none."""
    value, stderr = point.get(key), point.get(f"{key}_stderr")
    return value / stderr if value is not None and stderr else None


def progress_by_batch(point: Point) -> Tensor:
    """P of each batch: ``<b_pre - b_tgt, b_pre - b>_w``."""
    return (
        torch.tensor(point["G_batches"], dtype=torch.float64) + torch.tensor(point["R_batches"], dtype=torch.float64)
    ) / 2


def closed_square_by_batch(last: Point) -> Tensor:
    """The square of the gap that the run closed by its end, by its loss, of each batch."""
    if "gap_batches" in last:  # the retention depends on flow time
        return torch.tensor(last["gap_batches"], dtype=torch.float64)
    return torch.tensor(last["G_batches"], dtype=torch.float64) / (1 - last["retention"] ** 2)
