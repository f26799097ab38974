"""The command line ``gft``. Nothing heavy is imported until a command runs, so that ``--help`` answers at once."""

import json
import os
import sys
import traceback
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer
from rich.console import Console
from rich.markup import escape

from gftkit.errors import ConfigError, GftkitError

if TYPE_CHECKING:
    from gftkit.run import Run

app = typer.Typer(
    name="gft",
    help="Gradual Fine-Tuning for flow matching models: adapt a pretrained flow to new data, and check the theory.",
    epilog="A first run: gft pretrain pretrain.yaml --out runs/pre; gft finetune finetune.yaml --out runs/gft; "
    "gft sample runs/gft. See `gft COMMAND --help`.",
    no_args_is_help=True,
    pretty_exceptions_enable=False,
    context_settings={"help_option_names": ["-h", "--help"]},
)
plugins_app = typer.Typer(help="List the installed components, or show one.", invoke_without_command=True)
app.add_typer(plugins_app, name="plugins")

ConfigFile = Annotated[Path, typer.Argument(metavar="CONFIG", help="YAML file that describes the run.")]
RunFolder = Annotated[Path, typer.Argument(metavar="RUN", help="Folder of a finished run.")]
Overrides = Annotated[
    list[str] | None, typer.Option("--set", metavar="A.B=C", help="Override a key of the config; may be repeated.")
]
Out = Annotated[Path | None, typer.Option(help="Run folder to make.  (default: runs/ and the name of CONFIG)")]
Device = Annotated[str, typer.Option(help="auto, cpu or cuda.")]
Json = Annotated[bool, typer.Option("--json", help="Print the result as JSON on stdout.")]
Resume = Annotated[bool, typer.Option("--resume", help="Go on with the unfinished run in --out.")]
WeightsName = Annotated[str, typer.Option(help="ema or raw.")]


def _version(wanted: bool) -> None:
    if wanted:
        from gftkit import __version__

        print(f"gftkit {__version__}")
        raise typer.Exit


@app.callback()
def _gft(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version and exit.")
    ] = False,
    debug: Annotated[bool, typer.Option("--debug", help="Show the traceback of an error.")] = False,
) -> None:
    pass


@app.command()
def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a flow from scratch by flow matching.

    Example: gft pretrain recipes/demo/pretrain.yaml --set train.steps=500 --out runs/pre
    """
    from gftkit.training import pretrain as go

    _train(go, config, overrides, out, device, resume, as_json)


@app.command()
def finetune(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Adapt a pretrained flow to new data by Gradual Fine-Tuning.

    The config adds `pretrained: RUN` and `schedule: {name: exponential}`; drift, source, path and coupling are
    inherited from RUN unless given.

    Example: gft finetune recipes/demo/gft.yaml --set pretrained=../../runs/pre --out runs/gft
    """
    from gftkit.training import finetune as go

    _train(go, config, overrides, out, device, resume, as_json)


