"""The verdict of the monitor ``theory`` on a finished run: did it follow the theory, and where did it end?"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from scipy import stats

from gftkit.kernel.errors import RunError
from gftkit.runs.folder import RunFolder
from gftkit.storage.documents import read_json
from gftkit.training.verdict import Verdict
from gftkit_verification.monitors.theory.checks import CHECKS, NEAR, Evidence, describe_place, format_temperature
from gftkit_verification.monitors.theory.document import build_document, score_of
from gftkit_verification.monitors.theory.recommendation import recommend
from gftkit_verification.monitors.theory.report import format_measurement

FALSE_ALARM = 1e-3
"""How often, at most, a run that follows the theory is said not to, by chance, in all statistical checks together."""

CURE = "Add `monitors: [{name: theory}]` to its config and run it again."


def judge(run: RunFolder, lines: Sequence[Mapping[str, Any]], path: Path) -> Verdict:
    """The verdict on a run, from theory.json and metrics.jsonl.

    It followed if every check of ``CHECKS`` holds: they hold for every run of Gradual Fine-Tuning, whatever it
    reached. Whether it arrived at its last optimum is reported beside it: to lag behind is what T13 predicts of a run
    that cools faster than it learns.

    Raises:
        RunError: for files that are missing, damaged or cut off.
    """
    file = _read(path)
    log = path.with_name("metrics.jsonl")
    try:
        document = build_document(lines)
        steps = [point["step"] for point in document["points"]]
        if len(steps) < 2 or steps[0] != 0 or steps[-1] != run.steps():
            raise RunError(
                f"{log} is cut off: wanted evaluations by the monitor from step 0 to {run.steps()}, got "
                f"{len(steps)}. {CURE}"
            )
        degrees = document["setting"]["batches"] - 1
        bound = float(stats.t.isf(FALSE_ALARM / (3 * len(steps)), degrees))
        parts = len(document["setting"]["edges"]) - 1
        by_time = float(stats.t.isf(FALSE_ALARM / (3 * len(steps) * parts), degrees))
        evidence = Evidence(run, document, file, frozenset(key for line in lines for key in line), bound, by_time)
        failures = {check.name: check.find(evidence) for check in CHECKS}
        outcome = describe_outcome(evidence)
    except (KeyError, TypeError, ValueError, RuntimeError) as error:
        raise RunError(f"{log} is damaged: a line of the monitor lacks or spoils {error}. Run it again.") from None
    followed = all(failure is None for failure in failures.values())
    head = "The run is consistent with the theory." if followed else "The run did not follow the theory."
    sentences = [f"{check.name}: {failures[check.name] or check.holds}" for check in CHECKS]
    checks = {name: {"holds": failure is None, "where": failure} for name, failure in failures.items()}
    findings = {"checks": checks, **outcome.findings, "false_alarm": FALSE_ALARM}
    return Verdict(followed, [head, *sentences, *outcome.sentences], findings)


def _read(path: Path) -> Mapping[str, Any]:
    """The content of theory.json.

    Raises:
        RunError: where it is missing or no document of the monitor.
    """
    if not path.is_file():
        raise RunError(f"{path} is missing: the monitor didn't finish, or the file was removed. {CURE}")
    content = read_json(path)
    if not isinstance(content, dict) or not isinstance(content.get("points"), list):
        raise RunError(f"{path} is damaged: wanted a mapping with a list of points. Run it again.")
    return content


@dataclass(frozen=True)
class Outcome:
    """The end of a run and its lag.

    Attributes:
        sentences: in words.
        findings: as plain values.
    """

    sentences: list[str] = field(default_factory=list)
    findings: dict[str, Any] = field(default_factory=dict)


def describe_outcome(evidence: Evidence) -> Outcome:
    """The end of the run and its lag, in words and as plain values."""
    last = evidence.points[-1]
    status, arrival = _describe_arrival(evidence)
    lag = _describe_lag(evidence)
    advice = recommend(evidence.document)
    return Outcome(
        [arrival, *lag.sentences, _describe_drift_error(evidence), *advice.sentences],
        {
            "arrived": status == "arrived",
            "status": status,
            "reached": last["reached"],
            "T_score": score_of(last, "T") or 0.0,
            **lag.findings,
            **advice.findings,
        },
    )


def _describe_arrival(evidence: Evidence) -> tuple[str, str]:
    """The status and a sentence: is the last drift at its temperature's optimum?"""
    last = evidence.points[-1]
    reached, score = last["reached"], score_of(last, "T") or 0.0
    if evidence.lowest_retention <= -1:
        return "unknown", (
            "arrived: unknown. At a retention of -1 or below the optimum is no nearer to its target than the "
            "pretrained drift was, so that the loss doesn't show the gap."
        )
    if reached is None or not evidence.closed_a_gap:
        return "nowhere", (
            "arrived: no. At its end the drift is no nearer to its target than the pretrained one was: there was no "
            "gap to close, too little training, or too much noise in it."
        )
    share, temperature = format_measurement(last, "reached"), format_temperature(last)
    way = f"At its end it has come {share} of the way to its last optimum ({temperature})"
    if abs(reached - 1) <= NEAR:
        return "arrived", (
            f"arrived: yes, as far as T shows. {way}; T is {score:+.1f} standard errors. T measures the direction in "
            f"which the drift has moved, not what it hasn't begun to learn."
        )
    if abs(score) <= evidence.bound:
        return "unclear", (
            f"arrived: unknown. {way}, which is not known well enough: T is {score:+.1f} standard errors. Give the "
            f"monitor more `batches` or `states`."
        )
    if reached < 1:
        return "lags", (
            f"arrived: no. {way}. It lags, as T13 predicts of a run that cools faster than it learns: more steps or a "
            f"higher learning rate would bring it nearer."
        )
    return "beyond", f"arrived: no. {way}: noise of training (T14, T15) or overfitting took it beyond."


def _describe_lag(evidence: Evidence) -> Outcome:
    """The largest lag behind the optimum; nothing where no gap was closed."""
    lags = [
        (p["remaining"] - p["remaining_at_optimum"], p) for p in evidence.points[1:] if p.get("remaining") is not None
    ]
    if not lags or not evidence.closed_a_gap:
        return Outcome()
    largest, point = max(lags, key=lambda pair: pair[0])
    finding = {"value": largest, "step": point["step"], "temperature": point["temperature"]}
    if largest > NEAR:
        sentence = (
            f"lag: largest at {describe_place(point)}, where {point['remaining']:.2f} of the gap was left instead of "
            f"{point['remaining_at_optimum']:.2f}."
        )
    else:
        sentence = f"lag: never more than {max(largest, 0):.2f} of the gap behind the optimum."
    return Outcome([sentence], {"largest_lag": finding})


def _describe_drift_error(evidence: Evidence) -> str:
    """|b - b_tgt| from start to end beside its prediction, or why it isn't known."""
    last = evidence.points[-1]
    if last.get("drift_error") is None:
        return f"drift error: not measurable here, since {evidence.document['setting']['oracle']}."
    floor = last.get("predicted_drift_error_with_floor")
    with_floor = "" if floor is None else f", and {floor:.4g} with what this run did not close"
    return (
        f"drift error: |b - b_tgt| fell from {evidence.points[0]['drift_error']:.4g} to "
        f"{format_measurement(last, 'drift_error')}; predicted at the last optimum "
        f"{last['predicted_drift_error']:.4g}{with_floor}. The distance to that optimum, |b - b_beta|, is "
        f"{format_measurement(last, 'distance_to_optimum')}; |Delta| is {last['gap']:.4g}."
    )
