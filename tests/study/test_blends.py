"""Methods that train nothing: the runs of another one, measured at a retention."""

import pytest
from support.studies import BASE, value

from gftkit.api import Run
from gftkit.kernel.errors import RunError
from gftkit.study.plan import Cell, plan
from gftkit.study.reporting import write_tables
from gftkit.study.running import finished, run_study

METHODS = {"same": {"method": "plain", "retention": 0}, "guided": {"method": "plain", "retention": -0.5}}


@pytest.fixture
def made(write_study, registry, tmp_path):
    groups = [{"methods": ["guided", "plain", "same"], "sizes": [20], "seeds": [0, 1]}]
    base = {**BASE, "evaluate": {**BASE["evaluate"], "ends": ["path-length"]}}
    return plan(write_study(groups=groups, methods=METHODS, base=base), tmp_path / "out", registry)


def test_a_blend_measures_the_run_of_its_method(made, registry):
    done = run_study(made, {}, made.cells, registry)
    assert not done.failed
    assert set(done.rows) == set(made.cells)
    plain, same, guided = (Cell(name, "independent", 20, 1) for name in ("plain", "same", "guided"))
    for metric in ("energy", "path_length"):
        assert value(done.rows, same, metric) == value(done.rows, plain, metric)  # at 0: the run's own numbers
        assert value(done.rows, guided, metric) != value(done.rows, plain, metric)
    wanted = Run.open(made.folder(plain), registry).evaluate(retention=-0.5)
    assert value(done.rows, guided, "energy") == wanted["energy"]
    assert {row["metric"] for row in done.rows[guided]} == {"energy", "path_length"}  # it has no curve
    assert finished(made, registry) == done.rows
    write_tables(made, done.rows, done.failed)
    assert "guided" in (made.out / "table.md").read_text()


def test_measurements_at_another_retention_or_of_other_weights_are_refused(made, registry, write_study):
    run_study(made, {}, made.cells, registry)
    groups = [{"methods": ["plain", "guided"], "sizes": [20], "seeds": [0, 1]}]
    base = {**BASE, "evaluate": {**BASE["evaluate"], "ends": ["path-length"]}}
    methods = {"guided": {"method": "plain", "retention": -0.25}}
    changed = plan(write_study(groups=groups, methods=methods, base=base), made.out, registry)
    with pytest.raises(RunError, match=r"was measured at the retention -0.5, and the study's file has -0.25 now"):
        finished(changed, registry)
    one, other = (made.folder(Cell("plain", "independent", 20, seed)) / "model.safetensors" for seed in (0, 1))
    one.write_bytes(other.read_bytes())
    with pytest.raises(RunError, match=r"was measured on other weights than"):
        finished(made, registry)


@pytest.mark.parametrize(
    ("method", "message"),
    [
        ({"method": "plain", "retention": 1.5}, "methods.guided: retention: wanted a finite number below 1"),
        ({"method": "plain", "retention": "stpe"}, "methods.guided: unknown profile"),
        ({"method": "plain", "retention": -0.1, "set": {"train.steps": 3}}, "`set` changes a training"),
        ({"method": "plian", "retention": -0.1}, "unknown method at methods.guided: 'plian'. Did you mean 'plain'?"),
        ({"retention": -0.1}, "unknown method at methods.guided"),
        ({"method": "scratch", "retention": -0.1}, "'scratch' has no anchor"),
        ({"method": "exponential", "retention": -0.1}, "'guided' samples the runs of 'exponential', and"),
    ],
)
def test_a_blend_that_cannot_be_is_refused(refused, write_study, tmp_path, method, message):
    groups = [{"methods": ["plain", "guided"], "sizes": [20], "seeds": [0]}]
    file = write_study(groups=groups, methods={"guided": method})
    assert message in refused("compare", file, "--out", tmp_path / "out")


def test_a_blend_cannot_be_the_baseline(refused, write_study, tmp_path):
    groups = [{"methods": ["plain", "guided"], "sizes": [20], "seeds": [0]}]
    methods = {"guided": {"method": "plain", "retention": -0.1}}
    file = write_study(groups=groups, methods=methods, baseline="guided")
    assert "baseline: 'guided' trains nothing" in refused("compare", file, "--out", tmp_path / "out")


def test_a_flow_is_pretrained_for_each_seed_where_asked(write_study, registry, tmp_path):
    groups = [{"methods": ["plain", "scratch", "replay"], "sizes": [20], "seeds": [0, 1]}]
    made = plan(write_study(groups=groups, pretrain_per_seed=True), tmp_path / "out", registry)
    run_study(made, {}, [cell for cell in made.cells if cell.seed == 1], registry)
    place = tmp_path / "out/pretrained/independent"
    assert [path.name for path in place.iterdir()] == ["1"]  # of the cells that were asked for
    cell = Cell("plain", "independent", 20, 1)
    assert made.config(cell).pretrained == Run.open(made.folder(cell)).config.pretrained == place / "1"
    assert made.config(Cell("replay", "independent", 20, 1)).data["run"] == place / "1"
    assert Run.open(place / "1").config.seed == 1
    run_study(made, finished(made, registry), made.cells, registry)
    one, other = ((place / seed / "model.safetensors").read_bytes() for seed in "01")
    assert one != other


def test_a_finished_run_cannot_be_pretrained_for_each_seed(refused, write_study, pretrained, tmp_path):
    file = write_study(pretrain=None, pretrained=str(pretrained), pretrain_per_seed=True)
    told = refused("compare", file, "--out", tmp_path / "out")
    assert "pretrain_per_seed: `pretrained` is one finished run" in told


def test_a_method_may_set_another_coupling(write_study, registry, tmp_path):
    groups = [{"methods": ["plain", "whole"], "couplings": ["independent"], "sizes": [20], "seeds": [0]}]
    methods = {"whole": {"method": "plain", "set": {"coupling": {"name": "semidiscrete"}}}}
    made = plan(write_study(groups=groups, methods=methods), tmp_path / "out", registry)
    plain, whole = (made.config(cell) for cell in made.cells)
    assert (plain.coupling["name"], whole.coupling["name"]) == ("independent", "semidiscrete")
    assert plain.pretrained == whole.pretrained
    assert any("T10" in warning for warning in made.warnings)
