"""The measurements of runs that are sampled at a retention, which are kept beside the runs."""

from pathlib import Path
from typing import Any

import torch

from gftkit.api import Run
from gftkit.experiment.restore import weights_of
from gftkit.generation.requested_retention import RetentionRequest
from gftkit.kernel.errors import RunError
from gftkit.kernel.options import plain
from gftkit.storage.documents import nan_to_none, read_json, write_json
from gftkit.storage.log import measured_names

MEASUREMENTS = "blend.json"


def measure_blend(run: Run, retention: RetentionRequest, folder: Path, device: torch.device | str) -> None:
    """Measure the averaged weights of a finished run, blended with its anchor, by every metric of its configuration.

    The source samples and the noise are those of the run's own evaluation. Written whole, or not at all.

    Raises:
        GftkitError: for a run that isn't finished or has no anchor, and as a metric raises.
    """
    _, digest = weights_of(run)
    values = run.evaluate(device=device, retention=retention)
    folder.mkdir(parents=True, exist_ok=True)
    content = {"retention": plain(retention), "weights": digest, "values": nan_to_none(values)}
    write_json(folder / MEASUREMENTS, content)


def measured_blend(run: Run, retention: RetentionRequest, folder: Path) -> dict[str, Any] | None:
    """What ``measure_blend`` measured, by metric; None where it hasn't yet.

    Raises:
        RunError: for measurements at another retention, or of other weights than the run has now.
    """
    file = folder / MEASUREMENTS
    if not file.exists():
        return None
    kept = read_json(file)
    if kept["retention"] != plain(retention):
        raise RunError(
            f"{file} was measured at the retention {kept['retention']}, and the study's file has {plain(retention)} "
            f"now. Choose another name for the method, or delete {folder}."
        )
    if kept["weights"] != weights_of(run)[1]:
        raise RunError(f"{file} was measured on other weights than {run.folder} has now. Delete {folder}.")
    return {name: kept["values"][name] for name in measured_names(kept["values"])}
