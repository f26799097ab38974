"""The distributions: one version, wheels that hold what they should, and that work where nothing else is installed."""

import configparser
import os
import re
import shutil
import subprocess
import sys
import tarfile
import venv
import zipfile
from email.parser import Parser
from importlib.metadata import distribution, version
from pathlib import Path

import pytest
import yaml
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from support.paths import ROOT

import gftkit

PACKAGES = {
    "gftkit": ROOT / "gftkit",
    "gftkit_plugins": ROOT / "plugins/gftkit_plugins",
    "gftkit_verification": ROOT / "verification/gftkit_verification",
}


def build(target, out, root=ROOT):
    """Build a wheel or an sdist of the checkout, without a network."""
    command = [sys.executable, "-m", "hatchling", "build", "-t", target, "-d", str(out)]
    done = subprocess.run(command, cwd=root, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    (built,) = out.iterdir()
    return built


def names_in(wheel):
    with zipfile.ZipFile(wheel) as archive:
        return {name for name in archive.namelist() if not name.endswith("/")}


def read(wheel, file):
    with zipfile.ZipFile(wheel) as archive:
        (name,) = (name for name in archive.namelist() if name.endswith(f".dist-info/{file}"))
        return archive.read(name).decode()


@pytest.fixture(scope="module")
def wheel(tmp_path_factory):
    return build("wheel", tmp_path_factory.mktemp("wheel"))


@pytest.fixture(scope="module")
def sdist(tmp_path_factory):
    """The source distribution, unpacked."""
    folder = tmp_path_factory.mktemp("sdist")
    with tarfile.open(build("sdist", folder)) as archive:
        archive.extractall(folder, filter="data")
    (unpacked,) = (path for path in folder.iterdir() if path.is_dir())
    return unpacked


# One version


def test_the_version_is_that_of_the_package(wheel):
    assert Parser().parsestr(read(wheel, "METADATA"))["Version"] == gftkit.__version__
    assert version("gftkit") == gftkit.__version__, "the installation is older than the code: pip install -e ."
    assert re.search(rf"^## \[{re.escape(gftkit.__version__)}\]", (ROOT / "CHANGELOG.md").read_text(), re.MULTILINE)


def test_the_version_has_one_source(sdist, tmp_path):
    copy = shutil.copytree(sdist, tmp_path / "copy")
    (copy / "PKG-INFO").unlink()  # with it a source distribution keeps the version that it was built with
    init = copy / "gftkit/__init__.py"
    init.write_text(re.sub(r'(?m)^__version__ = ".*"$', '__version__ = "9.8.7"', init.read_text()))
    built = build("wheel", tmp_path / "dist", copy)
    assert Parser().parsestr(read(built, "METADATA"))["Version"] == "9.8.7"


# What is in them


def faults(names):
    """The files that a wheel lacks, and those that don't belong there."""
    wanted = {
        f"{package}/{path.relative_to(folder).as_posix()}"
        for package, folder in PACKAGES.items()
        for path in folder.rglob("*")
        if path.is_file() and "__pycache__" not in path.parts
    }
    tests = {name for name in names if any(re.match(r"tests?$|test_|conftest", part) for part in name.split("/"))}
    return (names ^ wanted) | tests


def code_of(wheel):
    """The files of a wheel without those about it."""
    return {name for name in names_in(wheel) if ".dist-info/" not in name}


def test_a_wheel_holds_the_packages_and_nothing_else(wheel):
    names = code_of(wheel)
    assert not faults(names)
    assert {f"{package}/py.typed" for package in PACKAGES} <= names  # types reach a user's type checker
    (template,) = (name for name in names if name.endswith("/report.html"))
    assert read(wheel, "licenses/LICENSE") == (ROOT / "LICENSE").read_text()
    for absent in (template, "gftkit/py.typed", "gftkit_plugins/__init__.py"):
        assert faults(names - {absent}) == {absent}  # the check sees what isn't there
    for stray in (
        "tests/conftest.py",
        "gftkit/test_cli.py",
        "gftkit_tests/verification/test_every_claim.py",
        "recipes/demo.py",
    ):
        assert faults(names | {stray}) == {stray}


def test_entry_points_name_modules_of_the_wheel(wheel):
    points = configparser.ConfigParser()
    points.read_string(read(wheel, "entry_points.txt"))
    assert set(points.sections()) == {"console_scripts", "gftkit"}
    for value in [*points["console_scripts"].values(), *points["gftkit"].values()]:
        module = value.split(":")[0].replace(".", "/")
        assert {f"{module}.py", f"{module}/__init__.py"} & code_of(wheel), value


def test_a_source_distribution_makes_the_same_wheel_and_holds_the_tests(wheel, sdist, tmp_path):
    assert code_of(build("wheel", tmp_path / "dist", sdist)) == code_of(wheel)
    tools = "constraints.txt", "Makefile", "CONTRIBUTING.md", "RELEASING.md", "SECURITY.md", ".github/workflows/ci.yml"
    tests = (
        "tests/conftest.py",
        "tests/example_plugin",
        "tests/verification/test_every_claim.py",
        "docs/index.md",
        "recipes/demo",
    )
    for path in (*tools, *tests):
        assert (sdist / path).exists(), path
    assert not [name for name in (".git", ".venv", "runs", "site") if (sdist / name).exists()]


# Where nothing else is installed


def needed(requirements, extras):
    """The installed distributions that requirements bring, each with what it requires in its turn, by name."""
    by_name = {}
    waiting = [(Requirement(text), extras) for text in requirements]
    while waiting:
        requirement, of = waiting.pop()
        if requirement.marker and not any(requirement.marker.evaluate({"extra": extra}) for extra in ("", *of)):
            continue
        name = canonicalize_name(requirement.name)
        if name == "gftkit":
            continue
        if name not in by_name:
            by_name[name] = distribution(name)
            waiting += [(Requirement(text), requirement.extras) for text in by_name[name].requires or []]
    return by_name


def environment(folder, wheel, extras):
    """A virtual environment with the wheel, and links to what it requires of the packages that are installed here."""
    venv.create(folder, with_pip=False, symlinks=True)
    python = folder / "bin/python"
    (site,) = folder.glob("lib/python*/site-packages")
    metadata = Parser().parsestr(read(wheel, "METADATA"))
    for each in needed(metadata.get_all("Requires-Dist"), extras).values():
        for top in {path.parts[0] for path in each.files} - {"..", "__pycache__"}:
            if not top.endswith(".pth") and not (site / top).exists():
                (site / top).symlink_to(Path(each.locate_file(top)))
    pip = [sys.executable, "-m", "pip", "--python", python, "--disable-pip-version-check"]
    done = subprocess.run(
        [*pip, "install", "--quiet", "--no-deps", "--no-index", wheel], capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    return python


PRETRAIN = {
    "drift": {"name": "mlp", "width": 16, "depth": 1},
    "data": {"name": "gaussian-mixture"},
    "train": {"steps": 20, "batch_size": 16},
    "evaluate": {"every": 10, "count": 32, "solver": {"name": "euler", "steps": 2}},
}
FINETUNE = {
    "pretrained": "runs/pre",
    "data": {"name": "two-moons"},
    "schedule": {"name": "exponential"},
    "train": PRETRAIN["train"],
    "evaluate": PRETRAIN["evaluate"],
}


@pytest.mark.slow
@pytest.mark.parametrize("extras", [(), ("report",)], ids=["minimal", "report"])
def test_an_installed_wheel_pretrains_finetunes_samples_and_verifies(wheel, extras, tmp_path):
    python = environment(tmp_path / "env", wheel, extras)
    work = tmp_path / "work"
    work.mkdir()
    for name, config in (("pre", PRETRAIN), ("gft", FINETUNE)):
        (work / f"{name}.yaml").write_text(yaml.safe_dump(config))
    clean = {key: value for key, value in os.environ.items() if not key.startswith(("PYTHON", "GFTKIT", "COVERAGE"))}

    def run(*command):
        done = subprocess.run(
            command, cwd=work, env={**clean, "OMP_NUM_THREADS": "1"}, capture_output=True, text=True, timeout=300
        )
        assert done.returncode == 0, done.stderr
        return done

    def gft(*arguments):
        return run(python.with_name("gft"), *arguments)

    code = "import gftkit, gftkit_plugins, gftkit_verification as v; print(gftkit.__file__, gftkit_plugins.__file__, "
    where = run(python, "-c", f"{code} v.__file__)").stdout.split()
    assert len(where) == 3
    assert all(Path(path).is_relative_to(tmp_path / "env") for path in where)  # not those of this checkout
    assert gft("--version").stdout.strip() == f"gftkit {gftkit.__version__}"
    gft("pretrain", "pre.yaml", "--out", "runs/pre")
    done = gft("finetune", "gft.yaml", "--out", "runs/gft")
    assert (work / "runs/gft/model.safetensors").is_file()
    assert ("pip install 'gftkit[report]'" in " ".join(done.stderr.split())) == (not extras)
    for name in ("report.html", "samples.png"):
        assert (work / "runs/gft" / name).is_file() == ("report" in extras)
    gft("sample", "runs/gft", "--count", "8", "--out", "samples.npz")
    assert (work / "samples.npz").is_file()
    assert "1 of 1 claims hold" in gft("verify", "--claim", "T04-drift-error-proof").stdout
