"""What the monitor ``theory`` says of a run: theory.json, the picture in its report, and the verdict in words."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from scipy import stats
from torch import Tensor

from gftkit.kernel.contracts import Estimate
from gftkit.kernel.errors import RunError
from gftkit.recording import pictures
from gftkit.recording.html import Section, format_number
from gftkit.recording.pictures import Panel, Trace
from gftkit.runs.folder import RunFolder
from gftkit.storage.documents import nan_to_none, read_json
from gftkit.theory.gap import mean_estimate, ratio_estimate, root_estimate
from gftkit.theory.objective import retention
from gftkit.theory.predictions import drift_error
from gftkit.theory.temperature import has_feedback
from gftkit.training.verdict import Verdict

Point = Mapping[str, Any]

SETTING = ("oracle", "batches", "states", "pairing_batch")
NEAR = 0.1
"""An optimum counts as reached within this share of the way, and as overshot by more than this share of the gap.

T13 is of gradient flow: momentum swings a little past an optimum, and training has noise.
"""

ROUNDING = 1e-4
"""Largest relative difference of two float32 evaluations of one network, on any device."""

FALSE_ALARM = 1e-3
"""How often, at most, a run that follows the theory is said not to, by chance, in all statistical checks together."""


def record(lines: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """What theory.json holds, from the monitor's lines of metrics.jsonl: the setting, the gap, and a point for each.

    A point has what was measured and what is predicted for it. ``gap``, |Delta|_w, is the oracle's where that applies;
    otherwise it is ``reachable_gap``. That one is the run's own, from the decrease of the flow matching loss at its
    last evaluation, (G/(1 - rho^2))^(1/2): the part of |Delta| that the network and the training could close. It is
    too small where the run ends before it arrives. ``remaining`` = 1 - P/reachable_gap^2 is the share of it that is
    left: T13's c, which is the retention rho at the optimum, and is not raised by noise.
    """
    if not lines:
        return {"setting": {}, "gap": None, "points": []}
    first, last = lines[0], lines[-1]
    reachable = root_estimate(_estimate(last, "gap_squared_by_loss"))
    gap = _estimate(first, "gap") if first.get("gap") is not None else reachable
    floor = math.sqrt(max(gap.value**2 - reachable.value**2, 0.0))
    points = []
    for line in lines:
        point = {key: value for key, value in line.items() if key not in ("kind", "monitor", *SETTING)}
        rho = line["retention"]
        point["predicted_drift_error"] = rho * gap.value
        point["predicted_drift_error_with_floor"] = drift_error(rho, reachable.value, floor)
        point["predicted_distance_from_pretrained"] = (1 - rho) * reachable.value
        closed = ratio_estimate(_towards(line), _closed_square(last))
        point["remaining"], point["remaining_stderr"] = 1 - closed.value, closed.stderr
        points.append(point)
    made = {
        "setting": {key: first[key] for key in SETTING if key in first},
        "gap": {"value": gap.value, "stderr": gap.stderr},
        "reachable_gap": {"value": reachable.value, "stderr": reachable.stderr},
        "points": points,
    }
    return dict(nan_to_none(made))


# --- the report -------------------------------------------------------------------------------------------------------


def shown(recorded: Mapping[str, Any]) -> list[Section]:
    """The monitor's part of a report."""
    points = recorded["points"]
    if len(points) < 2:
        return []
    exact = recorded["setting"].get("oracle") == "applies"
    last = points[-1]
    oracle = recorded["setting"].get("oracle", "no oracle")
    why = "" if exact else f"|b - b_tgt| itself is not known here: {oracle}."
    text = (
        "How the run followed its temperature. Raw weights, on training targets with fresh source samples, times and "
        "noise, the same at every evaluation; bars are two standard errors over independent batches. At its "
        "temperature's optimum b_beta a drift has T = 0, and keeps the share rho of the gap to the target drift (T1, "
        f"T4); a lag behind it is T13's. {why}"
    )
    rows = [
        ("at the end", "measured", "predicted"),
        ("share of the gap left", _shown(last, "remaining"), format_number(last["retention"])),
        ("share of the way to the optimum", _shown(last, "reached"), "1"),
        ("T", _shown(last, "T"), "0"),
    ]
    if exact:
        rows.append(
            ("drift error |b - b_tgt|", _shown(last, "drift_error"), format_number(last["predicted_drift_error"]))
        )
        rows.append(("distance to the optimum |b - b_beta|", _shown(last, "distance_to_optimum"), "0"))
    caption = (
        ("Top: drift errors and their predictions. " if exact else "")
        + "Share of the gap that is left, beside rho; T in standard errors, with 0 ± 2 shaded; two estimates of "
        "|Delta|^2, which mean it where T is near 0."
    )
    return [Section("Theory", text, rows, pictures.panel_picture(list(_panels(recorded, exact))), caption)]


