"""Export: a finished run's weights in files that other programs read."""

from pathlib import Path
from typing import Literal

from gftkit.experiment.networks import adapted_drift
from gftkit.experiment.restore import trained_drift
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.networks import adapters
from gftkit.networks.foreign import own_network
from gftkit.runs.folder import ADAPTER, MODEL, RunFolder, Weights
from gftkit.storage.documents import read_json, write_json
from gftkit.storage.tensors import read_tensors, write_tensors

Content = Literal["merged", "adapter"]


def export(
    run: RunFolder, out: Path, content: Content = "merged", weights: Weights = "ema", *, force: bool = False
) -> list[Path]:
    """Write the weights of a finished run.

    Args:
        run: the run.
        out: the folder to write into.
        content: "merged" for ``model.safetensors`` with the state dict of the network, adapters merged in; "adapter"
            for the adapters in peft's own format. Of a foreign network, both have its own names.
        weights: "ema" or "raw".
        force: overwrite files of the same names.

    Returns:
        The files.

    Raises:
        RunError: for a run that isn't finished, a missing checkpoint, or files that exist.
        ConfigError: for the adapter of a run that has none.
    """
    if content == "adapter" and run.config.adapters is None:
        raise ConfigError(
            f"{run.folder} has no adapters: all its weights were trained. Export them merged, without --adapter."
        )
    files = [out / name for name in ([MODEL] if content == "merged" else [adapters.CONFIG, adapters.WEIGHTS])]
    taken = [str(path) for path in files if path.exists()]
    if taken and not force:
        raise RunError(f"{', '.join(taken)} exists. Choose another --out, or overwrite with --force.")
    if content == "merged":
        network = own_network(trained_drift(run, weights)[0])
        write_tensors(files[0], network.state_dict(), run.notes)
        return files
    if weights == "ema":
        averages, notes = read_tensors(run.folder / ADAPTER / adapters.WEIGHTS)
        write_tensors(files[1], averages, notes)
        write_json(files[0], read_json(run.folder / ADAPTER / adapters.CONFIG))
    else:
        adapted_drift(run, run.facts).save(out)
    return files
