"""Rows of a study's results: of each run, the threshold, and the time to it."""

import json

import pytest
from support.studies import value

from gftkit.api import Run
from gftkit.study.plan import Cell, plan
from gftkit.study.rows import rows_of, threshold
from gftkit.study.running import finished, run_study


def test_rows_are_those_of_each_run(done):
    made, outcome = done
    assert set(outcome.rows) == set(made.cells)
    assert not outcome.failed
    cell = Cell("exponential", "independent", 20, 1)
    run = Run.open(made.folder(cell))
    assert value(outcome.rows, cell, "energy") == run.history()[-1]["energy"]
    assert value(outcome.rows, cell, "steps") == 12
    averaged = [(line["energy"], line["step"]) for line in run.history() if line.get("weights") == "ema"]
    start = run.history()[0]
    best = min([*averaged, (start["energy"], 0)])
    assert (value(outcome.rows, cell, "energy_best"), value(outcome.rows, cell, "energy_best_step")) == best
    assert best[0] <= value(outcome.rows, cell, "energy")
    assert -1 <= value(outcome.rows, cell, "spearman") <= 1
    assert value(outcome.rows, cell, "instant_variance") is None  # of three evaluations
    written = json.loads((made.out / "results.json").read_text())
    timed = "seconds", "seconds_to_threshold"  # another test runs a cell again
    held = [row for cell in made.cells for row in outcome.rows[cell]]
    assert [row for row in written if row["metric"] not in timed] == [r for r in held if r["metric"] not in timed]
    assert set(written[0]) == {"method", "coupling", "size", "seed", "metric", "value"}


class Told:
    """A run with a curve of its metric on raw weights."""

    def __init__(self, *values):
        self.values = values

    def history(self):
        return [
            {"step": 10 * k, "kind": "evaluation", "weights": "raw", "energy": value}
            for k, value in enumerate(self.values)
        ]


def test_the_threshold_is_nine_tenths_of_the_baselines_way():
    assert threshold(Told(11.0, 5.0, 3.0, 1.0, 0.0, 1.0, 2.0, 1.0), "energy") == pytest.approx(2.0)
    assert threshold(Told(11.0, 1.0, 1.0, 1.0, 1.0), "energy") is None  # too few to tell its end
    assert threshold(Told(1.0, 1.0, 1.0, 1.0, 2.0, 3.0), "energy") is None  # it never fell


def test_runs_are_timed_to_the_threshold_of_their_baseline(done):
    made, _ = done
    cell = Cell("exponential", "independent", 20, 0)
    run = Run.open(made.folder(cell))
    values = [line["energy"] for line in run.history() if line.get("weights") == "raw"]
    at = {row["metric"]: row["value"] for row in rows_of(cell, run, "energy", level=max(values[1:]))}
    assert at["steps_to_threshold"] == 4  # the first of them, whatever its value
    assert at["seconds_to_threshold"] > 0
    never = {row["metric"]: row["value"] for row in rows_of(cell, run, "energy", level=min(values) - 1)}
    assert (never["steps_to_threshold"], never["seconds_to_threshold"]) == (None, None)
    assert "steps_to_threshold" not in {row["metric"] for row in rows_of(cell, run, "energy")}


def test_a_baseline_that_ends_later_times_the_others(write_study, tmp_path, registry):
    longer = {
        "methods": {
            "plain": {"set": {"evaluate.every": 2, "train.learning_rate": 0.02}},
            "gentle": {"method": "exponential"},
        }
    }
    group = {"methods": ["gentle", "plain"], "sizes": [20], "seeds": [0]}
    made = plan(write_study(longer, groups=[group]), tmp_path / "out", registry)
    outcome = run_study(made, {}, made.cells, registry)
    assert [cell.method for cell in made.cells] == ["gentle", "plain"]
    measured = {cell.method: {row["metric"] for row in rows} for cell, rows in outcome.rows.items()}
    assert threshold(Run.open(made.folder(made.cells[1])), "energy") is not None
    assert "steps_to_threshold" in measured["gentle"] & measured["plain"]
    assert finished(made, registry) == outcome.rows
