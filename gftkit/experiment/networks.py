"""The drift of a run with its first weights, and the anchor of a fine-tune."""

from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path as FilePath

from torch import nn

from gftkit.data import conditions
from gftkit.data.description import Facts
from gftkit.experiment.building import adapt, build_drift
from gftkit.experiment.checks import check_convention, check_same_path
from gftkit.kernel.contracts import Coupling, Path
from gftkit.kernel.errors import ConfigError, RunError
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks import foreign_weights
from gftkit.networks.adapters import AdaptedDrift
from gftkit.networks.anchor import AdaptersOffAnchor, Anchor, ExternalAnchor, FrozenAnchor, drift_hash
from gftkit.networks.flow_map import is_flow_map
from gftkit.networks.foreign import ForeignDrift
from gftkit.networks.state import load_weights
from gftkit.runs import lineage
from gftkit.runs.folder import ADAPTER, CONFIG, RunFolder, Weights, is_run
from gftkit.runs.schema import Config
from gftkit.storage.tensors import TensorFile, digest


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Attributes:
        drift: the network that is trained, with its first weights, and with its adapters where it has any.
        anchor: the pretrained drift; None in pretraining.
        anchors: hashes of the anchors of the fine-tunes that led here, oldest first, this run's own last.
        adapted: the drift with its adapters, where it has any.
        base: digest of the first weights, where a resumed run needs them: under adapters and L2-SP.
    """

    drift: nn.Module
    anchor: Anchor | None = None
    anchors: tuple[str, ...] = ()
    adapted: AdaptedDrift | None = None
    base: str | None = None


@dataclass
class StartingDrift:
    """A drift with its first weights.

    Attributes:
        drift: the network.
        notes: for the user, one sentence each.
        known_digest: of its weights, where their file contains it.
    """

    drift: nn.Module
    notes: list[str] = field(default_factory=list)
    known_digest: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its weights. Read it before training moves them."""
        return self.known_digest or digest(self.drift.state_dict())


class NetworkBuilder:
    """Builds the networks of a configuration.

    Args:
        config: the configuration.
        registry: components.
        path: of the run.
        coupling: of the run, which decides whether a foreign network's score can be used; None to build it.
    """

    def __init__(self, config: Config, registry: Registry, path: Path, coupling: Coupling | None = None) -> None:
        self._config, self._registry, self._path, self._coupling = config, registry, path, coupling
        self._files: dict[FilePath, TensorFile] = {}

    def build(
        self, spec: Spec, facts: Facts, *, parent: RunFolder | None = None, file: FilePath | None = None
    ) -> StartingDrift:
        """A drift with its first weights: a run's, a file's, those of its spec, or new ones.

        Args:
            spec: of the drift.
            facts: of the data.
            parent: the run that the weights come from.
            file: the weights file that they come from, where that is no run.

        Raises:
            WeightsError: for weights that don't fit the drift.
            ConfigError: for a network whose convention contradicts the run.
        """
        drift = build_drift(spec, facts, self._registry, self._path)
        start = StartingDrift(drift, [*getattr(drift, "notes", ())])
        if parent is not None:
            weights = self._read(parent)
            student = is_flow_map(drift) and parent.config.kind != "distill"
            target = drift.get_submodule("drift") if student else drift
            load_weights(target, weights.tensors, parent.folder)
            loaded = drift.state_dict()
            # Loading converts to the network's own type: only where nothing was converted is the digest still right.
            if not student and all(loaded[name].dtype == tensor.dtype for name, tensor in weights.tensors.items()):
                start.known_digest = weights.digest
        elif file is not None:
            start.notes += foreign_weights.load_foreign_weights(drift, file)
        if isinstance(drift, ForeignDrift):
            if self._coupling is None:
                self._coupling = self._registry.build("coupling", self._config.coupling)
            check_convention(drift, spec, self._path, self._coupling, self._config, self._registry)
        return start

    def _read(self, run: RunFolder) -> TensorFile:
        """A run's averaged weights. A student and its teacher start from one file, which is read once."""
        if run.folder not in self._files:
            self._files[run.folder] = averaged_weights(run)
        return self._files[run.folder]

    def starting_drift(self, facts: Facts, parent: RunFolder | None) -> StartingDrift:
        """The drift of the configuration itself, with its first weights; raises as ``build``."""
        return self.build(self._config.drift, facts, parent=parent, file=self._config.pretrained)

    def anchor(
        self, start: StartingDrift, facts: Facts, parent: RunFolder | None = None
    ) -> tuple[Anchor | None, list[str]]:
        """The anchor of a fine-tune, None for adapters-off, and notes for the user.

        Args:
            start: the drift that is trained, with its first weights.
            facts: of the data.
            parent: the run that an external anchor comes from, where it is open already.

        Raises:
            ConfigError: for an anchor that doesn't fit the drift.
        """
        spec = self._config.anchor or {}
        if spec["name"] == lineage.OFF:
            return None, []  # the trained network without its adapters: it is made after them
        if spec["name"] == lineage.FROZEN:
            description = lineage.describe_drift(self._config.drift, facts, self._registry)
            return FrozenAnchor(start.drift, description, start.digest), []
        source = None if spec["pretrained"] is None else FilePath(spec["pretrained"])
        other = None
        if source is not None and is_run(source):
            other = parent if parent is not None and parent.folder == source else RunFolder.open(source, self._registry)
            check_same_path(self._path, self._config, other, "anchor.pretrained")
            before = other.facts
            if before.event_shape != facts.event_shape:
                raise ConfigError(
                    f"anchor.pretrained: wanted a drift for samples of shape {facts.event_shape}, got {source}, which "
                    f"was trained on {before.event_shape}. Choose another anchor."
                )
            facts = before
        pretrained = self.build(spec["drift"], facts, parent=other, file=source)
        lacking = sorted(
            set(conditions.condition_names(pretrained.drift)) - set(conditions.condition_names(start.drift))
        )
        if lacking:
            raise ConfigError(
                f"anchor: its drift takes the condition {', '.join(lacking)}, and the trained drift doesn't. "
                f"Choose an anchor without it, or a conditional drift."
            )
        description = lineage.describe_drift(spec["drift"], facts, self._registry)
        return ExternalAnchor(pretrained.drift, description, pretrained.digest), pretrained.notes

    def tuned_networks(
        self, start: StartingDrift, facts: Facts, parent: RunFolder | None
    ) -> tuple[Networks, Sequence[str]]:
        """The networks of a fine-tune or distillation: drift, adapters and anchor; and notes for the user."""
        config = self._config
        anchor, notes = self.anchor(start, facts, parent)
        # Before the adapters are put in: the digest is of the weights as the pretrained run wrote them.
        base = start.digest if config.adapters is not None or config.objective.l2_sp > 0 else None
        adapted = None
        if config.adapters is not None:
            precision = config.adapters.base_type
            description = lineage.describe_drift(config.drift, facts, self._registry)
            # Rounded weights are another function, and the hash is of the anchor's function.
            rounded = {} if precision == "float32" else {"precision": precision}
            off_hash = drift_hash(start.digest, {**description, **rounded})
            adapted = adapt(start.drift, config, facts)
            if isinstance(start.drift, ForeignDrift):
                adapted.cast_base(precision)
                start.drift.precision = precision
            anchor = anchor or AdaptersOffAnchor(adapted, off_hash)
        assert anchor is not None  # only adapters-off is made after the adapters
        anchors = (*lineage.anchor_hashes(config.pretrained), anchor.hash)
        return Networks(start.drift, anchor, anchors, adapted, base), notes