def _panels(recorded: Mapping[str, Any], exact: bool) -> Iterator[Panel]:
    points = recorded["points"]
    steps = [point["step"] for point in points]
    held_out = "held_out_T" in points[0]

    def trace(key: str, **options: Any) -> Trace:
        errors = [point.get(f"{key}_stderr") for point in points]
        return Trace(steps, [point.get(key) for point in points], errors if any(errors) else (), **options)

    if exact:
        traces = {
            "|b - b_tgt|": trace("drift_error"),
            "predicted: rho |Δ|": trace("predicted_drift_error", style="predicted"),
            "|b - b_β|": trace("distance_to_optimum", colour=1),
        }
        floored = trace("predicted_drift_error_with_floor", style="predicted", colour=2)
        if recorded["gap"]["value"] > 1.02 * recorded["reachable_gap"]["value"]:
            traces["predicted, with what the run did not close"] = floored
        yield Panel("drift error", traces)
    rho = trace("retention", style="predicted")
    yield Panel("share of the gap left", {"measured": trace("remaining"), "predicted: rho": rho})
    after = [point for point in points if point["step"] > 0]
    later = [point["step"] for point in after]
    scores = {"training targets": Trace(later, [_score(point, "T") for point in after])}
    if held_out:
        scores["held-out targets"] = Trace(
            later, [_score(point, "held_out_T") for point in after], style="faint", colour=1
        )
    yield Panel("T in standard errors", scores, band=(-2, 2))

    def estimates(key: str, **options: Any) -> Trace:
        return Trace(later, [p.get(key) for p in after], [p.get(f"{key}_stderr") for p in after], **options)

    squares = {
        "from the distance, R/(1 - rho)²": estimates("gap_squared_by_distance"),
        "from the loss, G/(1 - rho²)": estimates("gap_squared_by_loss", colour=1),
    }
    if held_out:
        squares["from the loss, held-out"] = estimates("held_out_gap_squared_by_loss", style="faint", colour=2)
    if exact:
        truth = [recorded["gap"]["value"] ** 2] * len(later)
        squares["|Δ|², exact"] = Trace(later, truth, style="predicted", colour=4)
    yield Panel("estimates of |Δ|²", squares)


def _shown(point: Point, key: str) -> str:
    return format_number(point.get(key), point.get(f"{key}_stderr"))


# --- the verdict ------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Check:
    """One thing that every run of Gradual Fine-Tuning has.

    Attributes:
        name: short.
        holds: said where it does.
        find: the first point where it doesn't and what is wrong there, or None.
    """

    name: str
    holds: str
    find: Callable[["Record"], str | None]


@dataclass(frozen=True)
class Record:
    """What a verdict is made from.

    Attributes:
        run: the run.
        recorded: what theory.json should hold.
        written: what it holds.
        measured: the keys of a point that were measured; the others follow from them.
        bound: of every statistical check, in standard errors.
    """

    run: RunFolder
    recorded: Mapping[str, Any]
    written: Mapping[str, Any]
    measured: frozenset[str]
    bound: float

    @property
    def points(self) -> Sequence[Point]:
        """The evaluations, from step 0 on."""
        return self.recorded["points"]


