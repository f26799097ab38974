"""The part of a run's report that the monitor ``memorisation`` adds."""

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from gftkit.recording import pictures
from gftkit.recording.html import Section, format_number
from gftkit.recording.pictures import Panel, Trace

Line = Mapping[str, Any]

NAMES = {
    "distance_ratio": "distance ratio",
    "energy": "energy distance to the training data",
    "held_out_ratio": "distance to training data over that to held-out data",
    "position": "position between pretrained and memorising drift",
}
"""Titles of measurements in the table."""


def build_sections(lines: Sequence[Line]) -> list[Section]:
    """The gauges beside the temperature; nothing for fewer than two evaluations."""
    if len(lines) < 2:
        return []
    last = lines[-1]
    reason = lines[0].get("oracle", "it was not measured")
    text = (
        "Does the run reproduce its training data? Distance ratio: the distance of samples of the EMA weights to the "
        "nearest training data, over the distance of these to each other; about 1 for samples of the data's own law, "
        "0 for copies. Energy distance: between samples and training data, the datum nearest to each sample left out; "
        "a run that still lowers it improves, however near its samples lie. Position: the place of the drift between "
        "the pretrained one (0) and the one that reproduces the training set (1); at a temperature's optimum it is "
        "1 - rho. Bars are two standard errors."
        + ("" if "position" in last else f" The position is not known here: {reason}.")
    )
    rows: list[tuple[str, ...]] = [("", "at the start", "at the end")]
    for key, name in NAMES.items():
        if last.get(key) is not None:
            rows.append((name, *(format_number(line.get(key), line.get(f"{key}_stderr")) for line in (lines[0], last))))
    return [Section("Memorisation", text, rows, pictures.panel_picture(list(_panels(lines))))]


def _panels(lines: Sequence[Line]) -> Iterator[Panel]:
    steps = [line["step"] for line in lines]

    def trace(key: str, **options: Any) -> Trace:
        return Trace(steps, [line.get(key) for line in lines], [line.get(f"{key}_stderr") for line in lines], **options)

    ratios = {"to each other": trace("distance_ratio"), "the data's own law: 1": _flat(steps, 1.0)}
    if lines[-1].get("held_out_ratio") is not None:
        ratios["to held-out data"] = trace("held_out_ratio", colour=1)
    yield Panel("distance to training data, over", ratios)
    if lines[-1].get("energy") is not None:
        yield Panel("energy distance", {"to training data": trace("energy")})
    if lines[-1].get("position") is not None:
        optimum = [1 - line["retention"] for line in lines]
        yield Panel(
            "position",
            {"measured": trace("position"), "the optimum's: 1 - rho": Trace(steps, optimum, style="predicted")},
        )
    yield Panel("temperature", {"temperature": Trace(steps, [line["temperature"] for line in lines], colour=2)})


def _flat(steps: Sequence[int], value: float) -> Trace:
    return Trace(steps, [value] * len(steps), style="predicted")