def starting_networks(run: RunFolder, facts: Facts, *, anchor: bool = False) -> tuple[StartingDrift, Anchor | None]:
    """The drift of a run with its first weights, as it was when the run began, and its anchor where ``anchor`` is set.

    Raises:
        ConfigError: where the anchor doesn't fit the drift, since files have changed.
    """
    source = run.config.pretrained
    parent = RunFolder.open(source, run.registry) if source is not None and is_run(source) else None
    drift = run.config.drift if run.config.drift.get("weights") else run.spec("drift")
    config = replace(run.config, drift=drift, coupling=run.spec("coupling"))
    builder = NetworkBuilder(config, run.registry, run.path)
    start = builder.starting_drift(facts, parent)
    return start, builder.anchor(start, facts, parent)[0] if anchor else None


def averaged_weights(run: RunFolder) -> TensorFile:
    """The averaged weights of a finished run, adapters merged in.

    Raises:
        RunError: where the run isn't finished, and as ``adapted_drift``.
        WeightsError: where a file is damaged.
    """
    if not run.has_base:
        return TensorFile(adapted_drift(run, run.facts, "ema").merged(), run.notes, None)
    return run.averages()


def adapted_drift(run: RunFolder, facts: Facts, weights: Weights = "raw") -> AdaptedDrift:
    """The drift with its adapters in the pretrained network: raw ones of the last checkpoint, or their averages.

    The pretrained weights are in float32, whatever the type that they had in training.

    Raises:
        RunError: where the pretrained weights are missing or have changed since, and where no checkpoint is left.
        WeightsError: where the averages are missing or damaged.
    """
    newest = run.last_checkpoint() if weights == "raw" else None
    file, notes = (run.folder / ADAPTER, run.notes) if newest is None else (newest.path, newest.notes)
    source = run.config.start
    if source is None or not FilePath(source).exists():
        raise RunError(
            f"{file} contains adapters for {source}, which isn't there any more. Put it back, or write its new place "
            f"into {run.folder / CONFIG}; its hash is compared."
        )
    start, _ = starting_networks(run, facts)
    if start.digest != notes.get("base"):
        raise RunError(
            f"{file} contains adapters for {source}, and the weights there have changed. Restore them"
            + (", or use the EMA weights, which are stored with the adapters merged in." if run.has_base else ".")
        )
    adapted = adapt(start.drift, run.config, facts)
    if newest is None:
        adapted.load(run.folder / ADAPTER, run.notes.get("adapter"))
    else:
        newest.fill(start.drift)
    return adapted
