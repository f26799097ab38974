"""The checks of a run: one for each property that every run of Gradual Fine-Tuning has, on the same evidence."""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from gftkit.kernel.contracts import Estimate, Profile
from gftkit.runs.folder import RunFolder
from gftkit.theory.gap import mean_estimate
from gftkit.theory.objective import retention
from gftkit.theory.temperature import has_feedback, profile_at
from gftkit_verification.monitors.theory.document import (
    Point,
    closed_by_time,
    closed_square_by_batch,
    estimate_of,
    estimates_by_time,
    middles_of,
    progress_by_batch,
    score_of,
)

NEAR = 0.1
"""An optimum counts as reached within this share of the way, and as overshot by more than this share of the gap.

T13 is of gradient flow: momentum swings a little past an optimum, and training has noise.
"""

ROUNDING = 1e-4
"""Largest relative difference of two float32 evaluations of one network, on any device."""


@dataclass(frozen=True)
class Evidence:
    """The material of a verdict.

    Attributes:
        run: the run.
        document: what theory.json should hold.
        file: what it holds.
        measured: the keys of a point that were measured; the others follow from them.
        bound: of every statistical check, in standard errors.
        bound_by_time: of one that is made for each part of flow time.
    """

    run: RunFolder
    document: Mapping[str, Any]
    file: Mapping[str, Any]
    measured: frozenset[str]
    bound: float
    bound_by_time: float = math.inf

    @property
    def points(self) -> Sequence[Point]:
        """The evaluations, from step 0 on."""
        return self.document["points"]

    @property
    def closed_a_gap(self) -> bool:
        """True where the run's last drift is significantly nearer to its target than the pretrained one."""
        return (score_of(self.points[-1], "gap_squared_by_loss") or 0.0) > self.bound

    @property
    def lowest_retention(self) -> float:
        """The lowest retention of the run, at any flow time."""
        return min(point.get("retention_low", point["retention"]) for point in self.points)

    @property
    def exact_gap_squared(self) -> Estimate | None:
        """|Delta|^2 where the oracle applies."""
        if self.points[0].get("gap") is None:
            return None
        gap = estimate_of(self.points[0], "gap")
        return Estimate(gap.value**2, 2 * gap.value * gap.stderr)


@dataclass(frozen=True)
class Check:
    """A property that every run of Gradual Fine-Tuning has.

    Attributes:
        name: short.
        holds: the sentence for a run that has it.
        find: gives the first point where it fails and what is wrong there, or None.
    """

    name: str
    holds: str
    find: Callable[[Evidence], str | None]


def check_record(evidence: Evidence) -> str | None:
    """theory.json says what metrics.jsonl says."""
    written = evidence.file["points"]
    if len(written) != len(evidence.points):
        return f"theory.json has {len(written)} points and metrics.jsonl {len(evidence.points)}."
    for logged, point in zip(evidence.points, written, strict=True):
        differ = [key for key in logged if key in evidence.measured and point.get(key) != logged[key]]
        if differ:
            return f"theory.json differs from metrics.jsonl at {describe_place(logged)} in {', '.join(differ)}."
    return None


def check_schedule(evidence: Evidence) -> str | None:
    """Temperatures are the schedule's, never rise, and the retention is beta/(1 + beta); so are profiles.

    Of a schedule with feedback the temperature at the start is known, and none may be above it.
    """
    run = evidence.run
    schedule, steps = run.registry.build("schedule", run.config.schedule or {}), run.config.train.steps
    feedback = has_feedback(schedule)
    training_lines = [line for line in run.history() if line["kind"] == "train"]
    before: Point | None = None
    for line in sorted([*evidence.points, *training_lines], key=lambda line: line["step"]):
        beta, rho = line["temperature"], line["retention"]
        place = describe_place(line)
        if not nearly_equal(rho, retention(beta)):
            return f"at {place} the retention is {rho:.4g}; it must be {retention(beta):.4g} = beta/(1 + beta)."
        if "T" in line:  # an evaluation; a line of training has the temperature of the step before
            step = min(line["step"], steps - 1)
            scheduled = float(schedule.temperature(step / steps))
            if feedback and above(beta, scheduled):
                return f"at {place} the temperature is above {scheduled:.4g}, where the config's schedule starts."
            if not feedback and not nearly_equal(beta, scheduled):
                return f"at {place} the config's schedule has the temperature {scheduled:.4g}."
            if not feedback and before is not None and above(beta, before["temperature"]):
                return (
                    f"at {place} the temperature rises, from {before['temperature']:.4g}: T8 and T13 need one that "
                    f"never rises."
                )
            failure = None if feedback else _check_profile(evidence, line, profile_at(schedule, step, steps), before)
            if failure is not None:
                return f"at {place} {failure}"
            before = line
    return None


