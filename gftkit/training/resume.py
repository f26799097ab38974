"""Checks before a run is resumed: of a checkpoint against the configuration, and of processes against each other."""

from collections.abc import Mapping
from typing import Any

from gftkit.experiment.build import Experiment
from gftkit.kernel.errors import RunError
from gftkit.networks.anchor import Anchor, short_hash
from gftkit.runs.checkpoint import Checkpoint
from gftkit.runtime import devices, environment
from gftkit.storage.tensors import digest


class ResumeGuard:
    """Refuses a checkpoint of other data, another anchor or other first weights, and processes that differ.

    Args:
        experiment: everything the configuration names.
        anchor: as the steps use it; None in pretraining.
    """

    def __init__(self, experiment: Experiment, anchor: Anchor | None) -> None:
        self._experiment, self._config, self._anchor = experiment, experiment.config, anchor
        size = experiment.matching.pairs.order.samples.size
        self._data = f"{size} samples, digest {short_hash(digest(experiment.measurement.training.tensors()))}"

    def check_agreement(self, accelerator: Any, first: int) -> None:
        """Refuse processes that start at another step or from other files; a collective call.

        Raises:
            RunError: naming what differs.
        """
        facts = {
            "the step to resume from, by the checkpoints in the run folder": first,
            "the configuration": self._config.to_dict(),
            "the anchors": list(self._experiment.networks.anchors),
            "the data": self._data,
            "the versions": environment.versions(),
        }
        devices.check_agreement(accelerator, facts)

    def check(self, checkpoint: Checkpoint) -> None:
        """Refuse a checkpoint from which this run, as it is built now, would not repeat the undisturbed one.

        Raises:
            RunError: naming what has changed since the checkpoint was written.
        """
        self._check_data(checkpoint)
        if self._anchor is not None:
            self._check_anchor(checkpoint, self._anchor)

    def _check_data(self, checkpoint: Checkpoint) -> None:
        if checkpoint.notes["data"] != self._data:
            raise RunError(
                f"{checkpoint.path}: the data have changed since this run started: {checkpoint.notes['data']}, now "
                f"{self._data}. Restore them, or start a new run with another --out."
            )

    def _check_anchor(self, checkpoint: Checkpoint, anchor: Anchor) -> None:
        config, networks, notes = self._config, self._experiment.networks, checkpoint.notes
        if notes.get("anchors") != list(networks.anchors):
            raise RunError(
                f"{checkpoint.path}: the anchor ({anchor.kind}) has changed since this run started: hash "
                f"{short_hash(str(notes.get('anchor')))}, now {short_hash(anchor.hash)}. The weights at "
                f"{(config.anchor or {}).get('pretrained') or config.start}, or the spec of their drift, have changed. "
                f"Restore them, or start a new run with another --out."
            )
        # The anchor's hash says nothing about the weights that adapters or the pull of L2-SP start from.
        if networks.base is not None and notes.get("base") != networks.base:
            content = "adapters for" if networks.adapted is not None else "weights that are pulled towards those of"
            raise RunError(
                f"{checkpoint.path} contains {content} {config.start}, and the weights there have changed. "
                f"Restore them, or start a new run with another --out."
            )

    def origin(self) -> dict[str, Any]:
        """Hashes of the anchor and of the anchors of earlier fine-tunes, for a file's metadata."""
        networks = self._experiment.networks
        hashes: dict[str, Any] = {
            "anchor": None if self._anchor is None else self._anchor.hash,
            "anchors": list(networks.anchors),
        }
        return hashes if networks.base is None else {**hashes, "base": networks.base}

    def notes(self) -> Mapping[str, Any]:
        """The values that a resumed run compares, for a checkpoint's metadata."""
        transport = self._experiment.matching.pairs.transport
        fitted = {} if transport is None else {"transport": transport.hash}
        return {"data": self._data, **fitted, **self.origin()}
