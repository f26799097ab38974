"""The transport map of a run: fitted before its first step, kept in its folder, and the same after a resume."""

from pathlib import Path
from typing import Any

from gftkit.data.transport import Transport, numbers_of
from gftkit.kernel.errors import RunError
from gftkit.kernel.options import plain
from gftkit.networks.anchor import short_hash
from gftkit.runs.schema import Config
from gftkit.runtime import devices
from gftkit.runtime.progress import Progress
from gftkit.storage.tensors import State, digest, read_tensors, write_tensors

FILE = "coupling.safetensors"
"""The fitted map in a run folder."""


def prepare_transport(
    transport: Transport, out: Path, config: Config, accelerator: Any, progress: Progress, expected: str | None = None
) -> None:
    """Read the data, and fit the map to them, or read the one that the run folder has; a collective call.

    The main process fits and writes; all others receive its map, so that all have one.

    Args:
        transport: of the run; ready for pairs afterwards.
        out: the run folder.
        config: of the run.
        accelerator: of the accelerate library.
        progress: where the fit is shown.
        expected: the hash of the map in the checkpoint that the run resumes from.

    Raises:
        RunError: for data, on any process, that the map isn't fitted to, and for another map than the checkpoint's.
        ConfigError: from the fit, where it doesn't reach what the coupling's options ask for.
    """
    transport.read()
    spec = {"coupling": plain(config.coupling), "source": plain(config.source), "seed": config.seed}
    origin = {**spec, "labels": transport.within_labels, "data": transport.digest}
    state, fitted_to = None, None
    if accelerator.is_main_process:
        state, fitted_to = _read_or_fit(transport, out, config, accelerator, progress, origin, resumed=expected)
    state, fitted_to = devices.broadcast(accelerator, (state, fitted_to))
    if fitted_to != origin:
        raise RunError(
            f"{out / FILE}: the coupling was fitted to other data, another source or another seed: data "
            f"{short_hash(fitted_to['data'])}, now {short_hash(origin['data'])}. Restore them, or start a new run with "
            f"another --out."
        )
    if expected is not None and digest(state) != expected:
        raise RunError(
            f"{out / FILE}: the fitted coupling has hash {short_hash(digest(state))}, and the checkpoint's has "
            f"{short_hash(expected)}. Restore the file, or start a new run with another --out."
        )
    transport.load(state, accelerator.device)


def _read_or_fit(
    transport: Transport,
    out: Path,
    config: Config,
    accelerator: Any,
    progress: Progress,
    origin: dict[str, Any],
    *,
    resumed: str | None,
) -> tuple[State, dict[str, Any]]:
    """The map in the run folder and what it was fitted to; fitted now where there is none, or a refused start's."""
    if (out / FILE).is_file():
        state, notes = read_tensors(out / FILE, ours=True)
        if resumed is not None or notes["origin"] == origin:
            return state, notes["origin"]
    with progress.fitting("coupling") as show:
        state = transport.fit(accelerator.device, show)
    write_tensors(out / FILE, state, {"origin": origin})
    numbers = numbers_of(state)
    worst = {name: max(each[name] for each in numbers.values()) for each in numbers.values() for name in each}
    of = "" if len(numbers) == 1 else f", the largest of {len(numbers)} labels"
    errors = {name: f" ± {worst[f'{name}_stderr']:.1g}" for name in worst if f"{name}_stderr" in worst}
    shown = ", ".join(f"{n} {x:.3g}{errors.get(n, '')}" for n, x in worst.items() if not n.endswith("_stderr"))
    progress.say(f"Coupling {config.coupling['name']}: {shown}{of}.")
    return state, origin
