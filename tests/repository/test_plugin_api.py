"""The names that plugins may use: a page lists them, each of them exists, and built-in plugins use no others."""

import ast
import re
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path

import pytest
from support.paths import ROOT

PAGE = ROOT / "docs" / "guide" / "plugin-api.md"
PLUGINS = [
    *sorted(Path(find_spec("gftkit_plugins").submodule_search_locations[0]).rglob("*.py")),
    *sorted((ROOT / "tests" / "example_plugin").rglob("*.py")),
]
DOCUMENTED = (ast.Module, ast.ClassDef, ast.FunctionDef, ast.AsyncFunctionDef)
IMPORT = re.compile(r"\s*>>> (from|import) ")


def listed(page):
    """The names of a page's tables: package -> names."""
    names, package = {}, None
    for line in page.splitlines():
        if heading := re.fullmatch(r"## (gftkit(?:\.\w+)?)", line):
            package = heading[1]
            assert package not in names, f"{package} has two sections"
            names[package] = []
        elif row := re.match(r"\| `(\w+)` \|", line):
            names[package].append(row[1])
    return names


def missing(page):
    """The names of a page that their packages don't export."""
    return [
        f"{package}.{name}"
        for package, names in listed(page).items()
        for name in names
        if not hasattr(import_module(package), name)
    ]


def used(source):
    """What a module imports from gftkit, wherever in it, doctests included: (module, name), or (module, None)."""
    tree = ast.parse(source)
    docs = [ast.get_docstring(node) or "" for node in ast.walk(tree) if isinstance(node, DOCUMENTED)]
    examples = "\n".join(line.strip()[4:] for doc in docs for line in doc.splitlines() if IMPORT.match(line))
    for node in [*ast.walk(tree), *ast.walk(ast.parse(examples))]:
        if isinstance(node, ast.Import):
            yield from ((alias.name, None) for alias in node.names if alias.name.split(".")[0] == "gftkit")
        elif isinstance(node, ast.ImportFrom) and (node.module or "").split(".")[0] == "gftkit":
            yield from ((node.module, alias.name) for alias in node.names)
        elif isinstance(node, ast.Attribute) and isinstance(node.value, ast.Name) and node.value.id == "gftkit":
            yield "gftkit", node.attr
        elif isinstance(node, ast.Call) and ast.unparse(node.func).endswith("import_module") and node.args:
            literal = node.args[0]
            name = literal.value if isinstance(literal, ast.Constant) else ""
            if isinstance(name, str) and name.split(".")[0] == "gftkit":
                yield name, None


def unlisted(source, names):
    """What a plugin uses that isn't on the page."""
    return [
        f"{module}.{name}" if name else module
        for module, name in used(source)
        if not (name in names.get(module, ()) or (name is None and module == "gftkit"))
    ]


@pytest.fixture(scope="module")
def page():
    return PAGE.read_text(encoding="utf-8")


def test_every_listed_name_exists(page):
    assert sum(map(len, listed(page).values())) > 50  # the page is read
    assert missing(page) == []


def test_no_name_is_listed_twice(page):
    for package, names in listed(page).items():
        assert len(names) == len(set(names)), package


def test_a_listed_name_that_is_not_there_is_seen(page):
    assert missing(f"{page}\n## gftkit.cli\n\n| `no_such_name` | nothing |\n") == ["gftkit.cli.no_such_name"]


@pytest.mark.parametrize("file", PLUGINS, ids=lambda file: f"{file.parent.name}/{file.stem}")
def test_built_in_plugins_use_listed_names_only(file, page):
    assert unlisted(file.read_text(encoding="utf-8"), listed(page)) == []


def test_the_built_in_plugins_are_read():
    assert len(PLUGINS) > 50
    assert {"monitors", "gftkit_example_plugin"} <= {file.stem for file in PLUGINS}


@pytest.mark.parametrize(
    ("source", "name"),
    [
        ("from gftkit.storage.files import write_atomically", "gftkit.storage.files.write_atomically"),
        ("from gftkit.storage import write_atomically", "gftkit.storage.write_atomically"),
        ("def f():\n    from gftkit.data.samples import Samples", "gftkit.data.samples.Samples"),
        ("from gftkit.theory import flow", "gftkit.theory.flow"),
        ("import gftkit.kernel", "gftkit.kernel"),
        ("import gftkit\ngftkit.pretrain({}, 'runs/a')", "gftkit.pretrain"),
        ("importlib.import_module('gftkit.runs.folder')", "gftkit.runs.folder"),
        ('def f():\n    """A factory.\n\n    >>> from gftkit.cli import main\n    """', "gftkit.cli.main"),
    ],
)
def test_an_unlisted_name_is_seen(source, name, page):
    assert unlisted(source, listed(page)) == [name]
