"""The reference of components, made from the registry whenever the documentation is built.

MkDocs calls the functions ``on_...``. Nothing that is made here is kept in the repository.
"""

import inspect
import re
from collections.abc import Mapping
from typing import Any

import gftkit
from gftkit.cli.sections import section_keys
from gftkit.kernel.hooks import WRAPPERS
from gftkit.kernel.kinds import KINDS
from gftkit.kernel.options import Option
from gftkit.kernel.registry import Registry

_SECTION = re.compile(r"^(Args|Attributes|Raises|Reference|Example):[ \t]*", re.MULTILINE)
_MARK = re.compile(r"<!-- keys: (\w+) -->")


def on_config(config: Any) -> Any:
    """Put the pages into the navigation, before the Python reference."""
    pages_of_kinds = [{kind: f"reference/{kind}.md"} for kind in KINDS]
    config.nav.insert(-1, {"Components": [{"Overview": "reference/index.md"}, *pages_of_kinds]})
    return config


def on_files(files: Any, config: Any) -> Any:
    """Add the pages to what MkDocs builds."""
    from mkdocs.structure.files import File

    for uri, text in pages(gftkit.load(strict=True)).items():
        files.append(File.generated(config, uri, content=text))
    return files


def on_page_markdown(markdown: str, **_: Any) -> str:
    """Replace each ``<!-- keys: train -->`` by that section's table."""
    return _MARK.sub(lambda mark: table(section_keys(mark[1])), markdown)


def pages(registry: Registry) -> dict[str, str]:
    """Every page of the reference: its address under docs/ and its Markdown."""
    return {"reference/index.md": overview(registry)} | {
        f"reference/{kind}.md": kind_page(registry, kind) for kind in registry.kinds()
    }


def overview(registry: Registry) -> str:
    """The whole extension surface: kinds, hooks, contracts and what is installed."""
    lines = [
        "# Components",
        "",
        "A plugin implements one hook for each kind of component that it adds. The table lists all hooks, and the "
        "components that were installed when this page was built; `gft plugins` lists what you have installed.",
        "",
        "| kind | hook | what it returns | installed |",
        "|---|---|---|---|",
    ]
    for kind in registry.kinds():
        names = ", ".join(f"[{name}]({kind}.md#{name})" for name in registry.names(kind))
        says = escape(KINDS[kind].summary)
        lines.append(f"| [{kind}]({kind}.md) | `gftkit_{kind}s` | {says} | {names} |")
    says = "Statements to check, about anything that is registered"
    lines.append(f"| claim | `gftkit_claims` | {says} | [the claims](../claims.md) |")
    for hook, kind in WRAPPERS.items():
        lines.append(f"| wrapper of {kind}s | `{hook}` | Options that every {kind} takes, and what they do to it | |")
    return "\n".join([*lines, "", "[Writing a plugin](../guide/plugins.md) explains how to add one.", ""])


def kind_page(registry: Registry, kind: str) -> str:
    """One kind: its contract, then each component with its options."""
    contracts = " or ".join(f"[`{one.__name__}`][gftkit.kernel.contracts.{one.__name__}]" for one in protocols(kind))
    lines = [
        f"# {kind.capitalize()}",
        "",
        f"Hook `gftkit_{kind}s`; contract {contracts}. In a configuration: `{{name: NAME, OPTION: VALUE}}`.",
        "",
    ]
    if added := registry.added_options(kind):
        lines += [f"Every {kind} also takes these options, which gftkit adds:", "", table(added), ""]
    for name in registry.names(kind):
        description = registry.describe(kind, name)
        options = registry.component(kind, name).options
        rows = table(options) if options else "No options."
        lines += [f"## {name} {{ #{name} }}", "", docstring(description.doc, rows)]
        lines += ["", f"From {description.distribution} {description.version}, plugin `{description.plugin}`.", ""]
    return "\n".join(lines)


def protocols(kind: str) -> tuple[Any, ...]:
    """The contracts of a kind."""
    return KINDS[kind].written or KINDS[kind].contracts


def table(options: Mapping[str, Option]) -> str:
    """Options as a Markdown table."""
    rows = ["| key | type | default | what it is |", "|---|---|---|---|"]
    for option in options.values():
        default = option.default_text
        if not (option.supplied or option.required):
            default = f"`{default}`"
        rows.append(f"| `{option.name}` | {escape(option.type_text)} | {default} | {escape(option.help)} |")
    return "\n".join(rows)


def docstring(text: str, options: str) -> str:
    """A Google-form docstring as Markdown; ``options`` replaces ``Args``."""
    first, *rest = _SECTION.split(text)
    parts, placed = [escape(first.strip())], False
    for title, body in zip(rest[::2], rest[1::2], strict=True):
        if title == "Args":
            parts.append(options)
            placed = True
        elif title == "Example":
            parts.append("```pycon\n" + inspect.cleandoc("\n" + body) + "\n```")
        else:
            words = escape(" ".join(body.split()))
            parts.append(f"**{title}:** {words}")
    if not placed:
        parts.insert(1, options)
    return "\n\n".join(parts)


def escape(text: str) -> str:
    """Plain text as Markdown, with ``code`` and **bold words** kept."""
    pieces = re.split(r"(``.*?``|`[^`]+`|\*\*\w[\w ]*\*\*)", text, flags=re.DOTALL)
    for index, piece in enumerate(pieces):
        if index % 2 == 0:
            pieces[index] = re.sub(r"([\\*_\[\]|#])", r"\\\1", piece).replace("<", "&lt;").replace(">", "&gt;")
        elif piece.startswith("`"):
            pieces[index] = "`" + piece.strip("`") + "`"  # a bar in code doesn't end a cell of Python-Markdown's tables
    return "".join(pieces)
