"""The whole extension surface: one hook per kind of component, and one for claims.

A plugin is any module (or object) that implements some of these with ``@gftkit.hookimpl`` and is named by an entry
point in group ``gftkit``. Each hook returns a mapping from registry names (lower case, hyphens) to factories: classes
or functions with typed keyword options and a docstring. The contract of each kind is a Protocol in
``gftkit.contracts``.
"""

from collections.abc import Callable, Iterable, Mapping
from typing import TYPE_CHECKING, Any, Protocol

import pluggy

if TYPE_CHECKING:
    from gftkit.claims import Claim
    from gftkit.registry import Registry

PROJECT = "gftkit"
Factories = Mapping[str, Callable[..., Any]]

hookspec = pluggy.HookspecMarker(PROJECT)
hookimpl = pluggy.HookimplMarker(PROJECT)


class Hooks(Protocol):
    """The hooks that a plugin may implement; the kinds of component are these, and claims."""

    @hookspec
    def gftkit_drifts(self) -> Factories:
        """Networks b(t, x): ``contracts.Drift``."""

    @hookspec
    def gftkit_paths(self) -> Factories:
        """Conditional paths x_t given (x0, x1): ``contracts.Path``."""

    @hookspec
    def gftkit_schedules(self) -> Factories:
        """Temperature as a function of progress: ``contracts.Schedule``."""

    @hookspec
    def gftkit_stops(self) -> Factories:
        """Rules that end a run before its last step: ``contracts.StoppingRule``."""

    @hookspec
    def gftkit_couplings(self) -> Factories:
        """Which x0 goes with which x1: ``contracts.Coupling``."""

    @hookspec
    def gftkit_solvers(self) -> Factories:
        """One step of an ODE or SDE, or a library's: ``contracts.Solver`` or ``contracts.Integrator``."""

    @hookspec
    def gftkit_grids(self) -> Factories:
        """The times of a sampler's steps: ``contracts.TimeGrid``."""

    @hookspec
    def gftkit_diffusions(self) -> Factories:
        """Noise scales g(t) to sample a velocity's flow stochastically: ``contracts.NoiseScale``."""

    @hookspec
    def gftkit_datasets(self) -> Factories:
        """Samples, finite or synthetic: ``contracts.Dataset`` or ``contracts.Sampler``."""

    @hookspec
    def gftkit_features(self) -> Factories:
        """Maps from events to vectors, for metrics: ``contracts.Feature``."""

    @hookspec
    def gftkit_metrics(self) -> Factories:
        """Measurements of a model, with standard errors: ``contracts.Metric``."""

    @hookspec
    def gftkit_monitors(self) -> Factories:
        """Measurements beside a training run: ``contracts.Monitor``."""

    @hookspec
    def gftkit_claims(self, registry: "Registry") -> "Iterable[Claim]":
        """Statements to check, about anything that is registered: ``claims.Claim``. Asked last, and only to verify."""


CLAIMS = "gftkit_claims"
HOOKS: tuple[str, ...] = tuple(name for name in vars(Hooks) if name.startswith("gftkit_"))
KINDS: tuple[str, ...] = tuple(name.removeprefix("gftkit_")[:-1] for name in HOOKS if name != CLAIMS)