@app.command()
def sample(
    run: RunFolder,
    count: Annotated[int, typer.Option(help="How many samples.")] = 64,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of source samples, labels and noise.")] = 0,
    solver: Annotated[str | None, typer.Option(help="Solver by name.  (default: as the run is evaluated)")] = None,
    steps: Annotated[int | None, typer.Option(help="Solver steps.  (default: as the run is evaluated)")] = None,
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
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Sample from a finished run, in the values of the data that it was trained on.

    Example: gft sample runs/gft --count 100 --solver heun --steps 10 --out samples.png
    """
    from rich.progress import Progress

    from gftkit.asking import read_conditions
    from gftkit.environment import device_of
    from gftkit.run import Run
    from gftkit.samples import check_target, write_samples

    opened = Run.open(run)
    facts = opened.weights(_weights(weights))[1]
    target = out or run / f"samples-seed-{seed}.npz"
    check_target(target, facts.event_shape, force)
    given = None if conditions is None else read_conditions(conditions)
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("sampling", total=count)
        made, asked = opened.samples(
            count,
            seed,
            _solver(opened, solver, steps),
            label,
            _weights(weights),
            device_of(device),
            lambda done: progress.advance(task, done),
            guidance,
            given,
        )
    write_samples(target, made, asked, facts.range)
    _answer({"file": str(target), "count": count, "seed": seed}, f"{count} samples in {target}", as_json)


@app.command()
def evaluate(
    run: RunFolder,
    overrides: Overrides = None,
    weights: WeightsName = "ema",
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Measure a finished run by the metrics of its config, each with its standard error.

    Example: gft evaluate runs/gft --set evaluate.count=2000 --set evaluate.solver='{name: heun, steps: 10}'
    """
    from gftkit.environment import device_of
    from gftkit.report import estimates
    from gftkit.run import Run

    values = Run.open(run).evaluate(overrides or [], _weights(weights), device_of(device))
    if as_json:
        print(json.dumps(values, indent=2))
    else:
        _table(["metric", "value"], estimates(values))


@app.command()
def export(
    run: RunFolder,
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
    from gftkit.export import export as go
    from gftkit.run import Run

    written = go(Run.open(run), out, "adapter" if adapter else "merged", _weights(weights), force)
    _answer({"files": [str(path) for path in written]}, f"Written: {', '.join(map(str, written))}", as_json)


@app.command()
def inspect(
    config: Annotated[
        Path | None,
        typer.Argument(metavar="[CONFIG]", help="YAML file with `drift` and `data`, such as a fine-tune's."),
    ] = None,
    overrides: Overrides = None,
    target: Annotated[str | None, typer.Option(metavar="MODULE:CLASS", help="For --set drift.target=...")] = None,
    weights: Annotated[str | None, typer.Option(metavar="FILE", help="For --set drift.weights=...")] = None,
    data: Annotated[str | None, typer.Option(metavar="NAME", help="For --set data.name=...")] = None,
    count: Annotated[int, typer.Option(help="Pairs to measure on.")] = 2048,
    seed: Annotated[int, typer.Option(min=0, max=2**63 - 1, help="Of pairs and times.")] = 0,
    out: Annotated[
        Path | None, typer.Option(metavar="FILE", help="Write the drift with its convention as YAML.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite --out.")] = False,
    device: Device = "auto",
    as_json: Json = False,
) -> None:
    """Find out the convention of a network: how its time runs, what it predicts, which of its weights to take.

    It tries every hypothesis on samples like those that the network was trained on, ranks them by one-step denoising
    error, and prints the convention to put into a config. Fields that the config's convention has are taken as known.
    Exit code 1: a close call, which is reported as one, or weights that fit no hypothesis.

    Example: gft inspect theirs.yaml --set drift.key=ema --out convention.yaml
    """
    from rich.progress import Progress

    from gftkit import doctor
    from gftkit.environment import device_of
    from gftkit.errors import InspectionError, RunError
    from gftkit.files import finite, write_text
    from gftkit.loading import load

    if out is not None and out.exists() and not force:
        raise RunError(f"{out} exists. Choose another --out, or overwrite it with --force.")
    named = {"drift.target": target, "drift.weights": weights, "data.name": data}
    settings = [f"{key}={json.dumps(value)}" for key, value in named.items() if value is not None]
    console = Console(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        task = progress.add_task("measuring", total=None)
        inspection, drift = doctor.diagnose(
            config,
            load(),
            [*settings, *(overrides or [])],
            count,
            seed,
            device_of(device),
            lambda total: progress.update(task, total=total, completed=0),
            lambda: progress.advance(task),
        )
    clear = inspection.verdict == "clear"
    answer = doctor.block(inspection.best, drift) if clear else None
    if as_json:
        print(json.dumps(finite({**inspection.to_dict(), "config": answer}), indent=2))
    else:
        _table(doctor.HEAD, doctor.rows(inspection))
    words = doctor.conclusion(inspection, drift)
    if inspection.verdict == "none":
        raise InspectionError(words)
    if not as_json:
        print(words)
    if answer is None:
        raise typer.Exit(1)
    if out is not None:
        write_text(out, doctor.as_yaml(answer))


@app.command()
def verify(
    claim: Annotated[
        str | None, typer.Option(metavar="GLOB", help="Only claims of this name; wildcards allowed: 'T04*'.")
    ] = None,
    component: Annotated[
        str | None, typer.Option(metavar="KIND:NAME", help="Only claims about this component: solver:heun.")
    ] = None,
    profile: Annotated[
        str, typer.Option(help="quick: closed forms, solvers, a short training loop. full: trained networks too.")
    ] = "quick",
    device: Device = "cpu",
    seed: Annotated[int, typer.Option(min=0, help="Of the random problems.")] = 0,
    jobs: Annotated[
        int | None,
        typer.Option(min=1, help="Processes.  (default: a core each, at most 8; 1 for a few claims or cuda)"),
    ] = None,
    json_file: Annotated[
        Path | None, typer.Option("--json", metavar="FILE", help="Write the results as JSON; - for stdout.")
    ] = None,
    html: Annotated[Path | None, typer.Option(metavar="FILE", help="Write a self-contained report.")] = None,
    markdown: Annotated[
        bool, typer.Option("--markdown", help="Print the table of claims as Markdown; measure nothing.")
    ] = False,
    run: Annotated[
        Path | None, typer.Option(metavar="RUN", help="Check a finished run instead, by what its monitors measured.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files of --json and --html.")] = False,
) -> None:
    """Check the theory against this code: claims and their negative controls.

    A claim measures the very functions that training and sampling call.
    A mutant is a likely slip in their place, such as a wrong sign.
    Exit code 1: a claim fails, or a mutant of it is not rejected.

    Examples: gft verify --claim 'T04*' --html report.html; gft verify --run runs/gft
    """
    from gftkit import verify as verification
    from gftkit.claims import select
    from gftkit.environment import device_of
    from gftkit.files import write_json
    from gftkit.loading import load

    if profile not in ("quick", "full"):
        raise ConfigError(f"--profile: wanted quick or full, got '{profile}'.")
    on_stdout = json_file is not None and str(json_file) == "-"
    verification.check_targets([None if on_stdout else json_file, html], force)
    if run is not None:
        if claim or component or html or markdown:
            raise ConfigError("--run checks a finished run, not claims: it goes with --json only.")
        _verify_run(run, json_file, on_stdout)
        return
    place = device_of(device)
    chosen = select(load().claims(), profile, claim, component)  # type: ignore[arg-type]
    if markdown:
        print(verification.markdown(chosen))
        return
    if jobs is None:
        jobs = 1 if len(chosen) < verification.FEW or place != "cpu" else min(os.cpu_count() or 1, 8)
    results = verification.run(chosen, seed, place, Console(stderr=on_stdout), jobs)
    if on_stdout:
        print(verification.as_json(results))
    elif json_file is not None:
        write_json(json_file, [result.to_dict() for result in results])
    if html is not None:
        verification.write_html_report(html, results, seed, place)
    Console(stderr=on_stdout).print(verification.summary(results), markup=False, highlight=False, soft_wrap=True)
    if not all(result.passed for result in results):
        raise typer.Exit(1)


def _verify_run(folder: Path, json_file: Path | None, on_stdout: bool) -> None:
    from gftkit.files import write_json
    from gftkit.monitoring import verify_run
    from gftkit.run import Run

    verdicts = verify_run(Run.open(folder))
    found = [
        {"monitor": name, "followed": verdict.followed, "lines": list(verdict.lines), **verdict.findings}
        for name, verdict in verdicts
    ]
    if on_stdout:
        print(json.dumps(found, indent=2))
    elif json_file is not None:
        write_json(json_file, found)
    for name, verdict in verdicts:
        says = "followed the theory" if verdict.followed else "did NOT follow the theory"
        print(f"{folder} {says}, by its monitor '{name}':", file=sys.stderr if on_stdout else sys.stdout)
        for line in verdict.lines:
            print(f"- {line}", file=sys.stderr if on_stdout else sys.stdout)
    if not all(verdict.followed for _, verdict in verdicts):
        raise typer.Exit(1)


@plugins_app.callback()
def plugins(context: typer.Context, as_json: Json = False) -> None:
    """List the installed components by kind, and the plugins that failed to load or are blocked."""
    if context.invoked_subcommand:
        return
    from gftkit.loading import load

    registry = load()
    components = [registry.describe(kind, name) for kind in registry.kinds() for name in registry.names(kind)]
    if as_json:
        listed = [{**vars(p.origin), "status": p.status, "error": p.error or None} for p in registry.plugins]
        print(json.dumps({"components": [found.to_dict() for found in components], "plugins": listed}, indent=2))
        return
    rows = [(found.kind, found.name, found.summary, f"{found.distribution} {found.version}") for found in components]
    _table(["kind", "name", "what it is", "from"], rows)
    for plugin in registry.plugins:
        if plugin.status != "loaded":
            print(f"{plugin.origin} {plugin.status}{': ' + plugin.error if plugin.error else ''}")


@plugins_app.command("show")
def show(
    kind: Annotated[str, typer.Argument(help="Kind of component, e.g. schedule.")],
    name: Annotated[str, typer.Argument(help="Its name, e.g. exponential.")],
    as_json: Json = False,
) -> None:
    """Show a component: what it is, its options with types, ranges and defaults, and where it comes from."""
    from gftkit.loading import load
    from gftkit.options import without_arguments

    found = load().describe(kind, name)
    if as_json:
        print(json.dumps(found.to_dict(), indent=2))
        return
    console = Console()
    console.print(f"[bold]{kind} {name}[/bold]  ({found.distribution} {found.version}, plugin {found.plugin})\n")
    console.print(without_arguments(found.doc).replace("``", ""), markup=False, highlight=False)
    rows = []
    for option in found.to_dict()["options"]:
        default = "required" if option["required"] else json.dumps(option["default"])
        default = "from the data" if option["supplied"] else default
        rows.append((option["name"], option["type"], default, option["help"].replace("``", "")))
    if rows:
        console.print()
        _table(["option", "type", "default", "meaning"], rows)


def _train(
    go: Callable[..., "Run"],
    config: Path,
    overrides: list[str] | None,
    out: Path | None,
    device: str,
    resume: bool,
    as_json: bool,
) -> None:
    folder = out or Path("runs") / config.stem
    finished = resume and (folder / "model.safetensors").is_file()
    try:
        made = go(config, folder, overrides=overrides or [], device=device, resume=resume, quiet=as_json)
    except KeyboardInterrupt:
        kept = any((folder / "checkpoints").glob("*"))
        cure = "Go on with it by --resume." if kept else "It had no checkpoint yet (see train.checkpoint_every)."
        print(f"Interrupted: {folder} is unfinished. {cure}", file=sys.stderr)
        raise typer.Exit(130) from None
    if finished:
        print(f"{folder} was finished already: nothing was trained.", file=sys.stderr)
    if os.environ.get("RANK", "0") != "0":
        return  # one of several processes, and not the one that answers
    from gftkit.files import read_json
    from gftkit.report import estimates

    summary = read_json(made.folder / "summary.json")

    if not as_json:
        _table(["metric", "value"], estimates(summary["ema"]))
    _answer({"run": str(folder), **summary}, f"Run in {folder}: open {folder / 'report.html'}", as_json)


def _solver(run: "Run", name: str | None, steps: int | None) -> dict[str, Any] | None:
    """The solver that the options ask for, over the one that the run is evaluated with."""
    if name is None and steps is None:
        return None
    from gftkit.config import DEFAULT_STEPS
    from gftkit.run import default_solver

    path = run.registry.build("path", run.config.path)
    usual = run.config.evaluate.solver or default_solver(path)
    chosen = {"name": name} if name else {key: value for key, value in usual.items() if key != "steps"}
    if steps is not None and steps < 1:
        raise ConfigError(f"--steps: wanted at least 1, got {steps}.")
    return {**chosen, "steps": steps or usual.get("steps", DEFAULT_STEPS)}


def _weights(name: str) -> Any:
    if name not in ("ema", "raw"):
        raise ConfigError(f"--weights: wanted ema or raw, got '{name}'.")
    return name


def _table(head: list[str], rows: list[Any]) -> None:
    from rich.box import SIMPLE_HEAD
    from rich.table import Table

    table = Table(*head, box=SIMPLE_HEAD, pad_edge=False)
    for row in rows:
        table.add_row(*(escape(cell) for cell in row))
    Console().print(table)


def _answer(values: dict[str, Any], text: str, as_json: bool) -> None:
    print(json.dumps(values, indent=2) if as_json else text)


def main() -> None:
    """Run ``gft``; an error that the user can mend is one message and its exit code."""
    debug = "--debug" in sys.argv
    try:
        app(args=[argument for argument in sys.argv[1:] if argument != "--debug"])
    except GftkitError as error:
        if debug:
            traceback.print_exc()
        text = escape(str(error))  # an error may quote what looks like markup, such as a list
        Console(stderr=True).print(f"[bold red]Error:[/bold red] {text}", highlight=False, soft_wrap=True)
        sys.exit(error.exit_code)
