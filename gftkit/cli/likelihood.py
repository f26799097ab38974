"""``gft likelihood``: log-likelihoods of data under a finished run."""

import json
from pathlib import Path
from typing import Annotated

import typer
from rich.console import Console

from gftkit.cli.options import Device, Json, Retention, RunPath, WeightsName, parse_retention
from gftkit.cli.output import check_absent, table
from gftkit.cli.sampling import check_weights


def likelihood(
    run: RunPath,
    data: Annotated[
        str | None, typer.Option(help="Samples: '{name: NAME, ...}'.  (default: the run's held-out data)")
    ] = None,
    count: Annotated[
        int | None, typer.Option(help="Number of samples.  (default: that of the run's evaluations)")
    ] = None,
    solver: Annotated[
        str | None, typer.Option(help="ODE solver: '{name: NAME, steps: N, ...}'.  (default: rk4, 20 steps)")
    ] = None,
    probes: Annotated[
        int | None,
        typer.Option(
            help="Probes of the divergence, 0 for the exact one.  (default: exact up to 64 dimensions, then 8)"
        ),
    ] = None,
    quantum: Annotated[
        float | None, typer.Option(help="Step of discrete data, such as 1 for 0..255: adds noise of that width.")
    ] = None,
    seed: Annotated[int, typer.Option(min=0, help="Seed of the subset of the data, the probes and the noise.")] = 0,
    weights: WeightsName = "ema",
    retention: Retention = None,
    out: Annotated[Path | None, typer.Option(help="Write bits, log and stderr of each sample: .safetensors.")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure bits per dimension of held-out data under a run's ODE, by the change of variables.

    Example: gft likelihood runs/gft --count 200 --solver '{name: rk4, steps: 40}'
    """
    from rich.progress import Progress

    from gftkit.api import Run
    from gftkit.generation.run_likelihood import likelihood as measure
    from gftkit.kernel.errors import ConfigError
    from gftkit.recording.html import estimate_rows
    from gftkit.runtime.environment import resolve_device
    from gftkit.sampling.scheme import resolve_scheme
    from gftkit.storage.documents import parse_yaml
    from gftkit.storage.tensors import write_tensors

    if out is not None and out.suffix != ".safetensors":
        raise ConfigError(f"--out {out}: wanted .safetensors, got '{out.suffix}'.")
    if out is not None:
        check_absent(out, "--out", force)
    opened = Run.open(run)
    registry, here = opened.registry, Path.cwd()
    data_spec = registry.resolve("dataset", parse_yaml(data, "--data"), "--data", here) if data is not None else None
    scheme = resolve_scheme(parse_yaml(solver, "--solver"), registry, "--solver", here) if solver is not None else None
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("likelihood", total=count or opened.config.evaluate.count)
        measured = measure(
            opened,
            data_spec,
            count=count,
            solver=scheme,
            probes=probes,
            quantum=quantum,
            seed=seed,
            weights=check_weights(weights),
            retention=parse_retention(retention),
            device=resolve_device(device),
            advance=lambda done: progress.advance(task, done),
        )
    if out is not None:
        write_tensors(out, {"bits": measured.bits, "log": measured.log, "stderr": measured.stderr}, {})
    if as_json:
        print(json.dumps(measured.to_dict(), indent=2))
    else:
        table(["measured", "value"], estimate_rows(measured.to_dict()))
