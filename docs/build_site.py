"""Build the documentation into site/ and check it: ``make docs``.

Anything printed beside progress fails the build: a warning of MkDocs, of a plugin, of griffe, of Python. Then each page
is read as a browser reads it. A formula such as <a, b> that was taken for a tag fails, and so does an example that
isn't shown as code.
"""

import inspect
import os
import pydoc
import re
import subprocess
import sys
from doctest import DocTestParser
from html.parser import HTMLParser
from pathlib import Path

import gftkit

ROOT = Path(__file__).parent.parent
_VOID = "area base br col embed hr img input link meta source track wbr"
_OTHERS = (
    "a abbr address article aside audio b bdi bdo blockquote body button canvas caption cite code colgroup data "
    "datalist dd del details dfn dialog div dl dt em fieldset figcaption figure footer form g h1 h2 h3 h4 h5 h6 head "
    "header hgroup html i iframe ins kbd label legend li main map mark menu meter nav noscript object ol optgroup "
    "option output p path picture pre progress q rp rt ruby s samp script search section select slot small span strong "
    "style sub summary sup svg table tbody td template textarea tfoot th thead time title tr u ul var video"
)
VOID = frozenset(_VOID.split())
"""Elements without an end tag."""
KNOWN = VOID | frozenset(_OTHERS.split())
"""Elements of HTML, and those of the theme's icons."""
_ATTRIBUTE = re.compile(r"[a-z][a-z0-9:_-]*")
_PROMPT = re.compile(r"^[ \t]*>>>(?= |$)", re.MULTILINE)
_DOCSTRING = re.compile(r"^::: (\S+)", re.MULTILINE)


class Page(HTMLParser):
    """One page of the site, as far as it is checked.

    Attributes:
        mistakes: tags that are unknown, unclosed or strange, each with its line.
        objects: Python names whose docstrings the page shows under a heading.
        prompts: number of prompts >>> that begin a line of code.
    """

    def __init__(self, text: str) -> None:
        super().__init__(convert_charrefs=True)
        self.mistakes: list[str] = []
        self.objects: list[str] = []
        self.prompts = 0
        self._open: list[tuple[str, int]] = []
        self._code = ""
        self.feed(text)
        self.close()
        self.mistakes += [f"line {line}: <{tag}> isn't closed" for tag, line in self._open]

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Check the tag and remember that it is open."""
        line = self.getpos()[0]
        if tag not in KNOWN:
            self.mistakes.append(f"line {line}: <{tag}> is no element of HTML")
        if strange := [name for name, _ in attrs if not _ATTRIBUTE.fullmatch(name)]:
            self.mistakes.append(f"line {line}: <{tag}> has attributes that HTML can't have: {' '.join(strange)}")
        attributes = dict(attrs)
        if "doc-heading" in (attributes.get("class") or "").split():
            self.objects.append(attributes.get("id") or "")
        if tag not in VOID:
            self._open.append((tag, line))

    def handle_startendtag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        """Check a tag that closes itself, as those of icons do."""
        self.handle_starttag(tag, attrs)
        if tag not in VOID:
            self._open.pop()

    def handle_endtag(self, tag: str) -> None:
        """Close the last element of this name; elements that are still open in it are mistakes."""
        line = self.getpos()[0]
        if tag not in [name for name, _ in self._open]:
            self.mistakes.append(f"line {line}: </{tag}> closes nothing")
            return
        while (last := self._open.pop())[0] != tag:
            self.mistakes.append(f"line {last[1]}: <{last[0]}> isn't closed before </{tag}> in line {line}")
        if tag == "pre":
            self.prompts += len(_PROMPT.findall(self._code))
            self._code = ""

    def handle_data(self, data: str) -> None:
        """Keep the text of a block of code."""
        if any(tag == "pre" for tag, _ in self._open):
            self._code += data


def build(site: Path, config: Path = ROOT / "mkdocs.yml") -> list[str]:
    """Run MkDocs; return what it prints beside its progress, which is nothing for a sound site."""
    # Without -W, MkDocs prints a warning of Python as progress.
    command = [sys.executable, "-W", "default", "-m", "mkdocs", "build", "--strict"]
    command += ["--config-file", str(config), "--site-dir", str(site)]
    # Material prints a notice about a future MkDocs unless this is set.
    environment = {**os.environ, "NO_MKDOCS_2_WARNING": "1"}
    result = subprocess.run(command, env=environment, capture_output=True, text=True)
    lines = (result.stdout + result.stderr).splitlines()
    # --quiet would hide warnings from --strict as well, so progress is printed and left out here.
    printed = [line for line in lines if line.strip() and not line.startswith("INFO ")]
    if result.returncode and not printed:
        printed.append(f"mkdocs ended with code {result.returncode}")
    return printed


def check(site: Path) -> list[str]:
    """Read every page that was built; return each unknown or unclosed tag, and each page that lost an example."""
    sources = {path.relative_to(ROOT / "docs"): path.read_text("utf-8") for path in (ROOT / "docs").rglob("*.md")}
    components = component_examples()
    mistakes = []
    for path in sorted(site.rglob("*.html")):
        page, name = Page(path.read_text("utf-8")), path.relative_to(site)
        mistakes += [f"{name}: {mistake}" for mistake in page.mistakes]
        if name.parent.name == "reference":
            expected = components.get(name.stem, 0)
        else:
            expected = page_examples(page, sources.get(name.with_suffix(".md"), ""))
        if page.prompts != expected:
            mistakes.append(f"{name}: {page.prompts} lines >>> are shown as code, and its sources have {expected}")
    return mistakes


def page_examples(page: Page, source: str) -> int:
    """Count the lines >>> of a page's Markdown and of the docstrings that it shows."""
    # A module that is shown without a heading appears in its line ::: only.
    unheaded = [name for name in _DOCSTRING.findall(source) if name not in page.objects]
    return len(_PROMPT.findall(source)) + sum(docstring_examples(name) for name in page.objects + unheaded)


def docstring_examples(name: str) -> int:
    """Count the examples of a module, class, function, method or property; a value has no docstring, so 0."""
    subject = pydoc.locate(name)
    if not (inspect.ismodule(subject) or callable(subject) or isinstance(subject, property)):
        return 0
    return count_examples(subject.__doc__)


def component_examples() -> dict[str, int]:
    """Count the examples in the docstrings of each kind of component."""
    registry = gftkit.load(strict=True)
    return {
        kind: sum(count_examples(registry.describe(kind, name).doc) for name in registry.names(kind))
        for kind in registry.kinds()
    }


def count_examples(docstring: str | None) -> int:
    """Count the examples that doctest would run."""
    return len(DocTestParser().get_examples(docstring or ""))


def main() -> int:
    """Build and check; print each mistake."""
    site = ROOT / "site"
    mistakes = build(site) or check(site)
    for mistake in mistakes:
        print(mistake)
    print(f"{len(mistakes)} mistakes in the documentation." if mistakes else "Open site/index.html")
    return 1 if mistakes else 0


if __name__ == "__main__":
    sys.exit(main())
