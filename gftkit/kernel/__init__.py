"""The plugin kernel: errors, options, contracts, kinds, hooks, registry, loading. It imports nothing else of gftkit."""

from gftkit.kernel.contracts import Batch, BrownianPath, Coupling, Dataset, Diffusion, Drift, Estimate, EvaluationView
from gftkit.kernel.contracts import Feature, Field, Integrator, Jump, Metric, Monitor, NoiseScale, Path, Profile
from gftkit.kernel.contracts import Sampler, Schedule, Solver, StoppingRule, TimeGrid, TimeLaw, TrainingView
from gftkit.kernel.contracts import TransportMap
from gftkit.kernel.errors import ConfigError, DataError, DivergenceError, GftkitError, PluginError, RunError
from gftkit.kernel.errors import UnknownNameError, WeightsError, unknown
from gftkit.kernel.hooks import hookimpl
from gftkit.kernel.kinds import KINDS, Kind
from gftkit.kernel.loading import load
from gftkit.kernel.options import Option, check_known, options_of, plain, type_text, validate
from gftkit.kernel.registry import Component, Description, Origin, Plugin, Registry, Resolved, Spec

# fmt: off
__all__ = [
    "KINDS", "Batch", "BrownianPath", "Component", "ConfigError", "Coupling", "DataError", "Dataset", "Description",
    "Diffusion", "DivergenceError", "Drift", "Estimate", "EvaluationView", "Feature", "Field", "GftkitError",
    "Integrator", "Jump", "Kind", "Metric", "Monitor", "NoiseScale", "Option", "Origin", "Path",
    "Plugin", "PluginError", "Profile", "Registry", "Resolved", "RunError", "Sampler", "Schedule", "Solver", "Spec",
    "StoppingRule", "TimeGrid", "TimeLaw", "TrainingView", "TransportMap", "UnknownNameError", "WeightsError",
    "check_known", "hookimpl", "load", "options_of", "plain", "type_text", "unknown", "validate",
]
