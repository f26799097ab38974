"""Studies: what their files may say, which runs come of it, what is kept, and what is reported."""

import json
import shutil
import sys
from dataclasses import replace

import numpy as np
import pytest
import torch
import yaml
from support.paths import ROOT

import gftkit
from gftkit.api import Run
from gftkit.cli.sections import section_keys
from gftkit.data.samples import Samples
from gftkit.experiment.build import build
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.study import schema
from gftkit.study.dry_run import try_out
from gftkit.study.plan import Cell, plan
from gftkit.study.reporting import study_summary, write_tables
from gftkit.study.rows import rows_of, threshold
from gftkit.study.running import finished, run_study
from gftkit.study.statistics import differences

BASE = {
    "data": {"name": "two-moons"},
    "train": {"steps": 12, "batch_size": 8, "checkpoint_every": 12},
    "evaluate": {
        "data": {"name": "two-moons", "count": 30, "seed": 7},
        "every": 4,
        "averaged": True,
        "count": 30,
        "solver": {"name": "euler", "steps": 2},
    },
}
PRETRAIN = {
    "drift": {"name": "mlp", "width": 8, "depth": 1},
    "data": {"name": "gaussian-mixture"},
    "train": {"steps": 4, "batch_size": 8, "checkpoint_every": 4},
    "evaluate": {"count": 20, "solver": {"name": "euler", "steps": 2}},
}
STUDY = {
    "metric": "energy",
    "pretrain": PRETRAIN,
    "base": BASE,
    "groups": [
        {"methods": ["plain", "exponential"], "sizes": [20], "seeds": [0, 1]},
        {"methods": ["scratch", "plain", "l2-sp", "replay", "twice"], "sizes": [20], "seeds": [0]},
        {"methods": ["plain"], "couplings": ["optimal-transport"], "sizes": [30], "seeds": [0]},
    ],
    "methods": {"twice": {"method": "plain", "set": {"train.steps": 24}}},
}


@pytest.fixture
def write_study(tmp_path):
    """Writes a study with changes, and plans it."""

    def write(changes=None, **more):
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**STUDY, **(changes or {}), **more}))
        return file

    return write


