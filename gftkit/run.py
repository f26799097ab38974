"""A run folder: what a training run wrote, and what can be done with it."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
import yaml
from torch import Tensor, nn

from gftkit import checkpoint, conditions
from gftkit.adapters import Adapted, Adapters
from gftkit.config import (
    DEFAULTS,
    KEYS,
    Config,
    Evaluate,
    Objective,
    Precision,
    Spec,
    Train,
    override,
    resolve_evaluate,
    section,
    without_weights,
)
from gftkit.contracts import Metric
from gftkit.contracts import Path as ConditionalPath
from gftkit.data import Samples, Source, source_of
from gftkit.errors import ConfigError, GftkitError, RunError, WeightsError
from gftkit.evaluation import Evaluation, measure
from gftkit.files import State, digest, load_weights, read_notes, read_tensors, read_yaml, write_tensors, write_text
from gftkit.foreign.drift import ForeignDrift, own_network
from gftkit.loading import load
from gftkit.log import read_log
from gftkit.randomness import stream
from gftkit.registry import Registry, plain
from gftkit.sampling.guidance import check_guidance, guided
from gftkit.sampling.scheme import Scheme, build_scheme
from gftkit.sampling.stochastic import check_known_score, check_unpaired

Weights = Literal["ema", "raw"]

CONFIG = "config.yaml"
MODEL = "model.safetensors"
CHECKPOINTS = "checkpoints"
ADAPTER = "adapter"
LOG = "metrics.jsonl"
BATCH_SIZE = 512
"""Samples that are integrated at once."""


@dataclass(frozen=True)
class Facts:
    """What a run knows of its data, kept with the weights so that sampling needs no data.

    Attributes:
        event_shape: shape of one sample.
        classes: number of classes, None without labels.
        range: (low, high) of the data's values, None where they weren't scaled.
        condition_shapes: the named conditions of a sample, each with its shape.
        paired: whether the data came with partners x0 of their own, so that no coupling was asked.
    """

    event_shape: tuple[int, ...]
    classes: int | None
    range: tuple[float, float] | None
    condition_shapes: dict[str, tuple[int, ...]] = field(default_factory=dict)
    paired: bool = False

    @classmethod
    def of(cls, notes: Mapping[str, Any]) -> "Facts":
        """The facts from a file's metadata."""
        span = notes["range"]
        shapes = {name: tuple(shape) for name, shape in notes.get("condition_shapes", {}).items()}
        scaled = None if span is None else (span[0], span[1])
        return cls(tuple(notes["event_shape"]), notes["classes"], scaled, shapes, bool(notes.get("paired", False)))

    def to_dict(self) -> dict[str, Any]:
        """Plain values, for a file's metadata."""
        return {
            "event_shape": list(self.event_shape),
            "classes": self.classes,
            "range": self.range,
            "condition_shapes": {name: list(shape) for name, shape in self.condition_shapes.items()},
            "paired": self.paired,
        }

    def zeros(self, names: Sequence[str], count: int) -> dict[str, Tensor]:
        """Conditions of these names for ``count`` samples, all zero.

        Raises:
            ConfigError: for a condition that the data don't have.
        """
        unknown = [name for name in names if name not in self.condition_shapes and name != conditions.LABEL]
        if unknown:
            raise ConfigError(
                f"the drift is given {', '.join(map(repr, unknown))}, and the data have "
                f"{', '.join(map(repr, self.condition_shapes)) or 'no such conditions'}. Give every sample these "
                f"conditions, or use another drift."
            )
        return {
            name: torch.zeros(count, dtype=torch.int64)
            if name == conditions.LABEL
            else torch.zeros(count, *self.condition_shapes[name])
            for name in names
        }


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

    def history(self) -> list[dict[str, Any]]:
        """The lines of metrics.jsonl."""
        return read_log(self.folder / LOG)

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
        training = Samples(self.registry.build("dataset", self.config.data, "data"), "data", facts.event_shape)
        held_out = training
        if chosen.data is not None:
            made = self.registry.build("dataset", chosen.data, "evaluate.data")
            held_out = Samples(made, "evaluate.data", facts.event_shape, facts.condition_shapes)
        drift, _ = sampled_drift(
            self, temperature, weights, device, scheme.diffusion is not None, guidance=chosen.guidance
        )
        check_guidance(chosen.guidance, drift, self.config.train.condition_dropout, "evaluate.guidance")
        evaluation = Evaluation(
            guided(drift, chosen.guidance),
            path,
            scheme,
            build_source(self.config.source, facts.event_shape, self.registry),
            held_out.some(chosen.count, stream(self.config.seed, "reference")),
            chosen.count,
            self.config.seed if seed is None else seed,
            device,
            training.some(chosen.count, stream(self.config.seed, "training")),
            history=self.history(),
        )
        return measure(build_metrics(chosen, self.registry), evaluation, self.config.seed)