def _check_profile(evidence: Evidence, line: Point, profile: Profile | None, before: Point | None) -> str | None:
    """The retentions of an evaluation by flow time: the schedule's, and none above that of the evaluation before."""
    recorded = "retention_by_time" in line
    if recorded != (profile is not None):
        return f"the config's schedule has {'no' if recorded else 'a'} retention that depends on flow time."
    middles = middles_of(evidence.document["setting"]["edges"])
    if profile is not None:
        scheduled = profile.retention(torch.tensor(middles, dtype=torch.float64)).tolist()
        for t, rho, expected in zip(middles, line["retention_by_time"], scheduled, strict=True):
            if not nearly_equal(rho, expected):
                return f"the retention at flow time {t:.2f} is {rho:.4g}; the config's schedule has {expected:.4g}."
    if before is None or not (recorded or "retention_by_time" in before):
        return None
    rhos, earlier = ([*_retentions(point, len(middles))] for point in (line, before))
    for t, rho, rho_before in zip(middles, rhos, earlier, strict=True):
        if above(rho, rho_before):
            return f"the retention at flow time {t:.2f} rises, from {rho_before:.4g} to {rho:.4g}: T8 needs it to fall."
    return None


def _retentions(point: Point, parts: int) -> Sequence[float]:
    """The retention in each part of flow time."""
    values: Sequence[float] = point.get("retention_by_time") or [point["retention"]] * parts
    return values


def check_start(evidence: Evidence) -> str | None:
    """The drift is the anchor at step 0: R = 0, |b - b_tgt| = |Delta| and |b - b_beta| = (1 - rho) |Delta|."""
    first = evidence.points[0]
    moved = first["distance_from_pretrained"]
    if moved > ROUNDING * first["anchor_norm"]:
        return f"at step 0 the drift is {moved:.4g} away from its anchor: it didn't start from the pretrained weights."
    if first.get("gap") is not None:
        way = first.get("optimum_way", (1 - first["retention"]) * first["gap"])
        for key, expected in (("drift_error", first["gap"]), ("distance_to_optimum", way)):
            if not nearly_equal(first[key], expected):
                return f"at step 0 {key} is {first[key]:.4g}; for the anchor it is {expected:.4g}."
    return None


def check_anchor(evidence: Evidence) -> str | None:
    """|b_pre| on the same states is the same number at every evaluation."""
    first = evidence.points[0]["anchor_norm"]
    for point in evidence.points:
        if not nearly_equal(point["anchor_norm"], first):
            return (
                f"from {describe_place(point)} on the anchor is another drift: its norm is {point['anchor_norm']:.6g} "
                f"and was {first:.6g}. An anchor that moves with the trained weights retains nothing (T18)."
            )
    return None


def check_targets(evidence: Evidence) -> str | None:
    """The run's conditional drifts average to the oracle's target drift."""
    score = score_of(evidence.points[0], "label_noise")  # the same states at every evaluation: once is all there is
    if score is not None and abs(score) > evidence.bound:
        return (
            f"the conditional drifts do not average to the exact target drift: {score:+.1f} standard errors apart. "
            f"Source, coupling or path are not what the config names."
        )
    return None


def check_direction(evidence: Evidence) -> str | None:
    """No drift has significantly moved away from its target: P >= 0, which noise that is large but aimless allows."""
    for point in evidence.points[1:]:
        score, moved = score_of(point, "towards_target"), point["distance_from_pretrained"]
        if score is not None and score < -evidence.bound and point["towards_target"] < -NEAR * moved**2:
            place = describe_place(point)
            return f"left it at {place}: the drift moved away from its target ({score:+.1f} standard errors)."
    return None


