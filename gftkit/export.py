"""Export: a finished run's weights in files that other programs read."""

from pathlib import Path
from typing import Literal

from gftkit import adapters
from gftkit.errors import ConfigError, RunError
from gftkit.files import read_json, read_notes, read_tensors, write_json, write_tensors
from gftkit.foreign.drift import own_network
from gftkit.run import ADAPTER, MODEL, Run, Weights

What = Literal["merged", "adapter"]


def export(run: Run, out: Path, what: What = "merged", weights: Weights = "ema", force: bool = False) -> list[Path]:
    """Write the weights of a finished run.

    Args:
        run: the run.
        out: the folder to write into.
        what: "merged" for ``model.safetensors`` with the state dict of the network, adapters merged in; "adapter" for
            the adapters in peft's own format. Of a foreign network, both have its own names.
        weights: "ema" or "raw".
        force: overwrite files of the same names.

    Returns:
        The files.

    Raises:
        RunError: for a run that isn't finished, a checkpoint that is gone, or files that exist.
        ConfigError: for the adapter of a run that has none.
    """
    if what == "adapter" and run.config.adapters is None:
        raise ConfigError(f"{run.folder} has no adapters: all its weights were trained. Export them merged.")
    files = [out / name for name in ([MODEL] if what == "merged" else [adapters.CONFIG, adapters.WEIGHTS])]
    taken = [str(path) for path in files if path.exists()]
    if taken and not force:
        raise RunError(f"{', '.join(taken)} exists. Choose another --out, or overwrite by --force.")
    if what == "merged":
        network = own_network(run.drift(weights))
        write_tensors(files[0], network.state_dict(), read_notes(run.folder / MODEL))
        return files
    facts = run.weights()[1]
    if weights == "ema":
        held, notes = read_tensors(run.folder / ADAPTER / adapters.WEIGHTS)
        write_tensors(files[1], held, notes)
        write_json(files[0], read_json(run.folder / ADAPTER / adapters.CONFIG))
    else:
        run.adapted(facts).save(out)
    return files
