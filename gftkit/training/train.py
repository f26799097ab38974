"""Training by a configuration: a run folder from its first step to its last."""

from collections.abc import Mapping, Sequence
from contextlib import nullcontext, suppress
from pathlib import Path
from typing import Any

import torch

from gftkit.experiment.build import build
from gftkit.kernel.errors import GftkitError, RunError
from gftkit.kernel.loading import load
from gftkit.kernel.registry import Registry
from gftkit.runs.folder import CHECKPOINTS, CONFIG, LOG, MODEL, RunFolder, config_from_dict, is_run
from gftkit.runs.resolve import resolve_config
from gftkit.runs.schema import Config, RunKind
from gftkit.runtime.devices import cuda_devices, launch_warnings, start_accelerator
from gftkit.runtime.progress import Progress
from gftkit.storage.documents import read_yaml
from gftkit.storage.files import lock_folder
from gftkit.training.loop import Loop


def train(
    kind: RunKind,
    source: Path | str | Mapping[str, Any],
    out: Path | str,
    registry: Registry | None = None,
    overrides: Sequence[str] = (),
    device: str = "auto",
    *,
    resume: bool = False,
    quiet: bool = True,
) -> RunFolder:
    """Train by a configuration, and write the run folder.

    Args:
        kind: "pretrain", "finetune" or "distill".
        source: a YAML file or the same as a mapping.
        out: the run folder; it must not contain a run, unless that is resumed.
        registry: components; by default every installed plugin.
        overrides: settings as ``a.b=c``, which win over the file.
        device: "auto" (the accelerator where there is one), "cpu" or "cuda".
        resume: continue an unfinished run of the same configuration.
        quiet: show no progress bar.

    Raises:
        GftkitError: for any bad input, before training starts.
        DivergenceError: where the loss stops being finite; the last good checkpoint is kept.
    """
    registry = registry or load()
    out = Path(out)
    resolution = resolve_config(source, kind, registry, overrides)
    config, warnings = resolution.config, [*resolution.warnings]
    _check_folder(out, config, resume=resume, registry=registry)
    if resume and (out / MODEL).is_file():
        return RunFolder(out, config, registry)
    accelerator = start_accelerator(device)
    warnings += launch_warnings(accelerator, config.train.precision)
    # New weights and dropout are drawn from torch's global generator; the caller's state comes back at the end.
    with torch.random.fork_rng(devices=cuda_devices(accelerator.device)):
        experiment = build(resolution, registry)
        progress = Progress(config.train.steps, kind, quiet=quiet or not accelerator.is_main_process)
        with lock_folder(out) if accelerator.is_main_process else nullcontext():
            if accelerator.is_main_process:
                _check_folder(
                    out, config, resume=resume, registry=registry
                )  # again: another run may have begun before the lock
            Loop(experiment, registry, out, accelerator, progress).run(warnings)
    return RunFolder(out, config, registry)


def changes(folder: Path, config: Config, registry: Registry) -> list[str]:
    """The keys in which a configuration differs from that of the run in a folder; trackers may differ.

    An option that a component has gained since the run began counts with its default.
    """

    def differences(before: Config) -> list[str]:
        one, other = before.to_dict(), config.to_dict()
        return sorted(key for key in {*one, *other} - {"track"} if one.get(key) != other.get(key))

    before = config_from_dict(read_yaml(folder / CONFIG))
    changed = differences(before)
    if changed:
        with suppress(GftkitError):
            changed = differences(resolve_config(before.to_dict(), before.kind, registry).config)
    return changed


def _check_folder(out: Path, config: Config, *, resume: bool, registry: Registry) -> None:
    if resume:
        if not is_run(out):
            raise RunError(f"{out} contains no run to resume. Leave --resume out to start one.")
        changed = changes(out, config, registry)
        if changed:
            raise RunError(
                f"{out} was started with another configuration: {', '.join(changed)} differ. A run can be resumed only "
                f"with its own configuration. For a new run choose another --out, or delete {out}."
            )
        return
    taken = [name for name in (CONFIG, MODEL, LOG, CHECKPOINTS) if (out / name).exists()]
    if taken:
        raise RunError(
            f"{out} already contains a run ({', '.join(taken)}). Choose another folder with --out, or continue an "
            f"unfinished run with --resume."
        )
