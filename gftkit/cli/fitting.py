"""``gft fit-profile``: a finished run's retention, chosen by evidence."""

import itertools
import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from gftkit.cli.measuring import Seed, print_written, show_stages, write_picture
from gftkit.cli.options import Device, Json, RunPath, WeightsName
from gftkit.cli.output import check_absent, table
from gftkit.cli.sampling import check_weights

if TYPE_CHECKING:
    from collections.abc import Mapping

    from gftkit.kernel.contracts import Estimate
    from gftkit.selection.fitted import FittedProfile


def fit_profile(
    run: RunPath,
    out: Annotated[
        Path, typer.Option(metavar="FILE", help="YAML file to write; a picture of the same name ends in .png.")
    ],
    data: Annotated[
        str | None,
        typer.Option(metavar="DATA", help="Held-out data, '{name: NAME, ...}'; not those that judge the run."),
    ] = None,
    folds: Annotated[
        int | None,
        typer.Option(
            metavar="K", help="Instead of held-out data: K fine-tunes, each without a fold of the training data."
        ),
    ] = None,
    metric: Annotated[
        str, typer.Option(help="Distance that compares profiles on held-out data: NAME or '{name: NAME, ...}'.")
    ] = "energy",
    count: Annotated[int, typer.Option(help="Samples of each blend.")] = 1000,
    points: Annotated[int, typer.Option(help="Training data, and held-out data, at most.")] = 2000,
    steps: Annotated[int | None, typer.Option(help="Solver steps.  (default: those of the run's evaluations)")] = None,
    seed: Seed = 0,
    weights: WeightsName = "ema",
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out; runs of folds are kept.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Choose a fine-tune's retention by evidence: zero where nothing is significant.

    Without --data and --folds the training data choose one retention, and another one late in flow time. The runs of
    --folds are in the folder FILE-folds, without FILE's ending: repeat an interrupted command to continue.

    Example: gft fit-profile runs/gft --out profile.yaml
    """
    from gftkit.api import Run
    from gftkit.kernel.errors import ConfigError
    from gftkit.runtime.environment import resolve_device
    from gftkit.selection.blended_run import Settings
    from gftkit.selection.fit import fit_profile
    from gftkit.selection.fitted import write_profile
    from gftkit.selection.pictures import fitted_profile

    if out.suffix not in (".yaml", ".yml"):
        raise ConfigError(f"--out {out}: wanted .yaml, got '{out.suffix}'.")
    picture = out.with_suffix(".png")
    for path in (out, picture):
        check_absent(path, "--out", force)
    settings = Settings(
        count=count,
        points=points,
        steps=steps,
        seed=seed,
        weights=check_weights(weights),
        device=resolve_device(device),
    )
    opened = Run.open(run)
    with show_stages() as stage:
        fitted = fit_profile(
            opened,
            data=None if data is None else _parse_spec(data, "--data"),
            folds=folds,
            folder=out.with_name(f"{out.stem}-folds"),
            metric=_parse_spec(metric, "--metric"),
            settings=settings,
            stage=stage,
            say=lambda text: print(text, file=sys.stderr),
        )
    write_profile(out, fitted)
    written = [out, *write_picture(picture, lambda: fitted_profile(fitted))]
    if as_json:
        files = {"file": str(out), "picture": str(picture) if picture in written else None}
        print(json.dumps({**files, **fitted.to_dict()}, indent=2))
        return
    _print_evidence(fitted)
    print(fitted.sentence)
    print_written(written)


def _parse_spec(text: str, option: str) -> "Mapping[str, Any] | str":
    """A component's name, or {name: ..., **options}.

    Raises:
        ConfigError: for anything else.
    """
    from gftkit.kernel.errors import ConfigError
    from gftkit.storage.documents import parse_yaml

    spec = parse_yaml(text, option)
    if not isinstance(spec, dict | str):
        raise ConfigError(f"{option}: wanted a name, or '{{name: NAME, ...}}', got '{text}'.")
    return spec


def _print_evidence(fitted: "FittedProfile") -> None:
    """Print the curve, r*(t), and the comparison of profiles."""
    from gftkit.evaluation.retentions import RETENTIONS
    from gftkit.recording.html import format_number

    def number(estimate: "Estimate") -> str:
        return format_number(estimate.value, estimate.stderr)

    distances = fitted.preference.distances
    rows = [(f"{rho:g}", number(each)) for rho, each in zip(RETENTIONS, distances, strict=True)]
    table(["constant retention", "energy distance to the training data"], rows)
    if fitted.fit is None:
        return
    edges = fitted.fit.edges.tolist()
    parts = [f"{low:g} to {high:g}" for low, high in itertools.pairwise(edges)]
    table(["flow time", "r*(t)"], [(part, number(each)) for part, each in zip(parts, fitted.fit.by_time, strict=True)])
    gains = []
    for each in fitted.compared:
        low, high = each.gain.interval or (0.0, 0.0)
        gains.append((each.name, number(each.value), number(each.gain), f"{low:.4g} to {high:.4g}"))
    if gains:
        table(["profile", fitted.fitted_on["metric"]["name"], "gain", "simultaneous 95 %"], gains)
