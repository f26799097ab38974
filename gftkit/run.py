"""A run folder: what a training run wrote, and what can be done with it."""

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from gftkit import checkpoint
from gftkit.adapters import Adapted, Adapters
from gftkit.building import adapt, build_drift, build_metrics, build_source, scheme_of
from gftkit.config import KEYS, Config, Evaluate, Objective, Precision, Spec, Train, section, without_weights
from gftkit.contracts import Batch
from gftkit.data import Samples
from gftkit.errors import ConfigError, RunError, WeightsError
from gftkit.evaluation import Evaluation, Scope, check, measure
from gftkit.facts import Facts
from gftkit.files import (
    State,
    digest,
    load_weights,
    read_json,
    read_notes,
    read_tensors,
    read_yaml,
    write_tensors,
    write_text,
)
from gftkit.loading import load
from gftkit.log import read_log
from gftkit.randomness import stream
from gftkit.reading import override, resolve_evaluate
from gftkit.registry import Registry
from gftkit.sampling.guidance import check_guidance, guided
from gftkit.sampling.stochastic import check_unpaired

Weights = Literal["ema", "raw"]

CONFIG = "config.yaml"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
LOG = "metrics.jsonl"
SUMMARY = "summary.json"
CLOCK = "seconds.jsonl"
BATCH_SIZE = 512
"""Samples that are integrated at once."""


def is_run(folder: Path) -> bool:
    """Whether a folder holds a run, finished or not."""
    return (folder / CONFIG).is_file()