def judge(run: RunFolder, lines: Sequence[Mapping[str, Any]], path: Path) -> Verdict:
    """Whether a run followed the theory, from theory.json and metrics.jsonl.

    It followed if every check of ``CHECKS`` holds: they hold for every run of Gradual Fine-Tuning, whatever it
    reached. Whether it arrived at its last optimum is told beside it: to lag behind is what T13 predicts of a run
    that cools faster than it learns.

    Raises:
        RunError: for files that are missing, damaged or cut off.
    """
    cure = "Add `monitors: [{name: theory}]` to its config and run it again."
    if not path.is_file():
        raise RunError(f"{path} is missing: the monitor didn't finish, or the file was removed. {cure}")
    written = read_json(path)
    if not isinstance(written, dict) or not isinstance(written.get("points"), list):
        raise RunError(f"{path} is damaged: wanted a mapping with a list of points. RunFolder it again.")
    log = path.with_name("metrics.jsonl")
    try:
        recorded = record(lines)
        steps = [point["step"] for point in recorded["points"]]
        if len(steps) < 2 or steps[0] != 0 or steps[-1] != run.steps():
            raise RunError(
                f"{log} is cut off: wanted evaluations by the monitor from step 0 to {run.steps()}, got "
                f"{len(steps)}. {cure}"
            )
        degrees = recorded["setting"]["batches"] - 1
        bound = float(stats.t.isf(FALSE_ALARM / (3 * len(steps)), degrees))
        held = Record(run, recorded, written, frozenset(key for line in lines for key in line), bound)
        broken = {check.name: check.find(held) for check in CHECKS}
        told, findings = outcome(held)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(
            f"{log} is damaged: a line of the monitor lacks or spoils {error}. RunFolder it again."
        ) from None
    left = [text for text in broken.values() if text is not None]
    head = "The run did not follow the theory." if left else "The run is consistent with the theory."
    said = [f"{check.name}: {broken[check.name] or check.holds}" for check in CHECKS]
    checks = {name: {"holds": text is None, "where": text} for name, text in broken.items()}
    return Verdict(not left, [head, *said, *told], {"checks": checks, **findings, "false_alarm": FALSE_ALARM})


def outcome(held: Record) -> tuple[list[str], dict[str, Any]]:
    """Where the run ended and how it lagged: in words and as plain values."""
    last, bound = held.points[-1], held.bound
    told: list[str] = []
    findings: dict[str, Any] = {}
    reached = last["reached"]
    score = _score(last, "T") or 0.0
    way = f"At its end it has come {_shown(last, 'reached')} of the way to its last optimum (temperature {_beta(last)})"
    if reached is None or not _closed(held):
        status = "nowhere"
        told.append(
            "arrived: no. At its end the drift is no nearer to its target than the pretrained one was: there was no "
            "gap to close, too little training, or too much noise in it."
        )
    elif abs(reached - 1) <= NEAR:
        status = "arrived"
        told.append(
            f"arrived: yes, as far as T can tell. {way}; T is {score:+.1f} standard errors. T sees the direction in "
            f"which the drift has moved, not what it hasn't begun to learn."
        )
    elif abs(score) <= bound:
        status = "unclear"
        told.append(
            f"arrived: can't be told. {way}, which is not known well enough: T is {score:+.1f} standard errors. Give "
            f"the monitor more `batches` or `states`."
        )
    elif reached < 1:
        status = "lags"
        told.append(
            f"arrived: no. {way}. It lags, as T13 predicts of a run that cools faster than it learns: more steps or a "
            f"higher learning rate would bring it nearer."
        )
    else:
        status = "beyond"
        told.append(f"arrived: no. {way}: noise of training (T14, T15) or overfitting took it beyond.")
    lags = [(p["remaining"] - p["retention"], p) for p in held.points[1:] if p.get("remaining") is not None]
    if lags and _closed(held):
        most, where = max(lags, key=lambda pair: pair[0])
        findings["largest_lag"] = {"value": most, "step": where["step"], "temperature": where["temperature"]}
        if most > NEAR:
            told.append(
                f"lag: largest at {_place(where)}, where {where['remaining']:.2f} of the gap was left instead of "
                f"{where['retention']:.2f}."
            )
        else:
            told.append(f"lag: never more than {max(most, 0):.2f} of the gap behind the optimum.")
    if last.get("drift_error") is not None:
        told.append(
            f"drift error: |b - b_tgt| fell from {held.points[0]['drift_error']:.4g} to {_shown(last, 'drift_error')}; "
            f"predicted at the last optimum {last['predicted_drift_error']:.4g}, and "
            f"{last['predicted_drift_error_with_floor']:.4g} with what this run did not close. The distance to that "
            f"optimum, |b - b_beta|, is {_shown(last, 'distance_to_optimum')}; |Delta| is {last['gap']:.4g}."
        )
    else:
        told.append(f"drift error: not measurable here, since {held.recorded['setting']['oracle']}.")
    if last["retention"] == 0 and last.get("held_out_T") is not None:
        best = last["held_out_T"] / last["held_out_distance_from_pretrained"] ** 2
        if (_score(last, "held_out_T") or 0) > bound and best < 1:
            findings["best_retention"] = best
            told.append(
                f"held-out: the drift went beyond the optimum of the held-out targets. Ending at a temperature near "
                f"{best / (1 - best):.2g} would fit them better (T15)."
            )
    return told, {"arrived": status == "arrived", "status": status, "reached": reached, "T_score": score, **findings}