def check_overshoot(evidence: Evidence) -> str | None:
    """No drift is significantly beyond its optimum by T and, along Delta, by more than a share NEAR of the gap (T13).

    Noise in the drift raises T alone. Where the retention is below 0 the optimum is beyond the target by as much, and
    where it depends on flow time each part of it is looked at.
    """
    if not evidence.closed_a_gap or evidence.lowest_retention <= -1:
        return None
    bound = evidence.bound
    closed, exact = closed_square_by_batch(evidence.points[-1]), evidence.exact_gap_squared
    for point in evidence.points[1:]:
        if "retention_low" in point:
            failure = _overshoot_by_time(evidence, point)
            if failure is not None:
                return failure
            continue
        score, progress, share = score_of(point, "T"), progress_by_batch(point), 1 - point["retention"] + NEAR
        beyond = [mean_estimate(progress - share * closed)]
        if exact is not None:  # this doesn't rely on the run's own end, which may have a temperature that isn't its own
            along = mean_estimate(progress)
            beyond.append(Estimate(along.value - share * exact.value, along.stderr + share * exact.stderr))
        if score is not None and score > bound and any(excess.value > bound * excess.stderr for excess in beyond):
            left = point["remaining"] if exact is None else 1 - float(progress.mean()) / exact.value
            return (
                f"left it at {describe_place(point)}: the drift is beyond its optimum (T is {score:+.1f} standard "
                f"errors), and only {left:.2f} of the gap is left where rho = {point['retention']:.2f} must be (T13: "
                f"no overshoot)."
            )
    return None


def _overshoot_by_time(evidence: Evidence, point: Point) -> str | None:
    """The first part of flow time in which a drift is beyond its optimum."""
    edges, last, bound = evidence.document["setting"]["edges"], evidence.points[-1], evidence.bound_by_time
    ended = "retention_by_time" in last  # otherwise the run's end doesn't show the gap of each part
    ends, towards_at_end = (closed_by_time(last), estimates_by_time(last, "towards_target")) if ended else ([], [])
    parts = zip(
        middles_of(edges),
        estimates_by_time(point, "T"),
        estimates_by_time(point, "towards_target"),
        point["retention_low_by_time"],
        strict=True,
    )
    exact = estimates_by_time(point, "exact_lag") if "exact_lag_by_time" in point else None
    for k, (middle, t, towards, low) in enumerate(parts):
        if low is None or not t.stderr > 0:
            continue
        share, score = 1 - low + NEAR, t.value / t.stderr
        beyond = []
        if ended:
            stderr = towards.stderr + share * towards_at_end[k].stderr / (1 - last["retention_by_time"][k])
            beyond.append(Estimate(towards.value - share * ends[k], stderr))
        if exact is not None:  # this doesn't rely on the run's own end
            beyond.append(Estimate(low - NEAR - exact[k].value, exact[k].stderr))
        if score > bound and any(excess.value > bound * excess.stderr for excess in beyond):
            return (
                f"left it at {describe_place(point)}: around flow time {middle:.2f} the drift is beyond its optimum (T "
                f"is {score:+.1f} standard errors): less of the gap is left than rho = {low:.2f} (T13: no overshoot)."
            )
    return None


CHECKS = (
    Check("record", "theory.json and metrics.jsonl agree.", check_record),
    Check(
        "schedule",
        "temperatures are the schedule's and never rise, at any flow time; rho = beta/(1 + beta).",
        check_schedule,
    ),
    Check("start", "at step 0 the drift was the anchor.", check_start),
    Check("anchor", "the pretrained drift stayed what it was.", check_anchor),
    Check("targets", "nothing contradicts the run's pairs and path.", check_targets),
    Check("direction", "the drift never moved away from its target.", check_direction),
    Check(
        "overshoot",
        "the drift was never beyond its temperature's optimum by more than noise and a tenth of the gap.",
        check_overshoot,
    ),
)
"""The properties of every run of Gradual Fine-Tuning."""


def describe_place(point: Point) -> str:
    """An evaluation's step and temperature, as text."""
    return f"step {point['step']} ({format_temperature(point)})"


def format_temperature(point: Point) -> str:
    """The temperature, or the retentions where they depend on flow time, in three significant digits."""
    if point.get("retention_low") is not None:
        return f"retention {point['retention_low']:.3g} to {point['retention_high']:.3g} by flow time"
    return f"temperature {point['temperature']:.3g}"


def above(one: float, other: float) -> bool:
    """True for a number that rounding doesn't explain to be above another one."""
    return one > other and not nearly_equal(one, other)


def nearly_equal(one: float, other: float) -> bool:
    """True for numbers that rounding in float32 doesn't tell from each other."""
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-9)
