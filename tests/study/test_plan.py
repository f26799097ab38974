"""Plans of studies: which runs come of a file, and what is refused before anything runs."""

import numpy as np
import pytest
from support.paths import ROOT
from support.studies import BASE, PRETRAIN, STUDY

import gftkit
from gftkit.api import Run
from gftkit.cli.sections import section_keys
from gftkit.kernel.errors import ConfigError
from gftkit.study import schema
from gftkit.study.dry_run import try_out
from gftkit.study.plan import Cell, plan


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
    ("name", "cells"),
    [
        ("digits-labels", 40),
        ("digits-past-zero", 365),
        ("fields", 60),
        ("fields-close", 40),
        ("gaussians-to-moons", 239),
        ("mnist-classes", 12),
        ("moons-past-zero", 80),
        ("mnist-to-digits", 279),
        ("signals", 60),
    ],
)
def test_the_studies_that_come_with_gftkit_can_be_planned(registry, tmp_path, name, cells):
    file = ROOT / f"recipes/studies/{name}.yaml"
    made = plan(file, tmp_path, registry)
    assert len(made.cells) == cells
    assert all("T10" in warning for warning in made.warnings)  # semidiscrete fine-tunes of another coupling's flow
    assert bool(made.warnings) == ("semidiscrete" in made.methods)
    assert {"plain", "exponential"} <= set(made.methods)


def test_a_study_pretrains_once_for_each_coupling(done, write_study, registry, tmp_path):
    made, _ = done
    starts = {place: Run.open(start.folder).config.coupling["name"] for place, start in made.starts.items()}
    assert starts == {place: place[0] for place in starts}
    assert {coupling for coupling, _ in starts} == {"independent", "optimal-transport"}
    assert len({start.folder for start in made.starts.values()}) == 2
    one = plan(write_study(pretrain={**PRETRAIN, "coupling": "optimal-transport"}), tmp_path / "out", registry)
    assert {start.folder for start in one.starts.values()} == {tmp_path / "out/pretrained"}
    assert {cell.coupling for cell in one.cells} == {
        "optimal-transport"
    }  # that of the pretrained run, where none is named


def test_a_study_may_start_from_a_finished_run(write_study, registry, pretrained, tmp_path):
    made = plan(write_study(pretrain=None, pretrained=str(pretrained)), tmp_path / "out", registry)
    assert made.config(made.cells[0]).pretrained == pretrained.resolve()
    assert made.starts["independent", 0].config.drift["width"] == 16
    assert any("T10" in warning for warning in made.warnings)  # the cell with another coupling than the run's


def test_planning_a_study_writes_nothing(write_study, registry, tmp_path):
    try_out(plan(write_study(), tmp_path / "out", registry), registry)
    assert not (tmp_path / "out").exists()


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
        ({"base": {**BASE, "data": {"name": "digits"}, "evaluate": {}}}, "wanted samples of shape (2,)"),
        ({"base": {**BASE, "data": {"name": "gaussian-mixture", "classes": [9]}}}, "groups: 30 samples of base.data: "),
        ({"base": {**BASE, "evaluate": {"count": 5, "metrics": ["energy"]}}}, "evaluate.metrics[0] (Energy)"),
    ],
)
def test_a_study_that_cannot_be_run_is_refused_before_anything_is(refused, write_study, tmp_path, changes, message):
    told = refused("compare", write_study(changes), "--out", "out", "--workers", "1")
    assert message in told
    assert not (tmp_path / "out").exists()


def test_a_study_of_more_samples_than_there_are_is_refused(refused, write_study, tmp_path):
    np.save(tmp_path / "few.npy", np.zeros((25, 2), "f4"))
    base = {**BASE, "data": {"name": "arrays", "file": "few.npy"}}
    message = refused("compare", write_study(base=base), "--out", "out", "--workers", "1")
    assert "groups: 30 samples of base.data" in message
    assert "30 samples wanted, 25 available" in message


def test_missing_files_and_folders_of_a_study_are_named(refused, write_study, tmp_path):
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


def test_a_wrong_setting_is_named_with_its_method(write_study, registry, tmp_path):
    methods = {"twice": {"method": "plain", "set": {"train.stpes": 3}}}
    with pytest.raises(gftkit.GftkitError, match=r"stpes.*Did you mean 'steps'"):
        plan(write_study(methods=methods), tmp_path, registry)
    methods = {"twice": {"method": "plain", "set": {"train.steps": 0}}}
    with pytest.raises(ConfigError, match=r"method 'twice': train.steps: wanted int, > 0"):
        plan(write_study(methods=methods), tmp_path, registry)


def test_the_keys_of_a_study_are_those_that_it_takes():
    assert set(section_keys("study")) == set(schema.Study.__dataclass_fields__)