def _record(held: Record) -> str | None:
    """theory.json says what metrics.jsonl says."""
    if len(held.written["points"]) != len(held.points):
        return f"theory.json has {len(held.written['points'])} points and metrics.jsonl {len(held.points)}."
    for mine, theirs in zip(held.points, held.written["points"], strict=True):
        differ = [key for key in mine if key in held.measured and theirs.get(key) != mine[key]]
        if differ:
            return f"theory.json differs from metrics.jsonl at {_place(mine)} in {', '.join(differ)}."
    return None


def _schedule(held: Record) -> str | None:
    """Temperatures are the schedule's, never rise, and the retention is beta/(1 + beta).

    Of a schedule with feedback the one at the start is known, and none may be above it.
    """
    run = held.run
    schedule, steps = run.registry.build("schedule", run.config.schedule or {}), run.config.train.steps
    feedback = has_feedback(schedule)
    trained = [line for line in run.history() if line["kind"] == "train"]
    before = math.inf
    for line in sorted([*held.points, *trained], key=lambda line: line["step"]):
        beta, rho = line["temperature"], line["retention"]
        if not _close(rho, retention(beta)):
            return f"at {_place(line)} the retention is {rho:.4g}; it must be {retention(beta):.4g} = beta/(1 + beta)."
        if "T" in line:  # an evaluation; a line of training has the temperature of the step before
            wanted = float(schedule.temperature(min(line["step"], steps - 1) / steps))
            if feedback and beta > wanted * (1 + ROUNDING):
                return f"at {_place(line)} the temperature is above {wanted:.4g}, where the config's schedule starts."
            if not feedback and not _close(beta, wanted):
                return f"at {_place(line)} the config's schedule has the temperature {wanted:.4g}."
            if not feedback and beta > before * (1 + ROUNDING):
                return f"at {_place(line)} the temperature rises, from {before:.4g}: T8 and T13 are of a falling one."
            before = beta
    return None


def _start(held: Record) -> str | None:
    """At step 0 the drift is the anchor: R = 0, |b - b_tgt| = |Delta| and |b - b_beta| = (1 - rho) |Delta|."""
    first = held.points[0]
    moved = first["distance_from_pretrained"]
    if moved > ROUNDING * first["anchor_norm"]:
        return f"at step 0 the drift is {moved:.4g} away from its anchor: it didn't start from the pretrained weights."
    if first.get("gap") is not None:
        for key, share in (("drift_error", 1.0), ("distance_to_optimum", 1 - first["retention"])):
            if not _close(first[key], share * first["gap"]):
                return f"at step 0 {key} is {first[key]:.4g}; for the anchor it is {share * first['gap']:.4g}."
    return None


def _anchor(held: Record) -> str | None:
    """|b_pre| on the same states is the same number at every evaluation."""
    first = held.points[0]["anchor_norm"]
    for point in held.points:
        if not _close(point["anchor_norm"], first):
            return (
                f"from {_place(point)} on the anchor is another drift: its norm is {point['anchor_norm']:.6g} and was "
                f"{first:.6g}. An anchor that moves with the trained weights retains nothing (T18)."
            )
    return None


def _targets(held: Record) -> str | None:
    """The run's conditional drifts average to the oracle's target drift."""
    for point in held.points[:1]:  # the same states at every evaluation: once is all there is
        score = _score(point, "label_noise")
        if score is not None and abs(score) > held.bound:
            return (
                f"the conditional drifts do not average to the exact target drift: {score:+.1f} standard errors apart. "
                f"Source, coupling or path are not what the config names."
            )
    return None


