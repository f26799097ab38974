"""The documentation says what is so: its examples run, its links resolve, its reference is complete."""

import importlib.util
import re
import shlex
import sys
import textwrap
import tomllib
from collections.abc import Iterator
from dataclasses import dataclass
from functools import cache, partial
from pathlib import Path
from types import ModuleType
from typing import Any

import numpy as np
import pytest
import yaml
from PIL import Image
from support.paths import ROOT
from typer.main import get_command

import gftkit
from gftkit.cli import app as cli
from gftkit.cli.sections import section_keys
from gftkit.kernel.hooks import HOOKS, KINDS
from gftkit.runs import schema as config
from gftkit.verify import claims
from gftkit.verify.collect import collect

SELECT = claims.select
PAGES = [ROOT / name for name in ("README.md", "CONTRIBUTING.md", "CHANGELOG.md")]
PAGES += [ROOT / "plugins/README.md", ROOT / "verification/README.md", *sorted((ROOT / "docs").rglob("*.md"))]
QUICK = ["--set", "train.steps=12", "--set", "evaluate.every=6", "--set", "evaluate.count=40"]
"""Settings that make every run of the examples a short one: what is tested is that it goes through."""
FEW_CLAIMS = 2
"""How many of the claims that an example names are measured: all of them are tests of their own."""


@dataclass(frozen=True)
class Block:
    """A fenced block: its language, its title (a file name) and its text."""

    language: str
    title: str
    text: str


def blocks(page: Path) -> list[Block]:
    fence = re.compile(r"^( *)```(\w+)(?: title=\"([^\"]+)\")?\n(.*?)^\1```$", re.MULTILINE | re.DOTALL)
    return [
        Block(language, title or "", textwrap.dedent(text))
        for _, language, title, text in fence.findall(page.read_text())
    ]


def name(page: Path) -> str:
    return str(page.relative_to(ROOT))


@cache
def reference() -> dict[str, str]:
    return generator().pages(gftkit.load())


