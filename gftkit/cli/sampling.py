"""``gft sample``, ``gft evaluate`` and ``gft export``: uses of a finished run."""

import json
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, cast

import typer

from gftkit.cli.options import Device, Json, Overrides, Retention, RunPath, Temperature, WeightsName, parse_retention
from gftkit.cli.output import print_result, table

if TYPE_CHECKING:
    from gftkit.api import Run
    from gftkit.generation.export import Format
    from gftkit.networks.precision import Precision


def sample(
    run: RunPath,
    count: Annotated[int, typer.Option(help="Number of samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Seed of source samples, labels and noise.")] = 0,
    solver: Annotated[
        str | None, typer.Option(help="Solver: NAME or '{name: NAME, ...}'.  (default: that of the run's evaluations)")
    ] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps.  (default: those of the run's evaluations)")] = None,
    grid: Annotated[
        str | None, typer.Option(help="Times of the steps: uniform, cosine, ... or '{name: NAME, ...}'.")
    ] = None,
    diffusion: Annotated[
        str | None, typer.Option(help="Sample a velocity's flow with noise: constant, ... or '{name: NAME, ...}'.")
    ] = None,
    label: Annotated[int | None, typer.Option(help="Class to sample.  (default: all in turn)")] = None,
    conditions: Annotated[
        Path | None,
        typer.Option(metavar="FILE", help="Conditions of the samples, .npz or .safetensors; rows are taken in turn."),
    ] = None,
    guidance: Annotated[
        float | None,
        typer.Option(min=0, help="Scale of guidance, 1 for none.  (default: that of the run's evaluations)"),
    ] = None,
    weights: WeightsName = "ema",
    out: Annotated[
        Path | None,
        typer.Option(help=".npz, .safetensors, .png, or a folder for one PNG each.  (default: RUN/samples-seed-S.npz)"),
    ] = None,
    retention: Retention = None,
    temperature: Temperature = None,
    precision: Annotated[
        str, typer.Option(help="Precision of the drift's layers: float32, bfloat16 or float16.  States are float32.")
    ] = "float32",
    batch_size: Annotated[int, typer.Option(help="Samples integrated at once.")] = 512,
    trajectory: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Animation of the samples' trajectories: .gif, .png or .webp.")
    ] = None,
    resume: Annotated[bool, typer.Option("--resume", help="Continue an interrupted call.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Overwrite existing output.")] = False,
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
        weights=check_weights(weights),
        guidance=guidance,
        conditions=None if conditions is None else read_conditions(conditions),
        temperature=temperature,
        retention=parse_retention(retention),
        precision=cast("Precision", precision),
        batch_size=batch_size,
    )
    try:
        written = write(
            opened,
            request,
            target,
            trajectory=trajectory,
            device=device,
            resume=resume,
            force=force,
            quiet=as_json,
        )
    except KeyboardInterrupt:
        print(f"Interrupted before {target} was written. Continue with --resume.", file=sys.stderr)
        raise typer.Exit(130) from None
    if written.main:
        values = {"file": str(target), "count": count, "seed": seed, "evaluations": written.evaluations}
        print_result(values, f"{count} samples in {target}", as_json)


def evaluate(
    run: RunPath,
    overrides: Overrides = None,
    weights: WeightsName = "ema",
    retention: Retention = None,
    temperature: Temperature = None,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Evaluate a finished run by the metrics of its configuration, each with its standard error.

    Example: gft evaluate runs/gft --set evaluate.count=2000 --set evaluate.solver='{name: heun, steps: 10}'
    """
    from gftkit.api import Run
    from gftkit.recording.html import estimate_rows
    from gftkit.runtime.environment import resolve_device

    values = Run.open(run).evaluate(
        overrides or [],
        check_weights(weights),
        resolve_device(device),
        temperature,
        retention=parse_retention(retention),
    )
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        table(["metric", "value"], estimate_rows(values))


def export(
    run: RunPath,
    out: Annotated[Path, typer.Option(metavar="DIR", help="Folder to write into.")],
    file_format: Annotated[
        str,
        typer.Option(
            "--format",
            help="merged: the whole network; peft: the adapters, for peft; diffusers: LoRA for diffusers' pipelines.",
        ),
    ] = "merged",
    weights: WeightsName = "ema",
    force: Annotated[bool, typer.Option("--force", help="Overwrite files in --out.")] = False,
    as_json: Json = False,
) -> None:
    """Write a finished run's weights for other programs: the whole network, with adapters merged in, or the adapters.

    Example: gft export runs/gft-lora --format peft --out my-adapter
    """
    from gftkit.api import Run
    from gftkit.generation.export import export as write_export

    written = write_export(Run.open(run), out, cast("Format", file_format), check_weights(weights), force=force)
    print_result({"files": [str(path) for path in written]}, f"Written: {', '.join(map(str, written))}", as_json)


def _scheme(
    run: "Run", solver: str | None, steps: int | None, grid: str | None, diffusion: str | None
) -> dict[str, Any] | None:
    """The spec of the solver: that of the run's evaluations, changed by the options."""
    from gftkit.sampling.scheme import DEFAULT_STEPS, default_solver, resolve_scheme
    from gftkit.storage.documents import parse_yaml

    def named(text: str, key: str) -> dict[str, Any]:
        value = parse_yaml(text, key)
        return value if isinstance(value, dict) else {"name": value}

    if steps is not None and steps < 1:
        from gftkit.kernel.errors import ConfigError

        raise ConfigError(f"--steps: wanted at least 1, got {steps}.")
    evaluated = dict(run.config.evaluate.solver or {})
    inherited: dict[str, Any] = {key: evaluated[key] for key in ("steps", "grid", "diffusion") if key in evaluated}
    options: dict[str, Any] = {
        key: named(text, f"--{key}") for key, text in (("grid", grid), ("diffusion", diffusion)) if text
    }
    scheme: dict[str, Any] = {"steps": DEFAULT_STEPS, **inherited, **options}
    if solver:
        scheme |= named(solver, "--solver")
    elif evaluated and not diffusion:
        scheme |= {key: value for key, value in evaluated.items() if key not in scheme}
    else:
        scheme |= default_solver(run.path, scheme.get("diffusion"))
    scheme |= {} if steps is None else {"steps": steps}
    return resolve_scheme(scheme, run.registry, "--solver", Path.cwd())


def check_weights(name: str) -> Any:
    """Check the value of --weights.

    Raises:
        ConfigError: for another name than ema and raw.
    """
    if name not in ("ema", "raw"):
        from gftkit.kernel.errors import ConfigError

        raise ConfigError(f"--weights: wanted ema or raw, got '{name}'.")
    return name
