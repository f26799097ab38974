"""Draws the floors of gftkit from its code: docs/assets/floors.svg.

``make floors`` writes it. Each room is a package, with its modules and its size in lines. A line between two rooms is
an import; where a third room imports the one and is imported by the other, it is left out. The floors are those of
import-linter in pyproject.toml.
"""

import ast
import functools
import tomllib
from collections.abc import Iterator
from pathlib import Path
from xml.sax.saxutils import escape

ROOT = Path(__file__).parents[1]
PICTURE = ROOT / "docs/assets/floors.svg"
WIDTH, MARGIN, GAP, LINE = 1180, 16, 12, 15
"""Of the picture, in pixels: its width, the space around and between rooms, the height of a line of text."""
LETTER = 6.4
"""Width of a letter of the modules' names."""


def layers() -> list[list[str]]:
    """The packages of each floor, highest first."""
    settings = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    contracts = settings["tool"]["importlinter"]["contracts"]
    (floors,) = (contract["layers"] for contract in contracts if contract["id"] == "floors")
    return [floor.split(" | ") for floor in floors if floor != "__main__"]


def files(package: str) -> list[Path]:
    """The modules of a package, or the one module that stands for it."""
    place = ROOT / "gftkit" / package
    return sorted(place.rglob("*.py")) if place.is_dir() else [place.with_suffix(".py")]


@functools.cache
def imported(package: str) -> set[str]:
    """The packages that a package imports, wherever in its modules."""
    others = set()
    for path in files(package):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            names += [alias.name for alias in node.names] if isinstance(node, ast.Import) else []
            if isinstance(node, ast.ImportFrom) and node.module == "gftkit":
                names = [f"gftkit.{alias.name}" for alias in node.names]
            others |= {name.split(".")[1] for name in names if name.startswith("gftkit.")}
    known = {name for floor in layers() for name in floor}
    return (others & known) - {package}


def purpose(package: str) -> str:
    """The first line of a package's docstring."""
    place = ROOT / "gftkit" / package
    path = place / "__init__.py" if place.is_dir() else place.with_suffix(".py")
    return (ast.get_docstring(ast.parse(path.read_text(encoding="utf-8"))) or "").splitlines()[0]


def wrapped(words: list[str], width: float, separator: str = ", ") -> list[str]:
    """Words in lines of a width in pixels."""
    lines = [""]
    for word in words:
        longer = f"{lines[-1]}{separator}{word}" if lines[-1] else word
        if lines[-1] and len(longer) * LETTER > width:
            lines.append(word)
        else:
            lines[-1] = longer
    return lines


def room(package: str, width: float) -> list[str]:
    """The lines of text in a package's room: name and size, purpose, modules."""
    modules = [path.stem for path in files(package) if path.stem != "__init__"]
    lines = sum(path.read_text(encoding="utf-8").count("\n") for path in files(package))
    inside = width - 2 * GAP
    head = (
        f"{package}  ({len(modules)} modules, {lines:,} lines)" if len(modules) > 1 else f"{package}  ({lines:,} lines)"
    )
    return [
        head,
        *wrapped(purpose(package).split(" "), inside, " "),
        *(wrapped(modules, inside) if modules != [package] else []),
    ]


def drawing() -> str:
    """The whole picture as SVG."""
    boxes: dict[str, tuple[float, float, float, float]] = {}
    shapes: list[str] = []
    y = float(MARGIN)
    for floor in layers():
        width = (WIDTH - 2 * MARGIN - GAP * (len(floor) - 1)) / len(floor)
        texts = {package: room(package, width) for package in floor}
        height = max(len(lines) for lines in texts.values()) * LINE + GAP
        for index, package in enumerate(floor):
            x = MARGIN + index * (width + GAP)
            boxes[package] = x, y, width, height
            shapes += box(
                texts[package], *boxes[package], words=len(wrapped(purpose(package).split(" "), width - 2 * GAP, " "))
            )
        y += height + 3 * GAP
    size = f'width="{WIDTH}" height="{y:.0f}" viewBox="0 0 {WIDTH} {y:.0f}"'
    head = f'<svg xmlns="http://www.w3.org/2000/svg" {size} font-family="sans-serif" font-size="12">'
    ground = f'<rect width="{WIDTH}" height="{y:.0f}" fill="white"/>'
    return "\n".join(
        [
            head,
            "<title>The floors of gftkit, drawn from its imports</title>",
            ground,
            *arrows(boxes),
            *shapes,
            "</svg>",
            "",
        ]
    )


def box(lines: list[str], x: float, y: float, width: float, height: float, *, words: int) -> Iterator[str]:
    """A room with its text: the name in bold, the purpose, then the modules in grey."""
    frame = f'x="{x:.1f}" y="{y:.1f}" width="{width:.1f}" height="{height:.1f}" rx="5"'
    yield f'<rect {frame} fill="#eef6f5" stroke="#00796b"/>'
    for index, text in enumerate(lines):
        style = 'font-weight="bold"' if index == 0 else 'fill="#555"' if index > words else ""
        yield f'<text x="{x + GAP:.1f}" y="{y + (index + 1) * LINE:.1f}" {style}>{escape(text)}</text>'


def direct(package: str) -> set[str]:
    """The packages that a package imports, without those that another one of them imports too."""
    others = imported(package)
    return {other for other in others if not any(other in reached(third) for third in others - {other})}


def reached(package: str) -> set[str]:
    """All packages that a package imports, itself or through others."""
    others = imported(package)
    return others.union(*(reached(other) for other in others))


def arrows(boxes: dict[str, tuple[float, float, float, float]]) -> Iterator[str]:
    """A line from the foot of each room to the head of each that it imports directly; rooms hide what is behind."""
    for package, (x, y, width, height) in boxes.items():
        below = sorted(direct(package), key=lambda other: boxes[other][0])
        for index, other in enumerate(below):
            start = x + width * (index + 1) / (len(below) + 1)
            left, top, wide, _ = boxes[other]
            end = min(max(start, left + GAP), left + wide - GAP)
            yield (
                f'<path d="M {start:.1f} {y + height:.1f} C {start:.1f} {y + height + 40:.1f} {end:.1f} {top - 40:.1f} '
                f'{end:.1f} {top:.1f}" fill="none" stroke="#00796b" stroke-width="1.5"/>'
            )


if __name__ == "__main__":
    PICTURE.write_text(drawing(), encoding="utf-8")
