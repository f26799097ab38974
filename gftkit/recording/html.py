"""Reports: one self-contained HTML file, pictures inside."""

import base64
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from importlib.resources import files
from pathlib import Path
from typing import Any

from gftkit.runtime.extras import require
from gftkit.storage.documents import write_text
from gftkit.storage.log import measured_names


@dataclass(frozen=True)
class Section:
    """A part of a report: text, a table (its first row the head), a picture (PNG), code; each may be empty."""

    title: str
    text: str = ""
    table: Sequence[Sequence[str]] = field(default_factory=list)
    picture: bytes = b""
    caption: str = ""
    code: str = ""


def write_report(path: Path, title: str, lead: str, sections: Sequence[Section]) -> None:
    """Write a self-contained HTML report, whole or not at all.

    Raises:
        MissingPackageError: where Jinja2 isn't installed.
    """
    require("report", str(path))
    import jinja2

    template = files("gftkit.recording").joinpath("report.html").read_text(encoding="utf-8")
    parts = [{**vars(part), "picture": base64.b64encode(part.picture).decode()} for part in sections]
    # Escaped, because titles and tables hold names from configurations; strict, so that a misspelt field is an error.
    environment = jinja2.Environment(
        autoescape=True, trim_blocks=True, lstrip_blocks=True, undefined=jinja2.StrictUndefined
    )
    write_text(path, environment.from_string(template).render(title=title, lead=lead, sections=parts))


def format_number(value: Any, stderr: Any = None, interval: tuple[Any, Any] | None = None) -> str:
    """A number with four significant digits and, where known, its standard error and its 95 % interval.

    Example:
        >>> format_number(0.98765, 0.00123, (0.9813, 0.9912))
        '0.9877 ± 0.0012 [0.981, 0.991]'
    """
    if value is None:
        return "-"
    ends = "" if interval is None or None in interval else f" [{interval[0]:.3g}, {interval[1]:.3g}]"
    return f"{value:.4g}" + (f" ± {stderr:.2g}" if stderr else "") + ends


def measured_text(values: Mapping[str, Any], name: str) -> str:
    """One of a run's measured numbers as text, with what is known of its error."""
    low, high = values.get(f"{name}_low"), values.get(f"{name}_high")
    return format_number(values.get(name), values.get(f"{name}_stderr"), (low, high))


def estimate_rows(values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Rows of name and value ± standard error."""
    return [(name, measured_text(values, name)) for name in measured_names(values)]
