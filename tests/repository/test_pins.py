"""Versions that stand in several files: the tools of pre-commit, constraints.txt, and the matrix of public CI."""

import re
import subprocess
import sys
import tomllib

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.specifiers import SpecifierSet
from packaging.utils import canonicalize_name
from support.paths import ROOT

PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
WORKFLOW = yaml.safe_load((ROOT / ".github/workflows/ci.yml").read_text())


def pins(text):
    """The lines NAME==VERSION of a file, by name."""
    lines = [line.split("==") for line in text.splitlines() if "==" in line and not line.startswith("#")]
    return {canonicalize_name(name): version for name, version in lines}


def deviations(config, constraints):
    """What hooks of pre-commit install in another version than the constraints', or in none."""
    return [
        f"{hook['id']}: {requirement}"
        for repository in config["repos"]
        for hook in repository["hooks"]
        for requirement in hook.get("additional_dependencies", [])
        if not re.fullmatch(r"[\w-]+==[\w.]+", requirement)
        or constraints.get(canonicalize_name(requirement.split("==")[0])) != requirement.split("==")[1]
    ]


def test_hooks_have_the_versions_of_the_constraints():
    config = yaml.safe_load((ROOT / ".pre-commit-config.yaml").read_text())
    constraints = pins((ROOT / "constraints.txt").read_text())
    assert {repository["repo"] for repository in config["repos"]} == {"local"}  # no other repository is fetched
    hooks = [hook for repository in config["repos"] for hook in repository["hooks"]]
    assert {hook["id"] for hook in hooks if "additional_dependencies" not in hook} == {"mypy"}
    assert not deviations(config, constraints)
    assert deviations(config, {**constraints, "ruff": "0.0.1"}) == [
        "ruff-format: ruff==0.17.6",
        "ruff-check: ruff==0.17.6",
    ]
    for loose in ("ruff", "ruff>=0.17.6", "unknown==1"):
        hook = {"id": "one", "additional_dependencies": [loose]}
        assert deviations({"repos": [{"hooks": [hook]}]}, constraints) == [f"one: {loose}"]


def test_every_requirement_is_pinned_to_a_version_that_it_allows():
    constraints = pins((ROOT / "constraints.txt").read_text())
    optional = [text for texts in PROJECT["optional-dependencies"].values() for text in texts]
    for requirement in map(Requirement, [*PROJECT["dependencies"], *optional]):
        if requirement.name != "gftkit":
            assert constraints[canonicalize_name(requirement.name)] in requirement.specifier, requirement


def test_public_ci_runs_every_python_and_the_oldest_versions():
    matrix = WORKFLOW["jobs"]["tests"]["strategy"]["matrix"]
    supported = SpecifierSet(PROJECT["requires-python"])
    assert all(python in supported for python in matrix["python"])
    assert "3.10" not in supported
    named = re.findall(r"Python :: (3\.\d+)", "\n".join(PROJECT["classifiers"]))
    assert set(named) <= set(matrix["python"])
    assert matrix["include"] == [{"python": min(named, key=lambda text: int(text[2:])), "versions": "oldest"}]
    assert not re.search(r"https?://|--(extra-)?index-url", (ROOT / ".github/workflows/ci.yml").read_text())


def test_the_oldest_versions_are_the_lower_bounds(tmp_path):
    def oldest(root):
        return subprocess.run([sys.executable, root / ".github/oldest.py"], capture_output=True, text=True)

    printed = pins(oldest(ROOT).stdout)
    assert printed["torch"] == "2.6.*"
    user = [name for name in PROJECT["optional-dependencies"] if name not in ("all", "dev", "docs")]
    texts = [*PROJECT["dependencies"], *(text for name in user for text in PROJECT["optional-dependencies"][name])]
    assert set(printed) == {canonicalize_name(Requirement(text).name) for text in texts if ">=" in text}
    (tmp_path / ".github").mkdir()
    (tmp_path / ".github/oldest.py").write_text((ROOT / ".github/oldest.py").read_text())
    (tmp_path / "pyproject.toml").write_text('[project]\ndependencies = ["numpy"]\n[project.optional-dependencies]\n')
    assert "got 'numpy'" in oldest(tmp_path).stderr  # a requirement without a bound isn't passed over


@pytest.mark.parametrize("name", ["bug", "feature"])
def test_issue_forms_can_be_read(name):
    form = yaml.safe_load((ROOT / f".github/ISSUE_TEMPLATE/{name}.yml").read_text())
    assert {"name", "description", "body"} <= set(form)
    fields = [field for field in form["body"] if field["type"] != "markdown"]
    assert len({field["id"] for field in fields}) == len(fields)
    assert all(field["attributes"]["label"] for field in fields)
