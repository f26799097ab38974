"""The kinds of component: one row each. To add a kind, write its contract and add a row.

Its hook, the check of its contract, its options' validation, ``gft plugins`` and the reference documentation follow.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import nn

from gftkit.kernel.contracts import Coupling, Dataset, Drift, Feature, Integrator, Metric, Monitor, NoiseScale
from gftkit.kernel.contracts import Path, Profile, Sampler, Schedule, Solver, StoppingRule, TimeGrid, TimeLaw
from gftkit.kernel.contracts import TransportMap

PROJECT = "gftkit"


@dataclass(frozen=True)
class Kind:
    """A kind of component.

    Attributes:
        name: as configurations and ``gft plugins`` call it.
        summary: what its components are.
        contracts: at least one of these a component must meet.
        written: types of options that take a component of this kind, written ``{name: ...}``; by default its contracts.
        wrapper: the hook by which a plugin adds options to every component of this kind, if it has one.
    """

    name: str
    summary: str
    contracts: tuple[type, ...]
    written: tuple[Any, ...] = ()
    wrapper: str | None = None

    @property
    def hook(self) -> str:
        """The hook by which plugins give components of this kind."""
        return f"{PROJECT}_{self.name}s"


KINDS: Mapping[str, Kind] = {
    kind.name: kind
    for kind in (
        Kind("drift", "Networks b(t, x)", (nn.Module,), written=(Drift,)),
        Kind("path", "Conditional paths x_t given (x0, x1)", (Path,)),
        Kind("schedule", "Temperature as a function of progress", (Schedule,)),
        Kind("profile", "Retention as a function of flow time", (Profile,)),
        Kind("time", "The law of flow time in training", (TimeLaw,)),
        Kind("stop", "Rules that end a run before its last step", (StoppingRule,)),
        Kind("coupling", "Which x0 goes with which x1", (Coupling, TransportMap)),
        Kind("solver", "One step of an ODE or SDE, or a library's", (Solver, Integrator)),
        Kind("grid", "The times of a sampler's steps", (TimeGrid,)),
        Kind("diffusion", "Noise scales g(t) to sample a velocity's flow stochastically", (NoiseScale,)),
        Kind("dataset", "Samples, finite or synthetic", (Dataset, Sampler), wrapper="gftkit_dataset_wrapper"),
        Kind("feature", "Maps from events to vectors, for metrics", (Feature,)),
        Kind("metric", "Measurements of a model, with standard errors", (Metric,)),
        Kind("monitor", "Measurements beside a training run", (Monitor,)),
    )
}
"""Every kind, by name."""

KIND_OF: Mapping[Any, str] = {
    annotation: kind.name for kind in KINDS.values() for annotation in kind.written or kind.contracts
}
"""Types that make an option a component of its own, written ``{name: ...}``, each with its kind."""
