"""The retention that a run should end at, by its pairs (T20, T21): with its error, and 0 unless it is significant."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import pairwise
from typing import Any

from scipy import stats

from gftkit.kernel.contracts import Estimate
from gftkit.theory.retention_fit import shrink
from gftkit_verification.monitors.theory.document import Point, estimate_of, estimates_by_time, score_of

FALSE_ALARM = 0.05
"""How often some retention other than 0 is recommended where 0 is the best at all flow times."""

MEMORISED = "Where a run memorises, training targets ask for too little: hold out data by `evaluate.data` to see."
ABOUT = "It is about the drift error of the raw weights, not about samples (T21)."


@dataclass(frozen=True)
class Recommendation:
    """A retention for the end of the next run like this one.

    Attributes:
        sentences: in words.
        findings: as plain values.
    """

    sentences: list[str] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=dict)


def recommend(document: Mapping[str, Any]) -> Recommendation:
    """The retention to end at, from the last evaluation; held-out targets where there are some.

    A blend b + r (b_pre - b) of a drift that ended at rho is where a run would end at rho + r (1 - rho): so much is
    added to the retention that the run had. Training targets don't show overfitting, so only a lag is read from them.
    """
    last, setting = document["points"][-1], document["setting"]
    held_out = last.get("held_out_best_retention") is not None
    prefix = "held_out_" if held_out else ""
    if last.get(f"{prefix}best_retention") is None:
        return Recommendation()
    parts = estimates_by_time(last, f"{prefix}best_retention")
    bound = float(stats.t.isf(FALSE_ALARM / 2 / (len(parts) + 1), setting["batches"] - 1))
    whole = estimate_of(last, f"{prefix}best_retention")
    if not (score_of(last, "gap_squared_by_loss") or 0.0) > bound:  # it hasn't come nearer to its target
        return Recommendation()
    findings: dict[str, Any] = {"best_retention": whole.value, "best_retention_stderr": whole.stderr}
    if "retention_low" not in last:
        findings["recommended_retention"] = _end(last["retention"], _blend(whole, bound, held_out=held_out))
    blends = [_blend(estimate, bound, held_out=held_out) for estimate in parts]
    rhos = last.get("retention_by_time") or [last["retention"]] * len(parts)
    findings["recommended_by_time"] = [_end(*pair) for pair in zip(rhos, blends, strict=True)]
    sentences = [_describe(last, whole, findings, held_out=held_out)]
    if held_out and any(blends):
        sentences.append(_describe_parts(setting["edges"], parts, blends, findings["recommended_by_time"]))
    return Recommendation(sentences, findings)


def _blend(estimate: Estimate, bound: float, *, held_out: bool) -> float:
    shrunk = shrink(estimate, bound)
    return shrunk if held_out else min(shrunk, 0.0)


def _end(rho: float, blend: float) -> float:
    """The retention at which a run ends where one that ended at rho is blended with its anchor."""
    return rho + blend * (1 - rho)


def _describe(last: Point, whole: Estimate, findings: Mapping[str, Any], *, held_out: bool) -> str:
    measured = f"r* = {whole.value:.3g} ± {whole.stderr:.2g}"
    lag = f"{last['lag']:.3g} ± {last['lag_stderr']:.2g}" if last.get("lag") is not None else "unknown"
    where = "held-out" if held_out else "training"
    found = f"retention: on {where} targets a blend with the anchor errs least at {measured}; the lag is c = {lag}."
    end = findings.get("recommended_retention")
    if end is None:
        return found
    if end != last["retention"]:
        caution = ABOUT if held_out else f"{MEMORISED} {ABOUT}"
        return f"{found} To end at {end:.2g} (`end` of the schedule) would fit better. {caution}"
    if not held_out and whole.value > 0:
        return f"{found} Training targets can't tell if more should be kept: hold out data by `evaluate.data`."
    return f"{found} That is no significant reason to end elsewhere than at {end:.3g}."


def _describe_parts(
    edges: Sequence[float], parts: Sequence[Estimate], blends: Sequence[float], ends: Sequence[float]
) -> str:
    """The parts of flow time where the best blend is significantly another one."""
    found = [
        f"{end:.2g} for t in [{left:.2f}, {right:.2f}] (r* = {estimate.value:.2g} ± {estimate.stderr:.1g})"
        for (left, right), estimate, blend, end in zip(pairwise(edges), parts, blends, ends, strict=True)
        if blend
    ]
    return f"flow time: by held-out targets retentions of {'; '.join(found)} would fit better (T21). {ABOUT}"
