"""The content of theory.json: what a run's monitor measured, and what the theory predicts for each evaluation."""

import math
from collections.abc import Mapping, Sequence
from itertools import pairwise
from typing import Any

import torch
from torch import Tensor

from gftkit.kernel.contracts import Estimate
from gftkit.storage.documents import nan_to_none
from gftkit.theory.gap import ratio_estimate, root_estimate
from gftkit.theory.predictions import drift_error, lag_of

Point = Mapping[str, Any]
"""An evaluation: measurements, their standard errors (``KEY_stderr``) and predictions by name."""

SETTING = ("oracle", "batches", "states", "edges", "pairing_batch")
"""What the monitor's line of step 0 says about the measurement itself."""


def build_document(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The content of theory.json from the monitor's lines of metrics.jsonl: the setting, the gap, and a point for each.

    A point has what was measured and what is predicted for it. ``gap``, |Delta|_w, is the oracle's where that applies;
    otherwise it is ``reachable_gap``. That one is the run's own, from the decrease of the flow matching loss at its
    last evaluation, (G/(1 - rho^2))^(1/2): the part of |Delta| that the network and the training could close. It is
    too small where the run ends before it arrives. ``remaining`` = 1 - P/reachable_gap^2 is the share of it that is
    left: T13's c, which is ``remaining_at_optimum`` at the optimum (the retention rho, or its mean with the gap's parts
    for weights), and is not raised by noise. ``lag`` = -r*/(1 - r*) by the best retention on training targets (T20)
    estimates the same without the run's end, but noise lowers it.
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
        point["remaining_at_optimum"] = _mean_by_gap(line, last)
        point |= _lags(line)
        points.append(point)
    document = {
        "setting": {key: first[key] for key in SETTING if key in first},
        "gap": {"value": gap.value, "stderr": gap.stderr},
        "reachable_gap": {"value": reachable.value, "stderr": reachable.stderr},
        "points": points,
    }
    return dict(nan_to_none(document))


def middles_of(edges: Sequence[float]) -> list[float]:
    """The middles of parts of flow time."""
    return [(left + right) / 2 for left, right in pairwise(edges)]


def closed_by_time(last: Point) -> list[float]:
    """The square of the gap that a run with a profile closed by its end, of each part of flow time: P/(1 - rho)."""
    pairs = zip(last["towards_target_by_time"], last["retention_by_time"], strict=True)
    return [max(towards, 0.0) / (1 - rho) for towards, rho in pairs]


def _mean_by_gap(line: Point, last: Point) -> float:
    """The retention; where it depends on flow time, its mean with the squares of the closed gap for weights."""
    rho: float = line["retention"]
    if "retention_by_time" not in last or "retention_low" not in line:
        return rho
    weights = closed_by_time(last)
    total = sum(weights)
    return sum(r * w for r, w in zip(line["retention_by_time"], weights, strict=True)) / total if total else rho


def _lags(line: Point) -> dict[str, Any]:
    """The lag c of T20 and its standard error, of all flow times and of each part."""
    whole = lag_estimate(estimate_of(line, "best_retention"))
    parts = [lag_estimate(estimate) for estimate in estimates_by_time(line, "best_retention")]
    return {
        "lag": whole.value,
        "lag_stderr": whole.stderr,
        "lag_by_time": [estimate.value for estimate in parts],
        "lag_by_time_stderr": [estimate.stderr for estimate in parts],
    }


def lag_estimate(best: Estimate) -> Estimate:
    """c = -r*/(1 - r*), its error to first order; nan where r* is not below 1."""
    if not best.value < 1:
        return Estimate(math.nan, math.nan)
    return Estimate(lag_of(best.value), best.stderr / (1 - best.value) ** 2)


def estimates_by_time(point: Point, key: str) -> list[Estimate]:
    """The measurements ``KEY_by_time`` with their standard errors, one for each part of flow time."""
    values, errors = (
        [math.nan if number is None else number for number in point[f"{key}_by_time{suffix}"]]
        for suffix in ("", "_stderr")
    )
    return [Estimate(*pair) for pair in zip(values, errors, strict=True)]


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
    """The square of the gap that the run closed by its end, by its loss, of each batch; nan at a retention <= -1."""
    if "gap_batches" in last:  # the retention depends on flow time
        return torch.tensor([math.nan if gap is None else gap for gap in last["gap_batches"]], dtype=torch.float64)
    rho = last["retention"]
    return torch.tensor(last["G_batches"], dtype=torch.float64) / (1 - rho**2 if rho > -1 else math.nan)
