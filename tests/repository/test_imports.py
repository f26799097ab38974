"""Who may import whom, and what is imported when: gftkit_plugins -> gftkit, gftkit_verification -> gftkit, no other."""

import ast
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.paths import ROOT

PACKAGES = ("gftkit", "gftkit_plugins", "gftkit_verification")
MAY_IMPORT = {"gftkit": set(), "gftkit_plugins": {"gftkit"}, "gftkit_verification": {"gftkit"}}
IN_A_CHECKOUT = {"plugins", "verification", "tests"}
"""Folders that a checkout makes importable by accident, as second copies of the modules."""

HEAVY = (
    "torch",
    "numpy",
    "scipy",
    "sympy",
    "pydantic",
    "matplotlib",
    "accelerate",
    "gftkit_plugins",
    "torchsde",
    "torchdiffeq",
    "torch.distributed.tensor",
)


def files(package):
    return sorted(Path(find_spec(package).submodule_search_locations[0]).rglob("*.py"))


def imported(tree):
    """The top-level packages that a module imports, wherever in it."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name.split(".")[0] for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            yield "." if node.level else (node.module or "").split(".")[0]
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            yield ast.unparse(node.args[0]).strip("'").split(".")[0]


def trespasses(package, source):
    wrong = {*PACKAGES, *IN_A_CHECKOUT} - MAY_IMPORT[package] - {package}
    return wrong.intersection(imported(ast.parse(source)))


@pytest.mark.parametrize("package", PACKAGES)
def test_imports_between_packages_follow_the_arrows(package):
    assert files(package)
    for file in files(package):
        assert not trespasses(package, file.read_text(encoding="utf-8")), file


@pytest.mark.parametrize(
    ("package", "source"),
    [
        ("gftkit", "import gftkit_plugins.paths"),
        ("gftkit", "def f():\n    from gftkit_verification import gaussian"),
        ("gftkit", "importlib.import_module('gftkit_plugins.paths')"),
        ("gftkit_verification", "from gftkit_plugins.paths import Linear"),
        ("gftkit_plugins", "from gftkit_verification import gaussian"),
        ("gftkit_plugins", "from plugins.gftkit_plugins import paths"),
    ],
)
def test_a_wrong_arrow_is_seen(package, source):
    assert trespasses(package, source)


@pytest.mark.parametrize("folder", ["plugins", "verification", "tests"])
def test_folders_of_the_checkout_are_no_packages(folder):
    assert not (ROOT / folder / "__init__.py").exists()


def test_nothing_heavy_is_imported_before_it_is_used(process):
    code = (
        f"import sys; heavy = {HEAVY!r}; loaded = lambda: [name for name in heavy if name in sys.modules]; "
        "import gftkit; print(loaded()); import gftkit.cli.app; print(loaded()); "
        "import gftkit.api; print([name for name in sys.modules if name.startswith('gftkit_')]); "
        "gftkit.load(); print(loaded())"
    )
    done = process(code, start=("-c",))
    assert done.code == 0, done.err
    bare, cli, plugins, everything = done.out.splitlines()
    assert bare == cli == plugins == "[]"
    assert {"torch", "gftkit_plugins"} <= set(ast.literal_eval(everything))  # the probe sees what is there
    slow = {"scipy", "sympy", "torch.distributed.tensor", "torchsde", "torchdiffeq"}
    loaded_too_early = slow & set(ast.literal_eval(everything))
    if loaded_too_early == {"sympy"}:  # torch 2.6 imports it by itself
        alone = process("import sys, torch.utils.checkpoint; print('sympy' in sys.modules)", start=("-c",))
        assert alone.out.strip() == "True"
    else:
        assert not loaded_too_early
