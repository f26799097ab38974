"""The drift of a run with the weights that it starts from, and the anchor of a fine-tune."""

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
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.registry import Registry, Spec
from gftkit.networks import foreign_weights
from gftkit.networks.adapters import AdaptedDrift
from gftkit.networks.anchor import AdaptersOffAnchor, Anchor, ExternalAnchor, FrozenAnchor, drift_hash
from gftkit.networks.flow_map import is_flow_map
from gftkit.networks.foreign import ForeignDrift
from gftkit.networks.state import load_weights
from gftkit.runs import lineage
from gftkit.runs.folder import RunFolder, is_run
from gftkit.runs.schema import Config
from gftkit.storage.tensors import TensorFile, digest


@dataclass(frozen=True)
class Networks:
    """The networks of a run.

    Attributes:
        drift: what is trained, with the weights that it starts from, and with its adapters where it has any.
        anchor: the pretrained drift; None in pretraining.
        anchors: hashes of the anchors of the fine-tunes that led here, oldest first, this run's own last.
        adapted: the drift with its adapters, where it has any.
        base: digest of the weights that it starts from, where a resumed run needs them.
    """

    drift: nn.Module
    anchor: Anchor | None = None
    anchors: tuple[str, ...] = ()
    adapted: AdaptedDrift | None = None
    base: str | None = None


@dataclass
class Start:
    """A network with the weights that it starts from.

    Attributes:
        drift: the network.
        notes: what to tell the user about it, one sentence each.
        known_digest: of its weights, where the file that they came from has told it.
    """

    drift: nn.Module
    notes: list[str] = field(default_factory=list)
    known_digest: str | None = None

    @cached_property
    def digest(self) -> str:
        """SHA-256 of its weights. To be asked before training moves them."""
        return self.known_digest or digest(self.drift.state_dict())


class Builder:
    """Builds the networks of a configuration.

    Args:
        config: the configuration.
        registry: components.
        path: of the run.
        coupling: of the run, which tells whether a foreign network's score can be used; built where it is None.
    """

    def __init__(self, config: Config, registry: Registry, path: Path, coupling: Coupling | None = None) -> None:
        self._config, self._registry, self._path, self._coupling = config, registry, path, coupling
        self._files: dict[FilePath, TensorFile] = {}

    def start(
        self, spec: Spec, facts: Facts, *, parent: RunFolder | None = None, file: FilePath | None = None
    ) -> Start:
        """A network with its first weights: a run's, a file's, those it brings, or new ones.

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
        start = Start(drift, [*getattr(drift, "notes", ())])
        if parent is not None:
            weights = self._read(parent)
            student = is_flow_map(drift) and parent.config.kind != "distill"
            target = drift.get_submodule("drift") if student else drift
            load_weights(target, weights.tensors, parent.folder)
            own = drift.state_dict()
            # Loading converts to the network's own type: only where nothing was converted is the digest still right.
            if not student and all(own[name].dtype == tensor.dtype for name, tensor in weights.tensors.items()):
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
            self._files[run.folder] = run.averages()
        return self._files[run.folder]

    def own(self, facts: Facts, parent: RunFolder | None) -> Start:
        """The drift of the configuration itself; raises as ``start``."""
        return self.start(self._config.drift, facts, parent=parent, file=self._config.pretrained)

    def anchor(self, start: Start, facts: Facts, parent: RunFolder | None = None) -> tuple[Anchor | None, list[str]]:
        """The anchor of a fine-tune, None for adapters-off, and what to tell the user about it.

        Args:
            start: the drift that is trained, as it starts.
            facts: of the data.
            parent: the run that an external anchor comes from, where it is open already.

        Raises:
            ConfigError: for an anchor that doesn't fit the drift.
        """
        spec = self._config.anchor or {}
        if spec["name"] == lineage.OFF:
            return None, []
        if spec["name"] == lineage.FROZEN:
            made_of = lineage.made_of(self._config.drift, facts, self._registry)
            return FrozenAnchor(start.drift, made_of, start.digest), []
        source = None if spec["pretrained"] is None else FilePath(spec["pretrained"])
        other = None
        if source is not None and is_run(source):
            other = parent if parent is not None and parent.folder == source else RunFolder.open(source, self._registry)
            check_same_path(self._path, self._config, other, "anchor.pretrained")
            before = other.facts
            if before.event_shape != facts.event_shape:
                raise ConfigError(
                    f"anchor.pretrained: wanted a drift for samples of shape {facts.event_shape}, and {source} was "
                    f"trained on {before.event_shape}. Choose another anchor."
                )
            facts = before
        pretrained = self.start(spec["drift"], facts, parent=other, file=source)
        lacking = sorted(
            set(conditions.condition_names(pretrained.drift)) - set(conditions.condition_names(start.drift))
        )
        if lacking:
            raise ConfigError(
                f"anchor: its drift is given {', '.join(lacking)}, and the drift that is trained isn't. "
                f"Choose an anchor without, or a conditional drift."
            )
        made_of = lineage.made_of(spec["drift"], facts, self._registry)
        return ExternalAnchor(pretrained.drift, made_of, pretrained.digest), pretrained.notes

    def tuned(self, start: Start, facts: Facts, parent: RunFolder | None) -> tuple[Networks, Sequence[str]]:
        """The networks of a fine-tune or distillation: the drift, its adapters, the anchor, and notes for the user."""
        config = self._config
        anchor, notes = self.anchor(start, facts, parent)
        base = start.digest if config.adapters is not None or config.objective.l2_sp > 0 else None
        adapted = None
        if config.adapters is not None:
            off = drift_hash(start.digest, lineage.made_of(config.drift, facts, self._registry))
            adapted = adapt(start.drift, config, facts)
            anchor = anchor or AdaptersOffAnchor(adapted, off)
        assert anchor is not None  # only adapters-off is made after the adapters
        anchors = (*lineage.anchors(config.pretrained), anchor.hash)
        return Networks(start.drift, anchor, anchors, adapted, base), notes


def starting_networks(run: RunFolder, facts: Facts, anchor: bool = False) -> tuple[Start, Anchor | None]:
    """The drift of a run with the weights that it started from, and its anchor where that is asked for.

    Raises:
        ConfigError: where the anchor doesn't fit the drift, since files have changed.
    """
    source = run.config.pretrained
    parent = RunFolder.open(source, run.registry) if source is not None and is_run(source) else None
    drift = run.config.drift if run.config.drift.get("weights") else run.spec("drift")
    config = replace(run.config, drift=drift, coupling=run.spec("coupling"))
    builder = Builder(config, run.registry, run.path)
    start = builder.own(facts, parent)
    return start, builder.anchor(start, facts, parent)[0] if anchor else None