class Run:
    """A run folder: its configuration, weights, samples and measurements. Made by ``Run.open``."""

    def __init__(self, folder: Path, config: Config, registry: Registry) -> None:
        self.folder, self.config, self.registry = folder, config, registry

    @classmethod
    def open(cls, folder: Path | str, registry: Registry | None = None) -> "Run":
        """The run in a folder.

        Raises:
            RunError: for a folder that holds none.
            ConfigError: where its config.yaml is damaged.
        """
        folder = Path(folder)
        if folder.is_file():
            raise RunError(f"{folder} is a file: wanted the run folder that holds it, {folder.parent}.")
        if not is_run(folder):
            raise RunError(
                f"{folder} holds no run: {CONFIG} is missing. Make one with `gft pretrain CONFIG --out DIR`."
            )
        return cls(folder, restore(read_yaml(folder / CONFIG)), registry or load())

    @property
    def finished(self) -> bool:
        """Whether the run went to its end."""
        return (self.folder / MODEL).is_file()

    def steps(self) -> int:
        """Steps that a finished run took: fewer than were asked for where a rule stopped it."""
        return int(read_json(self.folder / SUMMARY)["steps"])

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_log(self.folder / LOG)

    def seconds(self) -> dict[int, float]:
        """Seconds of training up to each evaluation, by step, evaluations left out; empty where they weren't kept."""
        return {line["step"]: line["training"] for line in read_log(self.folder / CLOCK)}

    def weights(self, weights: Weights = "ema") -> tuple[State, Facts]:
        """The EMA weights (of model.safetensors) or the raw ones (of the last checkpoint), and the data's facts.

        Raises:
            RunError: where the run isn't finished.
            WeightsError: where the file is damaged.
        """
        if not self.finished:
            raise RunError(f"{self.folder}: the run isn't finished ({MODEL} is missing). Go on with it by --resume.")
        tensors, notes = read_tensors(self.folder / MODEL)
        if "event_shape" not in notes:
            raise WeightsError(f"{self.folder / MODEL} wasn't written by a run: its metadata are missing.")
        if weights == "raw":
            alone = self.config.adapters is None
            tensors = self._last().part("drift.") if alone else self.adapted(Facts.of(notes)).merged()
        return tensors, Facts.of(notes)

    def _last(self) -> checkpoint.Checkpoint:
        found, _ = checkpoint.latest(self.folder / CHECKPOINTS)
        if found is None:
            raise RunError(f"{self.folder}: no checkpoint is left to take raw weights from. Use the EMA weights.")
        return found

    def adapted(self, facts: Facts, weights: Weights = "raw") -> Adapted:
        """The drift with its adapters in the pretrained network: raw ones of the last checkpoint, or their averages.

        Raises:
            RunError: where the pretrained weights have changed since, and where no checkpoint is left.
            WeightsError: where the averages are missing or damaged.
        """
        from gftkit.experiment import starting

        found = self._last() if weights == "raw" else None
        held, base = (
            (self.folder / ADAPTER, read_notes(self.folder / MODEL).get("base"))
            if found is None
            else (found.path, found.notes.get("base"))
        )
        drift = starting(self.config, facts, self.registry)
        if digest(drift.state_dict()) != base:
            raise RunError(
                f"{held} holds adapters for {self.config.start}, and the weights there have changed. "
                f"Restore them, or use the EMA weights, which are kept merged."
            )
        adapted = adapt(drift, self.config, facts)
        if found is None:
            adapted.load(held)
        else:
            found.fill(drift)
        return adapted

    def drift(self, weights: Weights = "ema", device: torch.device | str = "cpu") -> nn.Module:
        """The trained drift, in evaluation mode."""
        tensors, facts = self.weights(weights)
        path = self.registry.build("path", self.config.path)
        drift = build_drift(without_weights(self.config.drift), facts, self.registry, path)
        load_weights(drift, tensors, self.folder)
        return drift.eval().requires_grad_(False).to(device)

    def samples(
        self,
        count: int,
        seed: int = 0,
        solver: Spec | None = None,
        label: int | None = None,
        weights: Weights = "ema",
        device: torch.device | str = "cpu",
        advance: Callable[[int], None] = lambda _: None,
        guidance: float | None = None,
        given: Mapping[str, Tensor] | None = None,
        temperature: float = 0.0,
        precision: Precision = "float32",
        batch_size: int = BATCH_SIZE,
    ) -> tuple[Tensor, dict[str, Tensor]]:
        """Generated samples in the data's own values, (count, *event), and the conditions that each was made under.

        Args:
            count: how many.
            seed: of the source samples, labels and noise: of one seed, the same index gives the same sample.
            solver: {name: ..., steps: ...}; by default as the run is evaluated.
            label: the class to sample; all in turn by default, where the drift is told nothing else.
            weights: "ema" or "raw".
            device: where to evaluate the drift.
            advance: called with the number of samples done in each batch.
            guidance: scale of classifier-free guidance, >= 0, 1 for none; by default as the run is evaluated.
            given: conditions by name, (n, ...) each, taken in turn where n < count.
            temperature: beta >= 0, to sample (b + beta b_pre)/(1 + beta): 0 for the fine-tuned drift, large for the
                pretrained one.
            precision: of the drift's layers; states are float32.
            batch_size: samples integrated at once; in whole blocks of 64 where it is more.

        Raises:
            GftkitError: see ``sampling.Sampler``.
        """
        from gftkit.sampling.sampler import Request, Sampler

        asked = Request(count, seed, solver, label, weights, guidance, given, temperature, precision, batch_size)
        return Sampler(self, asked, device).samples(advance)

    def evaluate(
        self,
        overrides: Sequence[str] = (),
        weights: Weights = "ema",
        device: torch.device | str = "cpu",
        temperature: float = 0.0,
        seed: int | None = None,
    ) -> dict[str, float]:
        """Every metric of the configuration's ``evaluate`` section: name -> value, name + "_stderr" -> standard error.

        Where a metric gives a 95 % interval, its ends are name + "_low" and name + "_high".

        Args:
            overrides: settings as ``evaluate.a=b``, which win over the run's configuration.
            weights: "ema" or "raw".
            device: where to evaluate the drift.
            temperature: of a blend with the anchor, see ``samples``.
            seed: of the samples; by default the run's. The data that they are compared with stay the same.

        Raises:
            GftkitError: for an override that has no valid value, or data that can't be read.
        """
        from gftkit.sampling.blending import sampled_drift

        raw = self.config.to_dict()
        for setting in overrides:
            if not setting.startswith("evaluate."):
                raise ConfigError(f"--set {setting}: an evaluation takes keys of `evaluate`, e.g. evaluate.count=500.")
            raw = override(raw, setting)
        chosen = resolve_evaluate(raw["evaluate"], self.config.train, self.registry, Path.cwd())
        facts = self.weights(weights)[1]
        path = self.registry.build("path", self.config.path)
        scheme = scheme_of(self.config, chosen.solver, path, self.registry, chosen.guidance)
        check_unpaired(scheme.diffusion, facts.paired)
        training = self._data(facts.event_shape)
        held_out = training
        if chosen.data is not None:
            made = self.registry.build("dataset", chosen.data, "evaluate.data")
            held_out = Samples(made, "evaluate.data", facts.event_shape, facts.condition_shapes)
        reference = held_out.some(chosen.count, stream(self.config.seed, "reference"))
        trained = training.some(chosen.count, stream(self.config.seed, "training"))
        before = self.config.pretrained
        parent = Run.open(before, self.registry) if before is not None and is_run(before) else None
        _, metrics = build_metrics(chosen, self.registry)
        known = len(reference), len(trained), chosen.data is not None, facts.event_shape, parent is not None
        check(metrics, Scope(chosen.count, *known))
        drift, _ = sampled_drift(
            self, temperature, weights, device, scheme.diffusion is not None, guidance=chosen.guidance
        )
        check_guidance(chosen.guidance, drift, self.config.train.condition_dropout, "evaluate.guidance")
        evaluation = Evaluation(
            guided(drift, chosen.guidance),
            path,
            scheme,
            build_source(self.config.source, facts.event_shape, self.registry),
            reference,
            chosen.count,
            self.config.seed if seed is None else seed,
            device,
            trained,
            history=self.history(),
            held_out=chosen.data is not None,
            inherited=None if parent is None else parent.training_data,
        )
        return measure(metrics, evaluation, self.config.seed)

    def training_data(self, count: int) -> Batch:
        """At most ``count`` samples of the data that it was trained on, scaled; of one ``count`` always the same."""
        return self._data().some(count, stream(self.config.seed, "training"))

    def _data(self, event_shape: tuple[int, ...] | None = None) -> Samples:
        """The data that it was trained on."""
        return Samples(self.registry.build("dataset", self.config.data, "data"), "data", event_shape)


