"""Sampling schemes: a solver, its steps and their times, and the noise that is added."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any

from gftkit.kernel.contracts import Drift, Integrator, NoiseScale, Path, Solver, TimeGrid
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.registry import Registry, Resolved
from gftkit.sampling.integrate import check_solver, diffusion_of, grid_of
from gftkit.sampling.stochastic import StochasticDrift, StochasticPath
from gftkit.theory import flow

DEFAULT_STEPS = 20
PARTS = ("grid", "diffusion")
"""Keys of a solver's spec that are components of their own."""


@dataclass(frozen=True)
class Scheme:
    """A solver with its steps, their times, and the noise that is added.

    Attributes:
        solver: takes the steps.
        steps: how many.
        spacing: places their times; None for equal steps.
        diffusion: g(t), to sample a velocity's flow stochastically; None for the flow as it was trained.
    """

    solver: Solver | Integrator
    steps: int
    spacing: TimeGrid | None = field(default=None)
    diffusion: NoiseScale | None = field(default=None)

    def equation(self, drift: Drift, path: Path) -> tuple[Drift, Path]:
        """The drift and path to integrate: themselves, or with the chosen noise."""
        if self.diffusion is None:
            return drift, path
        return StochasticDrift(drift, path, self.diffusion), StochasticPath(path, self.diffusion)

    def check(self, path: Path) -> None:
        """Refuse a solver that doesn't solve this, a grid that isn't one, and noise that is negative.

        Raises:
            ConfigError: with the reason.
        """
        seen = path if self.diffusion is None else StochasticPath(path, self.diffusion)
        stochastic = flow.is_stochastic(seen)
        check_solver(self.solver, stochastic=stochastic)
        diffusion_of(seen, grid_of(seen, self.steps, self.spacing).times)


def default_solver(path: Path, diffusion: Any = None) -> dict[str, Any]:
    """Euler's method, or Euler-Maruyama's on a stochastic path."""
    return {"name": "euler-maruyama" if diffusion is not None or flow.is_stochastic(path) else "euler"}


def build_scheme(spec: Mapping[str, Any] | None, path: Path, registry: Registry) -> Scheme:
    """The scheme of a spec {name, steps, grid, diffusion, **options of the solver}; by default Euler's.

    Raises:
        GftkitError: for a component that can't be built.
    """
    options: dict[str, Any] = Resolved(spec) if isinstance(spec, Resolved) else dict(spec or {})
    steps = options.pop("steps", DEFAULT_STEPS)
    parts = {kind: options.pop(kind, None) for kind in PARTS}
    built = {
        kind: None if part is None else registry.build(kind, part, f"solver.{kind}") for kind, part in parts.items()
    }
    solver = registry.build("solver", options if "name" in options else default_solver(path, parts["diffusion"]))
    return Scheme(solver, steps, built["grid"], built["diffusion"])


def resolve_scheme(spec: Any, registry: Registry, where: str, base: FilePath) -> dict[str, Any]:
    """A spec, {name, steps, ...} or a solver's name, with every component checked and every default filled in.

    Raises:
        GftkitError: naming the key.
    """
    spec = {"name": spec} if isinstance(spec, str) else spec
    if not isinstance(spec, Mapping):
        raise ConfigError(f"{where}: wanted the name of a solver, or {{name: ..., steps: ...}}, got {spec!r}.")
    steps = spec.get("steps", DEFAULT_STEPS)
    if not (type(steps) is int and steps >= 1):
        raise ConfigError(f"{where}.steps: wanted int, >= 1, got {steps!r}.")
    rest = {key: value for key, value in spec.items() if key not in ("steps", *PARTS)}
    parts = {
        kind: registry.resolve(kind, spec[kind], f"{where}.{kind}", base)
        for kind in PARTS
        if spec.get(kind) is not None
    }
    return Resolved({**registry.resolve("solver", rest, where, base), "steps": steps, **parts})
