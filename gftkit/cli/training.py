"""``gft pretrain``, ``gft finetune`` and ``gft distill``."""

import os
import sys
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

import typer

from gftkit.cli.options import ConfigFile, Device, Json, Out, Overrides, Resume
from gftkit.cli.output import print_result, table

if TYPE_CHECKING:
    from gftkit.api import Run


def pretrain(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a flow from scratch by flow matching.

    Example: gft pretrain recipes/demo/pretrained.yaml --set train.steps=500 --out runs/pre
    """
    from gftkit.api import pretrain as train

    _train(train, config, overrides=overrides, out=out, device=device, resume=resume, as_json=as_json)


def finetune(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Adapt a pretrained flow to new data by Gradual Fine-Tuning.

    The configuration adds `pretrained: RUN` and `schedule: {name: exponential}`; drift, source, path and coupling are
    inherited from RUN unless given.

    Example: gft finetune recipes/demo/gradual.yaml --set pretrained=../../runs/pre --out runs/gft
    """
    from gftkit.api import finetune as train

    _train(train, config, overrides=overrides, out=out, device=device, resume=resume, as_json=as_json)


def distill(
    config: ConfigFile,
    overrides: Overrides = None,
    out: Out = None,
    device: Device = "auto",
    resume: Resume = False,
    as_json: Json = False,
) -> None:
    """Train a flow-map student of a finished run: one network that jumps from any time to any later one.

    The configuration needs `pretrained: RUN` only; data, path, coupling and evaluation are inherited from RUN unless
    given.

    Example: gft distill recipes/fewstep/student.yaml --set pretrained=../../runs/demo/exponential --out runs/student
    """
    from gftkit.api import distill as train

    _train(train, config, overrides=overrides, out=out, device=device, resume=resume, as_json=as_json)


def _train(
    train: Callable[..., "Run"],
    config: Path,
    *,
    overrides: list[str] | None,
    out: Path | None,
    device: str,
    resume: bool,
    as_json: bool,
) -> None:
    folder = out or Path("runs") / config.stem
    finished = resume and (folder / "model.safetensors").is_file()
    try:
        run = train(config, folder, overrides=overrides or [], device=device, resume=resume, quiet=as_json)
    except KeyboardInterrupt:
        resumable = any((folder / "checkpoints").glob("*"))
        cure = "Continue it with --resume." if resumable else "It had no checkpoint yet (see train.checkpoint_every)."
        print(f"Interrupted: {folder} is unfinished. {cure}", file=sys.stderr)
        raise typer.Exit(130) from None
    if finished:
        print(f"{folder} is finished already: nothing was trained.", file=sys.stderr)
    if os.environ.get("RANK", "0") != "0":
        return  # of several processes, only the main one prints the result
    from gftkit.recording.html import estimate_rows
    from gftkit.runs.folder import SUMMARY
    from gftkit.storage.documents import read_json

    summary = read_json(run.folder / SUMMARY)

    if not as_json:
        table(["metric", "value"], estimate_rows(summary["ema"]))
        if "stopped" in summary:
            print(
                f"Stopped after step {summary['steps']} of {summary['stopped']['of']}: {summary['stopped']['reason']}"
            )
    report = folder / "report.html"
    place = f"Run in {folder}: open {report}" if report.is_file() else f"Run in {folder}"
    print_result({"run": str(folder), **summary}, place, as_json)
