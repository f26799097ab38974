"""Running a study: seeds that are shared, finished cells that are kept, and the command."""

import json

import pytest
import torch
import yaml

from gftkit.data.samples import Samples
from gftkit.experiment.build import build
from gftkit.kernel.errors import RunError
from gftkit.study.plan import Cell, plan
from gftkit.study.running import finished, run_study

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


def test_the_study_command_lists_runs_reports_and_names_failures(gft, write_study, tmp_path):
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