def restore(values: Mapping[str, Any]) -> Config:
    """The configuration that a run wrote. Everything is in it: nothing is inherited, no other file is read.

    Raises:
        ConfigError: where a key is missing or damaged.
    """
    missing = [key for key in KEYS if key not in {*values, "track"}]
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
    )


def build_drift(spec: Spec, facts: Facts, registry: Registry, path: ConditionalPath) -> nn.Module:
    """The network of a config, tried once on zeros.

    Raises:
        ConfigError: where its output isn't of its input's shape.
    """
    drift: nn.Module = registry.build(
        "drift",
        spec,
        event_shape=facts.event_shape,
        classes=facts.classes,
        condition_shapes=facts.condition_shapes,
        path=path,
    )
    drift.eval()
    x = torch.zeros(2, *facts.event_shape)
    try:
        with torch.no_grad():
            out = _tried(drift, facts)
    except GftkitError as error:
        raise ConfigError(f"drift '{spec['name']}' on a batch of shape {tuple(x.shape)}: {error}") from error
    except Exception as error:
        cure = "`gft --debug` shows where."
        if isinstance(drift, ForeignDrift):
            cure = (
                f"Check drift.options and convention.call ('{drift.convention.call}'): `gft inspect` finds out how a "
                f"network is called. {cure}"
            )
        raise ConfigError(
            f"drift '{spec['name']}' fails on a batch of shape {tuple(x.shape)}: {type(error).__name__}: {error}\n"
            f"{cure}"
        ) from error
    if not isinstance(out, Tensor) or out.shape != x.shape:
        came = tuple(out.shape) if isinstance(out, Tensor) else type(out).__name__
        raise ConfigError(
            f"drift '{spec['name']}': wanted an output of its input's shape {tuple(x.shape)}, got {came}. "
            f"A drift maps (batch, *event) to (batch, *event)."
        )
    return drift


def _tried(drift: nn.Module, facts: Facts) -> Any:
    """The drift of two samples that are zero; it is evaluated without its conditions too, where it allows that."""
    given = facts.zeros(conditions.names(drift), 2)
    at = torch.full((2,), 0.5), torch.zeros(2, *facts.event_shape)
    drift(*at, **conditions.without(drift, given))
    return drift(*at, **given)


def adapt(drift: nn.Module, config: Config, facts: Facts) -> Adapted:
    """Put the adapters of a configuration into its pretrained drift: of one configuration always the same.

    Raises:
        ConfigError: for layers that can't be adapted.
    """
    assert config.adapters is not None
    run, generator = lambda: _tried(drift, facts), stream(config.seed, "adapters")
    return Adapted(drift, config.adapters, run, generator, own_network(drift))


def build_source(spec: Spec, event_shape: tuple[int, ...], registry: Registry) -> Source:
    """The source of a config."""
    return source_of(Samples(registry.build("dataset", spec, "source", event_shape=event_shape), "source", event_shape))


def scheme_of(
    config: Config, spec: Spec | None, path: ConditionalPath, registry: Registry, guidance: float = 1
) -> Scheme:
    """How a configuration's flow is sampled.

    Raises:
        ConfigError: for noise that needs a score where none is known, and a solver that doesn't solve this flow.
    """
    scheme = build_scheme(spec, path, registry)
    if scheme.diffusion is not None:
        normal = plain(config.source) == plain(registry.resolve("dataset", DEFAULTS["source"], "source"))
        check_known_score(path, registry.build("coupling", config.coupling), normal, guidance)
    scheme.check(path)
    return scheme


def build_metrics(evaluate: Evaluate, registry: Registry) -> list[Metric]:
    """The metrics of a section ``evaluate``."""
    specs = enumerate(evaluate.metrics or [])
    return [registry.build("metric", spec, f"evaluate.metrics[{index}]") for index, spec in specs]


def write_model(folder: Path, weights: State, facts: Facts, notes: Mapping[str, Any]) -> None:
    """Write model.safetensors."""
    write_tensors(folder / MODEL, weights, {**notes, **facts.to_dict()})


def write_config(folder: Path, config: Config) -> None:
    """Write config.yaml."""
    write_text(folder / CONFIG, yaml.safe_dump(config.to_dict(), sort_keys=False))
