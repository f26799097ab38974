"""The part of a run's report that the monitor ``theory`` adds: a picture, a table and an explanation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gftkit.recording import pictures
from gftkit.recording.html import Section, format_number
from gftkit.recording.pictures import Panel, Trace
from gftkit_verification.monitors.theory.document import Point, score_of

CLOSED_ENOUGH = 1.02
"""The exact gap is more than this times the one that the run closed where the picture shows the floor as well."""


def build_sections(document: Mapping[str, Any]) -> list[Section]:
    """The monitor's part of a report, from the content of theory.json; nothing for fewer than two evaluations."""
    points = document["points"]
    if len(points) < 2:
        return []
    oracle = document["setting"].get("oracle", "no oracle")
    exact = oracle == "applies"
    why = "" if exact else f"|b - b_tgt| itself is not known here: {oracle}."
    text = (
        "How the run followed its temperature. Measured on the raw weights, on training targets with fresh source "
        "samples, times and noise, which are the same at every evaluation; bars are two standard errors over "
        "independent batches. At the optimum b_beta of its temperature a drift has T = 0 and keeps the share rho of "
        f"the gap to the target drift (T1, T4); T13 predicts a lag behind it. {why}"
    )
    caption = (
        ("Top: drift errors and their predictions. " if exact else "")
        + "Share of the gap that is left, beside rho; T in standard errors, with 0 ± 2 shaded; two estimates of "
        "|Delta|^2, which are unbiased where T is near 0."
    )
    return [
        Section(
            "Theory",
            text,
            _rows(points[-1], exact=exact),
            pictures.panel_picture(list(_panels(document, exact=exact))),
            caption,
        )
    ]


def format_measurement(point: Point, key: str) -> str:
    """A measurement with its standard error, as text."""
    return format_number(point.get(key), point.get(f"{key}_stderr"))


def _rows(last: Point, *, exact: bool) -> list[tuple[str, ...]]:
    """The table: the last evaluation beside its predictions."""
    rows: list[tuple[str, ...]] = [
        ("at the end", "measured", "predicted"),
        ("share of the gap left", format_measurement(last, "remaining"), format_number(last["retention"])),
        ("share of the way to the optimum", format_measurement(last, "reached"), "1"),
        ("T", format_measurement(last, "T"), "0"),
    ]
    if exact:
        predicted = format_number(last["predicted_drift_error"])
        rows.append(("drift error |b - b_tgt|", format_measurement(last, "drift_error"), predicted))
        distance = format_measurement(last, "distance_to_optimum")
        rows.append(("distance to the optimum |b - b_beta|", distance, "0"))
    return rows


def _panels(document: Mapping[str, Any], *, exact: bool) -> Iterator[Panel]:
    """The picture, from top to bottom."""
    points = document["points"]
    held_out = "held_out_T" in points[0]
    after_start = [point for point in points if point["step"] > 0]
    if exact:
        yield _drift_errors(points, floor=document["gap"]["value"] > CLOSED_ENOUGH * document["reachable_gap"]["value"])
    rho = _trace(points, "retention", style="predicted")
    yield Panel("share of the gap left", {"measured": _trace(points, "remaining"), "predicted: rho": rho})
    yield _scores(after_start, held_out=held_out)
    yield _gap_estimates(after_start, held_out=held_out, exact_square=document["gap"]["value"] ** 2 if exact else None)


def _drift_errors(points: Sequence[Point], *, floor: bool) -> Panel:
    traces = {
        "|b - b_tgt|": _trace(points, "drift_error"),
        "predicted: rho |Δ|": _trace(points, "predicted_drift_error", style="predicted"),
        "|b - b_β|": _trace(points, "distance_to_optimum", colour=1),
    }
    if floor:
        traces["predicted, with what the run did not close"] = _trace(
            points, "predicted_drift_error_with_floor", style="predicted", colour=2
        )
    return Panel("drift error", traces)


def _scores(points: Sequence[Point], *, held_out: bool) -> Panel:
    steps = [point["step"] for point in points]
    scores = {"training targets": Trace(steps, [score_of(point, "T") for point in points])}
    if held_out:
        values = [score_of(point, "held_out_T") for point in points]
        scores["held-out targets"] = Trace(steps, values, style="faint", colour=1)
    return Panel("T in standard errors", scores, band=(-2, 2))


def _gap_estimates(points: Sequence[Point], *, held_out: bool, exact_square: float | None) -> Panel:
    steps = [point["step"] for point in points]

    def estimates(key: str, **options: Any) -> Trace:
        errors = [point.get(f"{key}_stderr") for point in points]
        return Trace(steps, [point.get(key) for point in points], errors, **options)

    squares = {
        "from the distance, R/(1 - rho)²": estimates("gap_squared_by_distance"),
        "from the loss, G/(1 - rho²)": estimates("gap_squared_by_loss", colour=1),
    }
    if held_out:
        squares["from the loss, held-out"] = estimates("held_out_gap_squared_by_loss", style="faint", colour=2)
    if exact_square is not None:
        squares["|Δ|², exact"] = Trace(steps, [exact_square] * len(steps), style="predicted", colour=4)
    return Panel("estimates of |Δ|²", squares)


def _trace(points: Sequence[Point], key: str, **options: Any) -> Trace:
    """A measurement over steps, with bars where any point has a standard error."""
    errors = [point.get(f"{key}_stderr") for point in points]
    steps = [point["step"] for point in points]
    return Trace(steps, [point.get(key) for point in points], errors if any(errors) else (), **options)