def restore(values: Mapping[str, Any]) -> Config:
    """The configuration that a run wrote. Everything is in it: nothing is inherited, no other file is read.

    Raises:
        ConfigError: where a key is missing or damaged.
    """
    missing = [key for key in KEYS if key not in {*values, "track", "stop"}]
    if missing:
        raise ConfigError(f"{CONFIG}: {', '.join(missing)} missing: the file is damaged or wasn't written by a run.")
    pretrained = values.get("pretrained")
    return Config(
        kind="finetune" if values.get("schedule") else "distill" if pretrained else "pretrain",
        **{key: values[key] for key in ("drift", "data", "source", "path", "coupling", "monitors", "seed")},
        train=section(Train, values["train"], "train"),
        evaluate=section(Evaluate, values["evaluate"], "evaluate"),
        pretrained=Path(pretrained) if pretrained else None,
        schedule=values.get("schedule"),
        objective=section(Objective, values["objective"], "objective"),
        anchor=values.get("anchor", {"name": "frozen"} if values.get("schedule") else None),
        track=values.get("track", []),
        adapters=section(Adapters, values["adapters"], "adapters") if values.get("adapters") else None,
        stop=values.get("stop"),
    )


def write_model(folder: Path, weights: State, facts: Facts, notes: Mapping[str, Any]) -> None:
    """Write model.safetensors."""
    write_tensors(folder / MODEL, weights, {**notes, **facts.to_dict()})


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml."""
    write_text(folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
