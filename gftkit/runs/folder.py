"""The files of a run folder: configuration, weights, records."""

import hashlib
from collections.abc import Mapping
from functools import cached_property
from pathlib import Path
from typing import Any, Literal, Self

import yaml

from gftkit.data.description import Facts
from gftkit.kernel.contracts import Path as ConditionalPath
from gftkit.kernel.errors import ConfigError, RunError, WeightsError
from gftkit.kernel.loading import load
from gftkit.kernel.registry import Registry, Resolved
from gftkit.networks.adapters import Adapters
from gftkit.runs import checkpoint
from gftkit.runs.schema import KEYS, Config, Evaluate, Objective, Train, without_weights
from gftkit.storage.documents import parse_section, read_json, read_yaml, write_text
from gftkit.storage.log import read_log
from gftkit.storage.tensors import State, TensorFile, read_notes, read_tensor_file, write_tensors

Weights = Literal["ema", "raw"]

CONFIG = "config.yaml"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
LOG = "metrics.jsonl"
SUMMARY = "summary.json"
CLOCK = "seconds.jsonl"


def is_run(folder: Path) -> bool:
    """True for the folder of a run, finished or not."""
    return (folder / CONFIG).is_file()


class RunFolder:
    """A run folder: its configuration and the files of its run. Open one by ``open``.

    Networks and samples of it are built by ``gftkit.experiment.restore`` and ``gftkit.generation``.

    Args:
        folder: its path.
        config: the run's configuration.
        registry: the components that the configuration names.
    """

    def __init__(self, folder: Path, config: Config, registry: Registry) -> None:
        self.folder, self.config, self.registry = folder, config, registry
        self._specs: dict[str, Resolved] = {}

    @classmethod
    def open(cls, folder: Path | str, registry: Registry | None = None) -> Self:
        """The run in a folder.

        Raises:
            RunError: for a folder without a run.
            ConfigError: where its config.yaml is damaged.
        """
        folder = Path(folder)
        if folder.is_file():
            raise RunError(f"{folder} is a file: wanted the run folder that contains it, {folder.parent}.")
        if not is_run(folder):
            raise RunError(
                f"{folder} is no run folder: {CONFIG} is missing. Make one with `gft pretrain CONFIG --out DIR`."
            )
        return cls(folder, config_from_dict(read_yaml(folder / CONFIG)), registry or load())

    def spec(self, key: str) -> Resolved:
        """The spec of a component that the run was made with, resolved once.

        Options that the component has been given since then have their defaults. A drift's ``weights`` are left out:
        the file that it first started from may be gone, and a run has weights of its own.

        Args:
            key: "drift", "path", "source", "coupling" or "data".
        """
        if key not in self._specs:
            kind = "dataset" if key in ("source", "data") else key
            spec = getattr(self.config, key)
            self._specs[key] = self.registry.resolve(kind, without_weights(spec) if key == "drift" else spec, key)
        return self._specs[key]

    @cached_property
    def path(self) -> ConditionalPath:
        """The conditional path that the run was trained on."""
        path: ConditionalPath = self.registry.build("path", self.spec("path"))
        return path

    @property
    def finished(self) -> bool:
        """True where the run has its final weights, which are written last."""
        return (self.folder / MODEL).is_file()

    def steps(self) -> int:
        """Steps that a finished run took: fewer than ``train.steps`` where a rule stopped it."""
        return int(read_json(self.folder / SUMMARY)["steps"])

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_log(self.folder / LOG)

    def seconds(self) -> dict[int, float]:
        """Seconds of training up to each evaluation, by step, evaluations left out; empty where they weren't kept."""
        return {line["step"]: line["training"] for line in read_log(self.folder / CLOCK)}

    @cached_property
    def notes(self) -> dict[str, Any]:
        """The metadata of model.safetensors: read without its tensors.

        Raises:
            RunError: where the run isn't finished.
            WeightsError: where the file is damaged, or wasn't written by a run.
        """
        # Without the tensors: facts and anchors are asked for more often than weights, which may be large.
        self._check_finished()
        return self._checked(read_notes(self.folder / MODEL))

    @property
    def has_base(self) -> bool:
        """False where model.safetensors lacks the weights, because only adapters were trained; raises as ``notes``."""
        return "adapter" not in self.notes

    @property
    def adapted_digest(self) -> str:
        """SHA-256 of what determines the averaged weights of a run without ``has_base``: adapters, and their base."""
        return hashlib.sha256(f"{self.notes['base']} {self.notes['adapter']}".encode()).hexdigest()

    @property
    def facts(self) -> Facts:
        """The facts of the run's data; raises as ``notes``."""
        return Facts.of(self.notes)

    def averages(self) -> TensorFile:
        """What model.safetensors contains: the averaged weights, where ``has_base``; raises as ``notes``."""
        self._check_finished()
        file = read_tensor_file(self.folder / MODEL)
        self._checked(file.notes)
        return file

    def last_checkpoint(self) -> checkpoint.Checkpoint:
        """The newest checkpoint that can be read.

        Raises:
            RunError: where none is left.
        """
        newest, _ = checkpoint.latest(self.folder / CHECKPOINTS)
        if newest is None:
            raise RunError(f"{self.folder}: no checkpoint is left, so there are no raw weights. Use the EMA weights.")
        return newest

    def _check_finished(self) -> None:
        if not self.finished:
            raise RunError(f"{self.folder}: the run isn't finished ({MODEL} is missing). Continue it with --resume.")

    def _checked(self, notes: dict[str, Any]) -> dict[str, Any]:
        if "event_shape" not in notes:
            raise WeightsError(f"{self.folder / MODEL} wasn't written by a run: its metadata are missing.")
        return notes


def config_from_dict(values: Mapping[str, Any]) -> Config:
    """The configuration of a run from the values that it wrote, the inverse of ``Config.to_dict``.

    Everything is in them: nothing is inherited, and no other file is read.

    Raises:
        ConfigError: where a key is missing or damaged.
    """
    # A key without a value isn't written, and of those that every kind of run has only `stop` may be without one.
    required = [*(key for key in KEYS if key != "stop"), *(["anchor"] if values.get("schedule") else [])]
    missing = [key for key in required if key not in values]
    if missing:
        raise ConfigError(f"{CONFIG}: {', '.join(missing)} missing: the file is damaged or wasn't written by a run.")
    pretrained = values.get("pretrained")
    return Config(
        kind="finetune" if values.get("schedule") else "distill" if pretrained else "pretrain",
        **{key: values[key] for key in ("drift", "data", "source", "path", "coupling", "monitors", "seed")},
        train=parse_section(Train, values["train"], "train"),
        evaluate=parse_section(Evaluate, values["evaluate"], "evaluate"),
        pretrained=Path(pretrained) if pretrained else None,
        schedule=values.get("schedule"),
        objective=parse_section(Objective, values["objective"], "objective"),
        anchor=values.get("anchor"),
        track=values["track"],
        adapters=parse_section(Adapters, values["adapters"], "adapters") if values.get("adapters") else None,
        stop=values.get("stop"),
    )


def write_model(folder: Path, weights: State, facts: Facts, notes: Mapping[str, Any]) -> None:
    """Write model.safetensors."""
    write_tensors(folder / MODEL, weights, {**notes, **facts.to_dict()})


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml."""
    write_text(folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