@pytest.fixture(scope="module")
def done(tmp_path_factory, registry):
    """The study, run in this process: its plan and outcome."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    made = plan(folder / "study.yaml", folder / "out", registry)
    outcome = run_study(made, {}, made.cells, registry)
    write_tables(made, outcome.rows, outcome.failed)
    return made, outcome


def value(rows, cell, metric):
    (found,) = (row["value"] for row in rows[cell] if row["metric"] == metric)
    return found


# --- the plan ---------------------------------------------------------------------------------------------------------


def test_cells_that_coincide_count_once_and_have_folders_of_their_own(done):
    made, _ = done
    assert [cell.name for cell in made.cells] == [
        "plain/independent/20/0",
        "exponential/independent/20/0",
        "plain/independent/20/1",
        "exponential/independent/20/1",
        "scratch/independent/20/0",
        "l2-sp/independent/20/0",
        "replay/independent/20/0",
        "twice/independent/20/0",
        "plain/optimal-transport/30/0",
    ]
    assert all(made.folder(cell) == made.out / "cells" / cell.name for cell in made.cells)


def test_methods_are_changes_of_one_configuration(done):
    made, _ = done

    def of(method):
        return made.config(Cell(method, "independent", 20, 0)).to_dict()

    plain = of("plain")
    assert plain["schedule"]["name"] == "zero"
    assert plain["seed"] == plain["data"]["seed"] == 0
    assert plain["data"]["count"] == 20
    differs = {
        name: {key for key in {*plain, *of(name)} if plain.get(key) != of(name).get(key)}
        for name in ("exponential", "l2-sp", "replay", "twice", "scratch")
    }
    assert differs == {
        "exponential": {"schedule"},
        "l2-sp": {"objective"},
        "replay": {"data"},
        "twice": {"train"},
        "scratch": {"schedule", "pretrained", "anchor"},
    }
    assert of("l2-sp")["objective"]["l2_sp"] > 0
    assert of("replay")["data"]["target"] == plain["data"]
    assert of("twice")["train"]["steps"] == 24
    assert of("scratch")["drift"] == plain["drift"]


@pytest.mark.parametrize("schedule", ["adaptive", "constant", "exponential"])
def test_every_schedule_is_a_method_also_by_lora(write_study, registry, tmp_path, schedule):
    groups = [{"methods": ["plain", schedule, f"lora-{schedule}", "lora-plain"], "sizes": [20], "seeds": [0]}]
    made = plan(write_study(groups=groups), tmp_path / "out", registry)
    configs = {cell.method: made.config(cell) for cell in made.cells}
    assert configs[schedule].schedule["name"] == configs[f"lora-{schedule}"].schedule["name"] == schedule
    assert configs["lora-plain"].schedule["name"] == "zero"
    assert [name for name in configs if configs[name].adapters is not None] == [f"lora-{schedule}", "lora-plain"]


def test_plain_stop_is_plain_ended_by_a_rule(write_study, registry, tmp_path):
    groups = [{"methods": ["plain", "plain-stop"], "sizes": [20], "seeds": [0]}]
    made = plan(write_study(groups=groups), tmp_path / "out", registry)
    plain, stopped = (made.config(cell).to_dict() for cell in made.cells)
    assert stopped.pop("stop")["name"] == "copying"
    assert {**stopped, "monitors": []} == plain


@pytest.mark.parametrize(
    ("name", "cells"), [("gaussians-to-moons", 239), ("mnist-to-digits", 279), ("mnist-classes", 9)]
)
def test_the_studies_that_come_with_gftkit_can_be_planned(registry, tmp_path, name, cells):
    file = ROOT / f"recipes/studies/{name}.yaml"
    made = plan(file, tmp_path, registry)
    assert len(made.cells) == cells
    assert not made.warnings
    assert {"plain", "exponential", "adaptive"} <= set(made.methods)


def test_one_is_pretrained_for_each_coupling_or_the_one_that_is_named(done, write_study, registry, tmp_path):
    made, _ = done
    starts = {name: Run.open(start.folder).config.coupling["name"] for name, start in made.starts.items()}
    assert starts == {"independent": "independent", "optimal-transport": "optimal-transport"}
    one = plan(write_study(pretrain={**PRETRAIN, "coupling": "optimal-transport"}), tmp_path / "out", registry)
    assert {start.folder for start in one.starts.values()} == {tmp_path / "out/pretrained"}
    assert {cell.coupling for cell in one.cells} == {
        "optimal-transport"
    }  # that of the pretrained run, where none is named


def test_a_study_may_start_from_a_finished_run(write_study, registry, pretrained, tmp_path):
    made = plan(write_study(pretrain=None, pretrained=str(pretrained)), tmp_path / "out", registry)
    assert made.config(made.cells[0]).pretrained == pretrained.resolve()
    assert made.starts["independent"].config.drift["width"] == 16
    assert any("T10" in warning for warning in made.warnings)  # the cell with another coupling than the run's


def test_nothing_is_written_before_it_runs(write_study, registry, tmp_path):
    try_out(plan(write_study(), tmp_path / "out", registry), registry)
    assert not (tmp_path / "out").exists()


# --- pairs ------------------------------------------------------------------------------------------------------------


def test_the_same_seed_means_the_same_samples_batches_and_noise(done, registry):
    made, _ = done

    def pairs(method, seed):
        return build(made.config(Cell(method, "independent", 20, seed)), registry).matching.pairs.at(3)

    one, other = pairs("plain", 0), pairs("exponential", 0)
    assert torch.equal(one.x1, other.x1)
    assert torch.equal(one.x0, other.x0)
    scratch = pairs("scratch", 0)
    assert torch.equal(one.x1, scratch.x1)
    unpaired = pairs("exponential", 1)
    assert not torch.equal(one.x1, unpaired.x1)
    assert not torch.equal(one.x0, unpaired.x0)
    target = Samples(
        registry.build("dataset", made.config(Cell("replay", "independent", 20, 0)).data["target"]), "data"
    )
    assert torch.equal(target.at(torch.arange(20)).x1.sort(0).values, _all(made, registry).sort(0).values)


def _all(made, registry):
    data = registry.build("dataset", made.config(Cell("plain", "independent", 20, 0)).data)
    return Samples(data, "data").at(torch.arange(20)).x1


# --- results ----------------------------------------------------------------------------------------------------------


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


def test_tables_and_report_say_what_the_rows_say(done, with_pictures, tmp_path):
    made, outcome = done
    write_tables(made, outcome.rows, {})
    text = (made.out / "table.md").read_text()
    (found,) = (
        one
        for one in differences([row for of in outcome.rows.values() for row in of], "plain")
        if one.metric == "energy" and one.method == "exponential"
    )
    assert found.over.count == 2
    assert f"{found.over.mean:+.3g} [{found.over.low:.3g}, {found.over.high:.3g}]" in text
    report = (made.out / "report.html").read_text()
    assert "energy minus that of plain, independent" in report
    assert report.count("data:image/png;base64,") == 3
    assert {path.name for path in made.out.glob("*.png")} == {"sizes.png", "differences.png", "curves.png"}
    assert "http" not in report.replace("http-equiv", "")  # self-contained


def test_without_matplotlib_a_study_has_its_tables(done, monkeypatch, tmp_path):
    whole, outcome = done
    made = replace(whole, out=shutil.copytree(whole.out, tmp_path / "out"))
    for written in [made.out / "report.html", made.out / "table.md", *made.out.glob("*.png")]:
        written.unlink()
    assert study_summary(made, outcome.rows, {})["report"] == str(made.out / "report.html")
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    write_tables(made, outcome.rows, {})
    assert {path.name for path in made.out.glob("*.*")} >= {"results.json", "table.md"}
    assert not [*made.out.glob("*.html"), *made.out.glob("*.png")]
    assert study_summary(made, outcome.rows, {})["report"] == str(made.out / "table.md")


def test_finished_cells_are_kept_and_the_others_run(done, registry):
    made, outcome = done
    gone = Cell("plain", "independent", 20, 1)
    (made.folder(gone) / "model.safetensors").unlink()
    kept = {cell: (made.folder(cell) / "model.safetensors").stat().st_mtime_ns for cell in made.cells if cell != gone}
    rows = finished(made, registry)
    assert set(rows) == set(kept)
    again = run_study(made, rows, made.cells, registry)
    assert {cell: (made.folder(cell) / "model.safetensors").stat().st_mtime_ns for cell in kept} == kept
    one, other = ({row["metric"]: row["value"] for row in of.rows[gone]} for of in (outcome, again))
    assert {**one, "seconds": 0} == {**other, "seconds": 0}


def test_runs_of_another_study_are_refused(done, registry):
    made, _ = done
    changed = yaml.safe_load(made.file.read_text())
    changed["base"]["train"]["batch_size"] = 4
    other = made.file.with_name("other.yaml")
    other.write_text(yaml.safe_dump(changed))
    with pytest.raises(RunError, match=r"other settings than the study.*\n.*plain/independent/20/0: train"):
        finished(plan(other, made.out, registry), registry)


# --- the command ------------------------------------------------------------------------------------------------------


def test_the_command_lists_runs_reports_and_tells_of_what_failed(gft, write_study, tmp_path):
    groups = [{"methods": ["plain", "hot"], "sizes": [20], "seeds": [0]}]
    methods = {"hot": {"method": "plain", "set": {"train.learning_rate": 1e30, "train.clip": None}}}
    file = write_study(groups=groups, methods=methods)
    listed = gft("compare", file, "--out", "out", "--dry-run", "--json")
    assert listed.code == 0, listed.err
    assert json.loads(listed.out)["waiting"] == ["plain/independent/20/0", "hot/independent/20/0"]
    assert not (tmp_path / "out").exists()
    assert "plain/independent/20/0" in gft("compare", file, "--out", "out", "--dry-run").out
    alone = gft("compare", file, "--out", "out", "--workers", 1, "--only", "plain/*", "--json")
    assert alone.code == 0, alone.err
    assert json.loads(alone.out)["finished"] == 1
    both = gft("compare", file, "--out", "out", "--workers", 1)
    assert both.code == 1
    assert "1 of 2 runs failed:\n  hot/independent/20/0: the loss or its gradient is not finite" in both.err
    assert "Failed" in (tmp_path / "out/report.html").read_text()
    assert {row["method"] for row in json.loads((tmp_path / "out/results.json").read_text())} == {"plain"}
    (tmp_path / "out/results.json").unlink()
    report = gft("compare", file, "--out", "out", "--report-only")
    assert report.code == 0, report.err
    assert "1 of 2 runs" in report.out
    assert (tmp_path / "out/results.json").is_file()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"metric": "frechet"}, "unknown metric at metric: 'frechet'. Known: energy."),
        ({"baseline": "plan"}, "unknown method at baseline: 'plan'. Did you mean 'plain'?"),
        ({"pretrained": "runs/none"}, "one of the two"),
        ({"pretrain": None}, "wanted `pretrained: RUN`"),
        ({"pretrain": None, "pretrained": "nowhere"}, "is no run folder"),
        ({"gropus": []}, "unknown option of the study: 'gropus'. Did you mean 'groups'?"),
        ({"groups": []}, "groups: wanted"),
        ({"groups": [{"methods": ["plain"], "sizes": [20]}]}, "groups[0]: seeds is missing: "),
        ({"groups": [{"methods": ["plian"], "sizes": [20], "seeds": [0]}]}, "Did you mean 'plain'?"),
        ({"groups": [{"methods": ["plain"], "sizes": [0], "seeds": [0]}]}, "groups[0].sizes: wanted"),
        ({"groups": [{"methods": ["plain"], "sizes": [20], "seeds": [1, 1]}]}, "groups[0].seeds: 1 occurs twice"),
        (
            {"groups": [{"methods": ["plain"], "sizes": [20], "seeds": [0], "couplings": ["optimal"]}]},
            "unknown coupling at groups[0].couplings: 'optimal'. Did you mean 'optimal-transport'?",
        ),
        ({"base": {**BASE, "seed": 1}}, "base: `seed` is set by the study, from `seeds`"),
        ({"base": {**BASE, "schedule": "zero"}}, "a schedule is a method"),
        ({"base": {**BASE, "data": {"name": "two-moons", "count": 5}}}, "base.data: `count` is set by the study"),
        ({"base": {key: held for key, held in BASE.items() if key != "data"}}, "base.data is missing"),
        ({"base": {**BASE, "trian": {}}}, "Did you mean 'train'?"),
        ({"base": {**BASE, "train": {"steps": "many"}}}, "train.steps: wanted int, > 0"),
        (
            {"methods": {"plain": {"method": "exponential"}}},
            "'plain' is a built-in method, and this one changes 'exponential'",
        ),
        ({"methods": {"mine": {"method": "plian"}}}, "unknown method at methods.mine: 'plian'"),
        ({"methods": {"a/b": {"method": "plain"}}}, "methods.a/b: wanted a name of letters"),
        ({"methods": {"mine": {"method": "plain", "set": {"data.count": 3}}}}, "from `sizes` of the groups"),
        ({"methods": {"mine": {"method": "plain", "set": {"coupling.name": "x"}}}}, "from `couplings` of the groups"),
        ({"base": {**BASE, "data": {"name": "digits"}, "evaluate": {}}}, "wanted samples of shape (2,)"),
        ({"base": {**BASE, "data": {"name": "gaussian-mixture", "classes": [9]}}}, "groups: 30 samples of base.data: "),
        ({"base": {**BASE, "evaluate": {"count": 5, "metrics": ["energy"]}}}, "evaluate.metrics[0] (Energy)"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_anything_is(refused, write_study, tmp_path, changes, message):
    told = refused("compare", write_study(changes), "--out", "out", "--workers", "1")
    assert message in told
    assert not (tmp_path / "out").exists()


def test_more_samples_than_there_are_are_refused(refused, write_study, tmp_path):
    np.save(tmp_path / "few.npy", np.zeros((25, 2), "f4"))
    base = {**BASE, "data": {"name": "arrays", "file": "few.npy"}}
    message = refused("compare", write_study(base=base), "--out", "out", "--workers", "1")
    assert "groups: 30 samples of base.data" in message
    assert "30 samples wanted, 25 available" in message


def test_files_and_folders_that_are_not_there_are_told(refused, write_study, tmp_path):
    assert "there is no such file" in refused("compare", "none.yaml")
    assert "no cell has such a name" in refused(
        "compare", write_study(), "--out", "out", "--only", "gft/*", "--dry-run"
    )
    assert "nothing to report" in refused("compare", write_study(), "--out", "out", "--report-only", code=1)


def test_methods_may_be_given_settings_under_their_own_names(write_study, registry, tmp_path):
    made = plan(
        write_study(methods={**STUDY["methods"], "l2-sp": {"set": {"objective.l2_sp": 3.0}}}), tmp_path, registry
    )
    assert made.config(Cell("l2-sp", "independent", 20, 0)).objective.l2_sp == 3.0


def test_a_wrong_setting_is_told_with_its_method(write_study, registry, tmp_path):
    methods = {"twice": {"method": "plain", "set": {"train.stpes": 3}}}
    with pytest.raises(gftkit.GftkitError, match=r"stpes.*Did you mean 'steps'"):
        plan(write_study(methods=methods), tmp_path, registry)
    methods = {"twice": {"method": "plain", "set": {"train.steps": 0}}}
    with pytest.raises(ConfigError, match=r"method 'twice': train.steps: wanted int, > 0"):
        plan(write_study(methods=methods), tmp_path, registry)


def test_the_keys_of_a_study_are_those_that_it_takes():
    assert set(section_keys("study")) == set(schema.Study.__dataclass_fields__)
