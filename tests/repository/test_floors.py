"""The floors: a package imports only packages below it, nothing imports in a circle, and the kernel knows nobody."""

import tomllib

import pytest
from support.imports import circle, graph, modules
from support.paths import ROOT

KERNEL_LINES = 1200
FOLDER = 14
"""Modules in a folder, at most."""

SOURCES = {
    name: path.read_text(encoding="utf-8")
    for package in ("gftkit", "gftkit_plugins", "gftkit_verification")
    for name, path in modules(package).items()
}


def floors() -> dict[str, int]:
    """Each package of gftkit with its floor, 0 the lowest: the list that import-linter reads."""
    contracts = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["tool"]["importlinter"][
        "contracts"
    ]
    (layers,) = (contract["layers"] for contract in contracts if contract["id"] == "floors")
    return {name: floor for floor, names in enumerate(reversed(layers)) for name in names.split(" | ")}


def trespasses(sources: dict[str, str]) -> list[str]:
    """Imports of gftkit that don't go downwards, from one package to another."""
    floor_of = floors()
    wrong = []
    for name, others in graph(sources).items():
        for other in others:
            ends = [module.split(".")[1:2] for module in (name, other)]
            if not all(module.startswith("gftkit.") for module in (name, other)) or ends[0] == ends[1]:
                continue
            if floor_of[ends[0][0]] <= floor_of[ends[1][0]]:
                wrong.append(f"{name} -> {other}")
    return wrong


def with_line(module: str, line: str) -> dict[str, str]:
    """The sources with one more line at the end of a module."""
    return {**SOURCES, module: f"{SOURCES[module]}\n{line}\n"}


def test_every_package_has_a_floor() -> None:
    packages = {name.split(".")[1] for name in SOURCES if name.startswith("gftkit.")}
    assert packages == set(floors())


def test_imports_go_downwards() -> None:
    assert trespasses(SOURCES) == []


@pytest.mark.parametrize(
    ("module", "line"),
    [
        ("gftkit.kernel.registry", "from gftkit.data.subset import subset"),
        ("gftkit.kernel.contracts", "if TYPE_CHECKING:\n    from gftkit.training.state import TrainingState"),
        ("gftkit.runs.folder", "def f():\n    from gftkit.experiment.restore import trained_drift"),
        ("gftkit.sampling.noise", "import gftkit.generation.sampler"),
        ("gftkit.theory.flow", "from gftkit.storage import tensors"),  # the same floor
        ("gftkit.training.loop", "importlib.import_module('gftkit.api')"),
    ],
)
def test_an_import_that_goes_upwards_is_seen(module: str, line: str) -> None:
    (wrong,) = trespasses(with_line(module, line))
    assert wrong.startswith(f"{module} -> gftkit.")


def test_there_is_no_circle_of_imports() -> None:
    assert circle(graph(SOURCES)) == []


def test_a_circle_is_seen() -> None:
    broken = with_line("gftkit.data.blocks", "def f():\n    from gftkit.data.samples import Samples")
    found = circle(graph(broken))
    assert found[0] == found[-1]
    assert {"gftkit.data.blocks", "gftkit.data.samples"} <= set(found)


def test_the_kernel_imports_nothing_else_of_gftkit() -> None:
    def outside(sources: dict[str, str]) -> set[str]:
        edges = graph(sources)
        kernel = {name for name in edges if name.startswith("gftkit.kernel")}
        return {other for name in kernel for other in edges[name]} - kernel

    assert outside(SOURCES) == set()
    assert outside(with_line("gftkit.kernel.errors", "from gftkit import api")) == {"gftkit.api"}


def test_the_kernel_is_small() -> None:
    lines = {name: source.count("\n") for name, source in SOURCES.items() if name.startswith("gftkit.kernel")}
    assert len(lines) > 5
    assert sum(lines.values()) <= KERNEL_LINES


def test_the_kernel_alone_loads_no_library_for_training(process) -> None:
    heavy = ("accelerate", "scipy", "matplotlib", "sympy", "jinja2", "PIL", "yaml", "gftkit_plugins", "gftkit.data")
    code = "import sys, gftkit.kernel; print([name for name in {!r} if name in sys.modules], 'torch' in sys.modules)"
    done = process(code.format(heavy), start=("-c",))
    assert done.out.strip() == "[] True", done.err  # torch is there, so the probe sees what is loaded


@pytest.mark.parametrize("package", ["gftkit", "gftkit_plugins", "gftkit_verification"])
def test_no_folder_is_crowded(package: str) -> None:
    folders: dict[str, list[str]] = {}
    for path in modules(package).values():
        if path.name != "__init__.py":
            folders.setdefault(str(path.parent), []).append(path.name)
    assert {folder: len(names) for folder, names in folders.items() if len(names) > FOLDER} == {}


def test_every_package_says_what_it_is_for() -> None:
    for name, path in modules("gftkit").items():
        if path.name == "__init__.py":
            first = SOURCES[name].splitlines()[0]
            assert first.startswith('"""'), name
            assert first.rstrip('"').endswith("."), name
