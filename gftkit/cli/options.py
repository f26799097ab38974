"""Options that several commands share."""

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:
    from gftkit.generation.requested_retention import RetentionRequest

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file that describes the run.")]
RunPath = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Overrides = Annotated[
    list[str] | None,
    typer.Option("--set", metavar="A.B=C", help="Override a key of the configuration; may be repeated."),
]
Out = Annotated[Path | None, typer.Option(help="Run folder to write.  (default: runs/ and the name of CONFIG)")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Continue the unfinished run in --out.")]
Retention = Annotated[
    str | None,
    typer.Option(
        metavar="VALUE|PROFILE",
        help="Blend with the anchor: its share below 1, or '{name: step, ...}'; below 0 it guides by 1 - VALUE.",
    ),
]
Temperature = Annotated[
    float | None,
    typer.Option(help="The same by the temperature: 0 for the fine-tuned drift, large for the pretrained one."),
]
WeightsName = Annotated[str, typer.Option(help="Averaged weights (ema), or those of the last step (raw).")]


def parse_retention(text: str | None) -> "RetentionRequest | None":
    """The value of --retention: a number, a profile's name or its spec; None where it isn't given.

    Raises:
        ConfigError: for text that isn't YAML, or empty.
    """
    from gftkit.kernel.errors import ConfigError
    from gftkit.storage.documents import parse_yaml

    if text is None:
        return None
    try:
        return float(text)  # also 1e-2, which YAML takes for text
    except ValueError:
        value: RetentionRequest | None = parse_yaml(text, "--retention")
    if value is None:
        raise ConfigError(f"--retention: wanted a number below 1, or a profile, {{name: ...}}, got '{text}'.")
    return value
