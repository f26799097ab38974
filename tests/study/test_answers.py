"""What a study says to its questions, by intervals; and that the evidence in docs is what its rows say."""

import json

import pytest
import yaml
from support.paths import ROOT

from gftkit.study.answers import QUESTIONS, answer, answers
from gftkit.study.reporting import in_markdown, result_sections
from gftkit.study.statistics import Difference, differences, interval

STUDIES = sorted(path.parent for path in (ROOT / "docs/evidence").glob("*/results.json"))


def rows(metric, **of):
    """Rows of one metric: values by method, one for each seed."""
    return [
        {"method": method, "coupling": "independent", "size": 50, "seed": seed, "metric": metric, "value": value}
        for method, values in of.items()
        for seed, value in enumerate(values)
    ]


@pytest.mark.parametrize(
    ("values", "higher", "said"),
    [
        ([-1.0, -1.1, -0.9], False, "better"),
        ([-1.0, -1.1, -0.9], True, "worse"),
        ([1.0, 1.1, 0.9], True, "better"),
        ([1.0, 1.1, 0.9], False, "worse"),
        ([1.0, -1.0, 0.3], False, "open"),
        ([-1.0], False, "open"),  # one seed tells nothing
    ],
)
def test_an_answer_is_of_a_significant_difference(values, higher, said):
    (found,) = differences(rows("m", plain=[0.0] * len(values), a=values), "plain")
    assert answer(found, higher=higher) == said


def test_a_difference_that_is_surely_next_to_nothing_is_no_answer():
    small = [-0.009, -0.0091, -0.0092]
    found = Difference("a", "independent", 50, "m", interval(small), interval([value / 10 for value in small]), p=0.01)
    assert answer(found, higher=False) == "open"
    found = Difference("a", "independent", 50, "m", interval(small), interval([value / 5 for value in small]), p=0.01)
    assert answer(found, higher=False) == "better"


def test_questions_count_better_worse_and_open():
    made = [
        *rows("frechet", plain=[10.0, 11.0, 12.0], slow=[8.0, 9.1, 9.9], wild=[20.0, 2.0, 12.0]),
        *rows("vendi", plain=[5.0, 5.1, 5.2], slow=[4.0, 4.2, 4.2], wild=[9.0, 5.1, 1.0]),
        *rows("frechet_4_steps", plain=[10.0, 11.0, 12.0], slow=[12.0, 13.1, 13.9], wild=[20.0, 2.0, 12.0]),
    ]
    found = dict(answers(made, "frechet", "plain"))
    assert list(found) == ["Is inference cheaper?", "Is quality kept?", "Is diversity kept?"]
    assert found["Is quality kept?"] == [
        ["better, worse, open", "frechet"], ["slow", "1, 0, 0"], ["wild", "0, 0, 1"]
    ]  # fmt: skip
    assert found["Is diversity kept?"][1] == ["slow", "0, 1, 0"]
    assert found["Is inference cheaper?"][1] == ["slow", "0, 1, 0"]


def test_without_pairs_nothing_is_said():
    assert answers(rows("frechet", plain=[10.0], slow=[8.0]), "frechet", "plain") == []


def test_each_question_has_metrics_of_its_own():
    names = ["frechet", "frechet_4_steps", "energy", "spearman", "vendi", "path_length", "steps_to_threshold", "steps"]
    asked = {name: [q.text for q in QUESTIONS if q.matches(name, "frechet")] for name in names}
    assert {name for name, questions in asked.items() if len(questions) != 1} == {"steps"}
    assert not any(q.matches("energy_4_steps", "frechet") for q in QUESTIONS)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_the_tables_in_docs_are_those_of_the_rows(study):
    held = json.loads((study / "results.json").read_text())
    described = yaml.safe_load((ROOT / f"recipes/studies/{study.name}.yaml").read_text())
    text = (study / "table.md").read_text()
    for part in result_sections(held, described["metric"], described.get("baseline", "plain")):
        assert in_markdown(part) in text, part.title
    held[0]["value"] += 1  # the negative control
    changed = result_sections(held, described["metric"], described.get("baseline", "plain"))
    assert not all(in_markdown(part) in text for part in changed)


@pytest.mark.parametrize("study", STUDIES, ids=lambda study: study.name)
def test_every_row_is_of_a_cell_of_its_study(study):
    groups = yaml.safe_load((ROOT / f"recipes/studies/{study.name}.yaml").read_text())["groups"]
    for row in json.loads((study / "results.json").read_text()):
        assert set(row) == {"method", "coupling", "size", "seed", "metric", "value"}
        assert any(
            row["method"] in group["methods"] and row["size"] in group["sizes"] and row["seed"] in group["seeds"]
            for group in groups
        )
