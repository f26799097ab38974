"""The small study, written and run."""

import pytest
import yaml
from support.studies import STUDY

from gftkit.study.plan import plan
from gftkit.study.reporting import write_tables
from gftkit.study.running import run_study


@pytest.fixture
def write_study(tmp_path):
    """Writes a study with changes, and plans it."""

    def write(changes=None, **more):
        file = tmp_path / "study.yaml"
        file.write_text(yaml.safe_dump({**STUDY, **(changes or {}), **more}))
        return file

    return write


@pytest.fixture(scope="session")
def done(tmp_path_factory, registry):
    """The study, run in this process: its plan and outcome."""
    folder = tmp_path_factory.mktemp("study")
    (folder / "study.yaml").write_text(yaml.safe_dump(STUDY))
    made = plan(folder / "study.yaml", folder / "out", registry)
    outcome = run_study(made, {}, made.cells, registry)
    write_tables(made, outcome.rows, outcome.failed)
    return made, outcome