@cache
def generator() -> ModuleType:
    spec = importlib.util.spec_from_file_location("gen_reference", ROOT / "docs/gen_reference.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """An empty folder to work in; modules that examples make are forgotten afterwards."""
    before = set(sys.modules)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    yield tmp_path
    for made in set(sys.modules) - before:
        if getattr(sys.modules[made], "__file__", None) and str(tmp_path) in str(sys.modules[made].__file__):
            del sys.modules[made]


# --- examples ---------------------------------------------------------------------------------------------------------

RUNNABLE = [page for page in PAGES if any(block.language in ("bash", "python", "yaml") for block in blocks(page))]


@pytest.mark.parametrize("page", RUNNABLE, ids=name)
def test_examples_run_in_the_order_in_which_they_stand(
    page: Path, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    if page.name == "README.md" and page.parent == ROOT:
        a_demo_and_pictures(folder)
    for verb in ("pretrain", "finetune"):
        monkeypatch.setattr(gftkit, verb, partial(getattr(gftkit, verb), overrides=QUICK[1::2]), raising=False)
    monkeypatch.setattr(claims, "select", a_few_claims)
    seen: dict[str, object] = {}
    for block in blocks(page):
        if block.title:
            (folder / block.title).write_text(block.text)
        if block.language == "yaml":
            assert isinstance(yaml.safe_load(block.text), dict)
        elif block.language == "toml":
            tomllib.loads(block.text)
        elif block.language == "python" and not block.title:
            exec(compile(block.text, name(page), "exec"), seen)
        elif block.language == "bash":
            for line in block.text.splitlines():
                command(line, folder, monkeypatch)


def a_few_claims(*arguments: Any) -> list[claims.Claim]:
    """The first quick claims of a selection, which must not be empty."""
    selected = SELECT(*arguments)
    assert selected
    return sorted(selected, key=lambda claim: claim.profile == "full")[:FEW_CLAIMS]


def command(line: str, folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Run a line that starts with gft; check one that starts with make; act as if for one that starts with pip."""
    words = shlex.split(line, comments=True)
    match words:
        case []:
            pass
        case ["make", target, *_]:
            assert target in targets()
        case ["pip", "install", "-e", "."]:
            install(folder, monkeypatch)
        case ["pip", "install", "-c", "constraints.txt", "-e", extras]:
            assert (ROOT / "constraints.txt").is_file()
            project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
            assert set(re.findall(r"\w+", extras)) <= set(project["optional-dependencies"])
        case ["torchrun" | "accelerate", *_]:
            command(shlex.join(["gft", *launched(words)]), folder, monkeypatch)
        case ["gft" | ".venv/bin/gft", verb, *rest]:
            quick = QUICK if verb in ("pretrain", "finetune", "distill") else []
            quick = ["--workers", "1"] if verb == "compare" else quick  # no processes of their own
            if verb == "verify" and not {"--claim", "--component", "--run"}.intersection(rest):
                quick = ["--claim", "T01-retention*"]
            assert not get_command(cli.app)([verb, *rest, *quick], standalone_mode=False)
        case _:
            raise AssertionError(f"no test knows how to run: {line}")


def launched(words: list[str]) -> list[str]:
    """What a line that starts processes gives to gftkit; the launcher's own parser must know the other options."""
    from accelerate.commands.launch import launch_command_parser
    from torch.distributed.run import get_args_parser

    if words[0] == "torchrun":
        found = get_args_parser().parse_args(words[1:])
    else:
        assert words[1] == "launch"
        found = launch_command_parser().parse_args(words[2:])
    assert found.module
    assert found.training_script == "gftkit"
    assert found.training_script_args
    return list(found.training_script_args)


def install(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put the package in a folder onto the path, with the entry points of its pyproject.toml, as pip does."""
    project = tomllib.loads((folder / "pyproject.toml").read_text())["project"]
    info = folder / f"{project['name'].replace('-', '_')}-{project['version']}.dist-info"
    info.mkdir()
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {project['name']}\nVersion: {project['version']}\n")
    points = [f"{key} = {value}" for key, value in project["entry-points"]["gftkit"].items()]
    (info / "entry_points.txt").write_text("\n".join(["[gftkit]", *points]) + "\n")
    monkeypatch.syspath_prepend(folder)


def a_demo_and_pictures(folder: Path) -> None:
    """What README's examples start from: the demo's runs, on 8x8 images, and a folder of pictures."""
    settings = {
        "drift": {"name": "mlp", "width": 8, "depth": 1},
        "data": {"name": "digits", "count": 20},
        "train": {"steps": 2},
        "evaluate": {"count": 20},
    }
    pretrained = folder / "runs/demo/pretrained"
    gftkit.pretrain(settings, pretrained)
    target = {"data": {"name": "digits", "count": 30, "seed": 1}, "schedule": {"name": "gradual"}}
    watched = {"train": {"steps": 12}, "evaluate": {"every": 4, "count": 20}, "monitors": [{"name": "theory"}]}
    gftkit.finetune({**target, **watched, "pretrained": str(pretrained)}, folder / "runs/demo/gradual")
    (folder / "my-pictures").mkdir()
    numbers = np.random.default_rng(0)
    for index in range(40):
        Image.fromarray(numbers.integers(0, 255, (9, 8), dtype=np.uint8)).save(folder / f"my-pictures/{index}.png")


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_no_block_is_overlooked(page: Path) -> None:
    fences = re.findall(r"^ *```", page.read_text(), re.MULTILINE)
    assert len(fences) == 2 * len(blocks(page))


def test_a_broken_example_is_noticed(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(AssertionError, match="no test knows"):
        command("curl something", folder, monkeypatch)
    with pytest.raises(gftkit.GftkitError, match="Did you mean 'exponential'"):
        command("gft plugins show schedule exponentail", folder, monkeypatch)
    with pytest.raises(AssertionError):
        command("make dmeo", folder, monkeypatch)


# --- the reference and the configuration ------------------------------------------------------------------------------


def test_every_component_hook_and_option_is_in_the_reference() -> None:
    pages, registry = reference(), gftkit.load()
    for hook in HOOKS:
        assert f"`{hook}" in pages["reference/index.md"]
        assert f"`{hook}" in (ROOT / "plugins/README.md").read_text()
    for kind in KINDS:
        page = pages[f"reference/{kind}.md"]
        for component in registry.names(kind):
            assert f"## {component} " in page
            for option in registry.describe(kind, component).options:
                assert f"| `{option.name}` |" in page


def test_every_key_of_the_configuration_is_in_its_page() -> None:
    page = ROOT / "docs/guide/configuration.md"
    whole = {block.title: yaml.safe_load(block.text) for block in blocks(page) if block.title}
    pretrain, finetune = whole["pretrain.yaml"], whole["finetune.yaml"]
    assert set(pretrain) == set(config.KEYS)
    assert {"pretrained", "schedule"} <= set(finetune) <= set(config.FINETUNE_KEYS)
    for section in ("train", "objective", "evaluate"):
        assert set(pretrain[section]) == set(section_keys(section))
        assert f"<!-- keys: {section} -->" in page.read_text()
    defaults = {**vars(config.Train()), "steps": 1000, "learning_rate": "1e-3"}  # safe_load reads 1e-3 as text
    assert pretrain["train"] == defaults


def test_every_command_is_in_its_page() -> None:
    page = (ROOT / "docs/guide/command-line.md").read_text()
    for verb in get_command(cli.app).commands:
        assert f"`gft {verb}" in page


def test_every_kind_is_in_the_glossary() -> None:
    page = (ROOT / "docs/glossary.md").read_text()
    row = next(line for line in page.splitlines() if line.startswith("| [kind]"))
    assert set(re.findall(r"`(\w+)`", row)) == set(KINDS)


def test_the_table_of_claims_is_not_stale() -> None:
    spec = importlib.util.spec_from_file_location("write_table", ROOT / "verification/write_table.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    text = module.README.read_text()
    assert module.written(text) == text, "verification/README.md is stale: run `make claims`"
    claim = next(line for line in text.splitlines() if line.startswith("| `T"))
    assert module.written(text.replace(claim, "")) == text


def test_every_claim_is_explained() -> None:
    """By a heading of its own, or of its family for claims about every component of a kind."""
    headings = set(re.findall(r"^### (\S+)$", (ROOT / "docs/claims.md").read_text(), re.MULTILINE))
    for claim in collect(gftkit.load()):
        family = claim.name.removesuffix("-" + claim.component.partition(":")[2])
        assert {claim.name, f"{family}-NAME"} & headings, claim.name


def test_marks_are_replaced_by_tables() -> None:
    text = generator().on_page_markdown("before\n\n<!-- keys: train -->\n\nafter")
    assert "| `learning_rate` | float, &gt; 0 | `0.001` | the peak learning rate. |" in text
    assert "<!--" not in text


def test_docstrings_become_markdown() -> None:
    module = generator()
    assert module.escape("x_t in [0, 1], ``a|b`` and *this*") == r"x\_t in \[0, 1\], `a|b` and \*this\*"
    assert module.escape("**Two words**, |a| and f(**options)") == r"**Two words**, \|a\| and f(\*\*options)"
    shown = module.docstring("First.\n\nArgs:\n    a: it.\n\nExample:\n    >>> 1\n    1\n", "TABLE")
    assert shown == "First.\n\nTABLE\n\n```pycon\n>>> 1\n1\n```"


# --- links and targets ------------------------------------------------------------------------------------------------


def targets() -> set[str]:
    return set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_make_targets_that_are_named_exist(page: Path) -> None:
    named = set(re.findall(r"(?:`|^ *)make ([a-z][a-z-]*)", page.read_text(), re.MULTILINE))
    assert named <= targets()


@pytest.mark.parametrize("page", PAGES, ids=name)
def test_links_resolve(page: Path) -> None:
    made = {(ROOT / "docs" / uri).resolve() for uri in reference()}
    for link in re.findall(r"\]\(([^)\s]+)\)", page.read_text()):
        if link.startswith(("https://", "#")):
            continue
        target = (page.parent / link.split("#")[0]).resolve()
        assert target.exists() or target in made, link


def test_links_of_the_reference_resolve() -> None:
    made = {(ROOT / "docs" / uri).resolve() for uri in reference()}
    for uri, text in reference().items():
        for link in re.findall(r"\]\(([^)\s]+)\)", text):
            target = ((ROOT / "docs" / uri).parent / link.split("#")[0]).resolve()
            assert target.exists() or target in made, f"{uri}: {link}"


def test_the_site_needs_no_network() -> None:
    text = (ROOT / "mkdocs.yml").read_text()
    assert "font: false" in text
    assert "http" not in text