def _overshoot(held: Record) -> str | None:
    """No drift is significantly beyond its optimum by T and, along Delta, by more than a share NEAR of the gap (T13).

    Noise in the drift raises T alone.
    """
    if not _closed(held):
        return None
    closed, exact = _closed_square(held.points[-1]), _exact_square(held)
    for point in held.points[1:]:
        score, towards, share = _score(point, "T"), _towards(point), 1 - point["retention"] + NEAR
        beyond = [mean_estimate(towards - share * closed)]
        if exact is not None:  # this doesn't rely on the run's own end, which may have a temperature that isn't its own
            along = mean_estimate(towards)
            beyond.append(Estimate(along.value - share * exact.value, along.stderr + share * exact.stderr))
        if score is not None and score > held.bound and any(one.value > held.bound * one.stderr for one in beyond):
            left = point["remaining"] if exact is None else 1 - float(towards.mean()) / exact.value
            return (
                f"left it at {_place(point)}: the drift is beyond its optimum (T is {score:+.1f} standard errors), and "
                f"only {left:.2f} of the gap is left where rho = {point['retention']:.2f} must be (T13: no overshoot)."
            )
    return None


def _direction(held: Record) -> str | None:
    """No drift has significantly moved away from its target: P >= 0, which noise that is large but aimless allows."""
    for point in held.points[1:]:
        score, moved = _score(point, "towards_target"), point["distance_from_pretrained"]
        if score is not None and score < -held.bound and point["towards_target"] < -NEAR * moved**2:
            return f"left it at {_place(point)}: the drift moved away from its target ({score:+.1f} standard errors)."
    return None


def _towards(point: Point) -> Tensor:
    """P of each batch: ``<b_pre - b_tgt, b_pre - b>_w``."""
    return (
        torch.tensor(point["G_batches"], dtype=torch.float64) + torch.tensor(point["R_batches"], dtype=torch.float64)
    ) / 2


def _closed_square(last: Point) -> Tensor:
    """The square of the gap that the run closed by its end, by its loss, of each batch."""
    return torch.tensor(last["G_batches"], dtype=torch.float64) / (1 - last["retention"] ** 2)


def _exact_square(held: Record) -> Estimate | None:
    """|Delta|^2 where the oracle applies."""
    if held.points[0].get("gap") is None:
        return None
    gap = _estimate(held.points[0], "gap")
    return Estimate(gap.value**2, 2 * gap.value * gap.stderr)


def _closed(held: Record) -> bool:
    """Whether the run's last drift is significantly nearer to its target than the pretrained one."""
    return (_score(held.points[-1], "gap_squared_by_loss") or 0.0) > held.bound


CHECKS = (
    Check("record", "theory.json and metrics.jsonl agree.", _record),
    Check("schedule", "temperatures are the schedule's and never rise; rho = beta/(1 + beta).", _schedule),
    Check("start", "at step 0 the drift was the anchor.", _start),
    Check("anchor", "the pretrained drift stayed what it was.", _anchor),
    Check("targets", "nothing speaks against the run's pairs and path.", _targets),
    Check("direction", "the drift never moved away from its target.", _direction),
    Check(
        "overshoot",
        "the drift was never beyond its temperature's optimum by more than noise and a tenth of the gap.",
        _overshoot,
    ),
)
"""What every run of Gradual Fine-Tuning has."""


def _estimate(point: Point, key: str) -> Estimate:
    value, stderr = point.get(key), point.get(f"{key}_stderr")
    return Estimate(math.nan if value is None else value, math.nan if stderr is None else stderr)


def _score(point: Point, key: str) -> float | None:
    """A measurement in standard errors; None where it has none."""
    value, stderr = point.get(key), point.get(f"{key}_stderr")
    return value / stderr if value is not None and stderr else None


def _place(point: Point) -> str:
    return f"step {point['step']} (temperature {_beta(point)})"


def _beta(point: Point) -> str:
    return f"{point['temperature']:.3g}"


def _close(one: float, other: float) -> bool:
    return math.isclose(one, other, rel_tol=ROUNDING, abs_tol=1e-9)
