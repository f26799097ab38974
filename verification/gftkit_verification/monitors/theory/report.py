"""The part of a run's report that the monitor ``theory`` adds: a picture, a table and an explanation."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gftkit.recording import pictures
from gftkit.recording.html import Section, format_number
from gftkit.recording.pictures import Panel, Trace
from gftkit_verification.monitors.theory.document import Point, middles_of, score_of
from gftkit_verification.monitors.theory.recommendation import recommend

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
        ),
        *_flow_time(document),
    ]


def _flow_time(document: Mapping[str, Any]) -> list[Section]:
    """Lag and best retention by flow time at the end of the run, and what they recommend; nothing where unknown."""
    last = document["points"][-1]
    if all(value is None for value in last["best_retention_by_time"]):
        return []
    held_out = "held_out_best_retention" in last
    advice = recommend(document)
    text = (
        "At the run's end, in equal parts of flow time: the lag c = -r*/(1 - r*) on training targets, which is rho at "
        "the optimum, and the best retention r* of a blend b + r (b_pre - b) (T20, T21). Below 0 the blend goes beyond "
        "the drift. Noise lowers the lag, and where the run memorises training targets ask for too little retention; "
        + ("held-out targets don't. " if held_out else "held-out targets wouldn't: give `evaluate.data`. ")
        + " ".join(sentence[0].upper() + sentence[1:] for sentence in advice.sentences)
    )
    picture = pictures.panel_picture(list(_time_panels(document, held_out=held_out)), "flow time t")
    caption = "Bars are two standard errors over independent batches. Dashed: what a run at its optimum shows."
    rows = _time_rows(document, advice.findings.get("recommended_by_time", ()), held_out=held_out)
    return [Section("Theory by flow time", text, rows, picture, caption)]


def _retentions(document: Mapping[str, Any]) -> list[float]:
    """rho in each part of flow time, at the end."""
    last = document["points"][-1]
    rhos = last.get("retention_by_time") or [last["retention"]] * (len(document["setting"]["edges"]) - 1)
    return list(rhos)


def _time_rows(document: Mapping[str, Any], recommended: Sequence[float], *, held_out: bool) -> list[tuple[str, ...]]:
    last, edges = document["points"][-1], document["setting"]["edges"]
    columns = {"rho": _retentions(document), "lag c": _texts(last, "lag"), "r*": _texts(last, "best_retention")}
    if held_out:
        columns["r*, held-out"] = _texts(last, "held_out_best_retention")
    columns["recommended end"] = list(recommended) or [None] * (len(edges) - 1)
    head = ("flow time", *columns)
    return [
        head,
        *(
            (f"{left:.2f} to {right:.2f}", *(one if isinstance(one, str) else format_number(one) for one in row))
            for left, right, *row in zip(edges[:-1], edges[1:], *columns.values(), strict=True)
        ),
    ]


def _texts(last: Point, key: str) -> list[Any]:
    pairs = zip(last[f"{key}_by_time"], last[f"{key}_by_time_stderr"], strict=True)
    return [format_number(*pair) for pair in pairs]


def _time_panels(document: Mapping[str, Any], *, held_out: bool) -> Iterator[Panel]:
    last, middles, rhos = document["points"][-1], middles_of(document["setting"]["edges"]), _retentions(document)

    def curve(key: str, **options: Any) -> Trace:
        return Trace(middles, last[f"{key}_by_time"], last[f"{key}_by_time_stderr"], **options)

    lag = {"on training targets": curve("lag"), "predicted: rho": Trace(middles, rhos, style="predicted")}
    if "exact_lag_by_time" in last:
        lag["exact, which noise doesn't lower"] = curve("exact_lag", style="faint", colour=2)
    yield Panel("lag c", lag)
    predicted = Trace(middles, [-rho / (1 - rho) for rho in rhos], style="predicted")
    best = {"on training targets": curve("best_retention", style="faint" if held_out else "measured")}
    if held_out:
        best["on held-out targets"] = curve("held_out_best_retention", colour=1)
    yield Panel("best retention r*", {**best, "predicted: -rho/(1 - rho)": predicted})


def format_measurement(point: Point, key: str) -> str:
    """A measurement with its standard error, as text."""
    return format_number(point.get(key), point.get(f"{key}_stderr"))


def _rows(last: Point, *, exact: bool) -> list[tuple[str, ...]]:
    """The table: the last evaluation beside its predictions."""
    rows: list[tuple[str, ...]] = [
        ("at the end", "measured", "predicted"),
        ("share of the gap left", format_measurement(last, "remaining"), format_number(last["remaining_at_optimum"])),
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
    rho = _trace(points, "remaining_at_optimum", style="predicted")
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
