"""The documentation as it is read: what the built pages show, and how the build fails."""

import ast
import importlib.util
import re
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from types import ModuleType

import pytest
from support.paths import ROOT

from gftkit import retention

PACKAGES = ("gftkit", "plugins/gftkit_plugins", "verification/gftkit_verification")
SOURCES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md", "plugins/README.md")]
SOURCES += [ROOT / "verification/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
PROMPT = '<pre><span></span><code><span class="gp">&gt;&gt;&gt; </span>retention(1.0)\n0.5\n</code></pre>'
QUOTED = "<blockquote><blockquote><blockquote><p>retention(1.0)\n0.5</p></blockquote></blockquote></blockquote>"
HEADING = '<h3 id="gftkit.retention" class="doc doc-heading">retention</h3>'


@cache
def builder() -> ModuleType:
    spec = importlib.util.spec_from_file_location("build_site", ROOT / "docs/build_site.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


# --- the site ---------------------------------------------------------------------------------------------------------


def test_the_site_builds_without_a_warning_and_shows_its_formulas_and_examples(tmp_path: Path) -> None:
    assert builder().build(tmp_path) == []
    assert builder().check(tmp_path) == []
    assert builder().Page((tmp_path / "api.html").read_text()).prompts > 50
    assert "&lt;b - y_beta, b - b_pre&gt;" in (tmp_path / "claims.html").read_text()


# --- the check of a page ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("broken", "mistake"),
    [
        ("<p>T, the mean of <b - y_beta, b - b_pre>.</p>", "<b> has attributes that HTML can't have: - y_beta, -"),
        ("<p>mean of <b - y>: unbiased</p>", "<b> isn't closed before </p>"),
        ("<p>With E<zeta, Delta> = 0</p>", "<zeta,> is no element of HTML"),
        ('<p>|f|<em _="_" p_t="p_t" x>w</em></p>', "<em> has attributes that HTML can't have: _"),
        ("<div><p>One.</p>", "<div> isn't closed"),
        ("<p>One.</p></div>", "</div> closes nothing"),
        ("<p><em>One.</p>", "<em> isn't closed before </p>"),
        ("<mean/>", "<mean> is no element of HTML"),
    ],
)
def test_a_broken_page_is_rejected(broken: str, mistake: str) -> None:
    assert any(mistake in line for line in builder().Page(broken).mistakes)


def test_a_sound_page_is_accepted() -> None:
    text = '<!doctype html><p>E&lt;zeta, Delta&gt; <br> <img src="a.png" alt> <svg><path d="M0"/></svg></p>'
    assert builder().Page(text).mistakes == []


def test_examples_are_counted_where_they_are_code() -> None:
    assert builder().Page(PROMPT + "<p>&gt;&gt;&gt; prose</p>" + PROMPT).prompts == 2
    assert builder().Page(QUOTED).prompts == 0


def test_a_page_that_lost_the_example_of_a_docstring_is_rejected() -> None:
    shown, lost = builder().Page(HEADING + PROMPT), builder().Page(HEADING + QUOTED)
    assert builder().count_examples(retention.__doc__) == 1
    assert shown.prompts == builder().page_examples(shown, "::: gftkit.retention") == 1
    assert lost.prompts < builder().page_examples(lost, "::: gftkit.retention") == 1


def test_a_page_that_lost_an_example_of_its_source_is_named(tmp_path: Path) -> None:
    source = (ROOT / "docs/theory.md").read_text()
    count = len(re.findall(r"^>>>", source, re.MULTILINE))
    assert count > 1
    page = tmp_path / "theory.html"
    page.write_text(PROMPT * count)
    assert builder().check(tmp_path) == []
    page.write_text(PROMPT * (count - 1) + QUOTED)
    expected = f"theory.html: {count - 1} lines >>> are shown as code, and its sources have {count}"
    assert builder().check(tmp_path) == [expected]


def test_a_component_that_lost_its_example_is_named(tmp_path: Path) -> None:
    count = builder().component_examples()["schedule"]
    assert count > 1
    page = tmp_path / "reference/schedule.html"
    page.parent.mkdir()
    page.write_text(PROMPT * (count - 1))
    assert [line.partition(":")[0] for line in builder().check(tmp_path)] == ["reference/schedule.html"]


# --- the build --------------------------------------------------------------------------------------------------------


def small_site(folder: Path, page: str = "# One\n", hook: str = "") -> Path:
    (folder / "docs").mkdir()
    (folder / "docs/index.md").write_text(page)
    (folder / "hook.py").write_text(hook)
    config = folder / "mkdocs.yml"
    config.write_text("site_name: small\nhooks: [hook.py]\nplugins: []\n")
    return config


def test_a_sound_site_prints_progress_only(tmp_path: Path) -> None:
    assert builder().build(tmp_path / "site", small_site(tmp_path)) == []
    assert (tmp_path / "site/index.html").is_file()


@pytest.mark.parametrize(
    ("page", "hook", "printed"),
    [
        ("[a](missing.md)\n", "", "missing.md"),
        ("# One\n", "import warnings\nwarnings.warn('from Python')\n", "UserWarning: from Python"),
        ("# One\n", "import warnings\nwarnings.warn('old', DeprecationWarning)\n", "DeprecationWarning: old"),
        ("# One\n", "print('something else')\n", "something else"),
        ("# One\n", "raise SystemExit(3)\n", "ended with code 3"),
    ],
    ids=["mkdocs", "python", "deprecation", "any", "code"],
)
def test_whatever_is_printed_beside_progress_fails_the_build(
    page: str, hook: str, printed: str, tmp_path: Path
) -> None:
    assert any(printed in line for line in builder().build(tmp_path / "site", small_site(tmp_path, page, hook)))


# --- the sources ------------------------------------------------------------------------------------------------------


def tags(text: str) -> list[str]:
    """What a reader of Markdown takes for an HTML tag: neither in code, nor escaped, nor a comment."""
    text = re.sub(r"^( *)```.*?^\1```$", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"^ *>>> .*?(?:\n *$|\Z)", "", text, flags=re.MULTILINE | re.DOTALL)
    text = re.sub(r"(`+)(?:(?!\n\s*\n).)+?\1", "", text, flags=re.DOTALL)
    text = re.sub(r"<!--.*?-->", "", text)
    return re.findall(r"(?<!\\)<[A-Za-z/!?][^\n]{,20}", text)


def docstrings(path: Path) -> Iterator[str]:
    """Every string that is a statement: docstrings, and the descriptions of constants and attributes."""
    for node in ast.walk(ast.parse(path.read_text("utf-8"))):
        if isinstance(node, ast.Expr) and isinstance(node.value, ast.Constant) and isinstance(node.value.value, str):
            yield node.value.value


@pytest.mark.parametrize("page", SOURCES, ids=lambda page: str(page.relative_to(ROOT)))
def test_no_formula_of_a_page_is_taken_for_a_tag(page: Path) -> None:
    assert tags(page.read_text("utf-8")) == []


@pytest.mark.parametrize("package", PACKAGES)
def test_no_formula_of_a_docstring_is_taken_for_a_tag(package: str) -> None:
    modules = sorted((ROOT / package).rglob("*.py"))
    assert len(modules) > 10
    taken = {str(path): [tag for text in docstrings(path) for tag in tags(text)] for path in modules}
    assert {path: formulas for path, formulas in taken.items() if formulas} == {}


def test_formulas_that_are_taken_for_tags_are_noticed() -> None:
    assert tags("mean of <b - y_beta, b>\n\n`a` and </p>") == ["<b - y_beta, b>", "</p>"]
    assert tags("a sum over i<j\n") == ["<j"]
    kept = "`<b - y, b>` and ``|<a, b>|``, \\<b, c>, 0 < t <= 1\n\n<!-- a -->\n```pycon\n<module>\n```\n"
    assert tags(kept + "\n>>> one\n<Two>\n\n") == []
    assert next(docstrings(Path(__file__))).startswith("The documentation")
