"""``gft sample``, ``gft evaluate`` and ``gft export``: what is done with a finished run."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gftkit.cli.options import Device, Json, Overrides, RunPath, WeightsName
from gftkit.cli.output import answer, table

if TYPE_CHECKING:
    from gftkit.api import Run
    from gftkit.networks.precision import Precision


def sample(
    run: RunPath,
    count: Annotated[int, typer.Option(help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of source samples, labels and noise.")] = 0,
    solver: Annotated[
        str | None, typer.Option(help="Solver: NAME or '{name: NAME, ...}'.  (default: as the run is evaluated)")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps.  (default: as the run is evaluated)")] = None,
    grid: Annotated[
        str | None, typer.Option(help="Where the steps lie: uniform, cosine, ... or '{name: NAME, ...}'.")
    ] = None,
    diffusion: Annotated[
        str | None, typer.Option(help="Sample a velocity's flow with noise: constant, ... or '{name: NAME, ...}'.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="Class to sample.  (default: all in turn)")] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Conditions of the samples: .npz or .safetensors, taken in turn."),
    ] = None,
    guidance: Annotated[
        float | None, typer.Option(min=0, help="Scale of guidance, 1 for none.  (default: as the run is evaluated)")
    ] = None,
    weights: WeightsName = "ema",
    out: Annotated[
        Path | None,
        typer.Option(help=".npz, .safetensors, .png, or a folder for one PNG each.  (default: RUN/samples-seed-S.npz)"),
    ] = None,
    temperature: Annotated[
        float, typer.Option(help="Blend with the anchor: 0 for the fine-tuned drift, large for the pretrained one.")
    ] = 0.0,
    precision: Annotated[
        str, typer.Option(help="Of the drift's layers: float32, bfloat16 or float16.  States are float32.")
    ] = "float32",
    batch_size: Annotated[int, typer.Option(help="Samples integrated at once.")] = 512,
    trajectory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Animated picture of the way there: .gif, .png or .webp.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Go on with what was made before an end.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite what is there.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Sample from a finished run, in the values of the data that it was trained on.

    The same index gives the same sample, whatever the batch size or the number of processes (torchrun).

    Example: gft sample runs/gft --count 100 --solver heun --steps 10 --out samples.png
    """
    from gftkit.api import Run
    from gftkit.generation.requested_conditions import read_conditions
    from gftkit.generation.sampler import Request
    from gftkit.generation.write import write

    opened = Run.open(run)
    target = out or run / f"samples-seed-{seed}.npz"
    request = Request(
        count=count,
        seed=seed,
        solver=_scheme(opened, solver, steps, grid, diffusion),
        label=label,
        weights=weights_of(weights),
        guidance=guidance,
        given=None if conditions is None else read_conditions(conditions),
        temperature=temperature,
        precision=cast("Precision", precision),
        batch_size=batch_size,
    )
    try:
        made = write(opened, request, target, trajectory, device, resume, force, as_json)
    except KeyboardInterrupt:
        print(f"Interrupted: {target} isn't written. Go on by --resume.", file=sys.stderr)
        raise typer.Exit(130) from None
    if made.main:
        values = {"file": str(target), "count": count, "seed": seed, "evaluations": made.evaluations}
        answer(values, f"{count} samples in {target}", as_json)


def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    weights: WeightsName = "ema",
    temperature: Annotated[float, typer.Option(help="Blend with the anchor, as in gft sample.")] = 0.0,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a finished run by the metrics of its config, each with its standard error.

    Example: gft evaluate runs/gft --set evaluate.count=2000 --set evaluate.solver='{name: heun, steps: 10}'
    """
    from gftkit.api import Run
    from gftkit.recording.html import estimate_rows
    from gftkit.runtime.environment import resolve_device

    values = Run.open(run).evaluate(overrides or [], weights_of(weights), resolve_device(device), temperature)
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        table(["metric", "value"], estimate_rows(values))


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write into.")],
    adapter: Annotated[
        bool, typer.Option("--adapter/--merged", help="The adapters in peft's format, or whole weights.")
    ] = False,
    weights: WeightsName = "ema",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Write a finished run's weights for use elsewhere: the whole network's, adapters merged in, or the adapters.

    Example: gft export runs/gft-lora --adapter --out my-adapter
    """
    from gftkit.api import Run
    from gftkit.generation.export import export as go

    written = go(Run.open(run), out, "adapter" if adapter else "merged", weights_of(weights), force)
    answer({"files": [str(path) for path in written]}, f"Written: {', '.join(map(str, written))}", as_json)


def _scheme(
    run: "Run", solver: str | None, steps: int | None, grid: str | None, diffusion: str | None
) -> dict[str, Any] | None:
    """How the options ask to sample, over how the run is evaluated."""
    from gftkit.sampling.scheme import DEFAULT_STEPS, default_solver, resolve_scheme
    from gftkit.storage.documents import parse_yaml

    def named(text: str, key: str) -> dict[str, Any]:
        found = parse_yaml(text, key)
        if isinstance(found, dict):
            return found
        return {"name": found}

    if steps is not None and steps < 1:
        from gftkit.kernel.errors import ConfigError

        raise ConfigError(f"--steps: wanted at least 1, got {steps}.")
    usual = dict(run.config.evaluate.solver or {})
    kept: dict[str, Any] = {key: usual[key] for key in ("steps", "grid", "diffusion") if key in usual}
    given: dict[str, Any] = {
        key: named(text, f"--{key}") for key, text in (("grid", grid), ("diffusion", diffusion)) if text
    }
    made: dict[str, Any] = {"steps": DEFAULT_STEPS, **kept, **given}
    if solver:
        made |= named(solver, "--solver")
    elif usual and not diffusion:
        made |= {key: value for key, value in usual.items() if key not in made}
    else:
        made |= default_solver(run.path, made.get("diffusion"))
    made |= {} if steps is None else {"steps": steps}
    return resolve_scheme(made, run.registry, "--solver", Path.cwd())


def weights_of(name: str) -> Any:
    """The weights that --weights names.

    Raises:
        ConfigError: for another name.
    """
    if name not in ("ema", "raw"):
        from gftkit.kernel.errors import ConfigError

        raise ConfigError(f"--weights: wanted ema or raw, got '{name}'.")
    return name
