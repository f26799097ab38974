"""Fine trajectories of a run's ODE from the starts of a seed, the reference for a few steps of a solver."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from gftkit.generation.requested_retention import RetentionRequest
from gftkit.generation.sampler import Request, RunSampler
from gftkit.kernel.contracts import Drift, Integrator, Path, Solver, TimeGrid
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.registry import Registry
from gftkit.runs.folder import RunFolder, Weights
from gftkit.sampling.integrate import bind_conditions, generate, grid_of
from gftkit.theory import flow

FINE_STEPS = 100
"""Runge-Kutta steps of a fine trajectory."""


@dataclass(frozen=True)
class Trajectory:
    """States of a flow without noise, and its velocity there.

    Attributes:
        times: from 0 to 1.
        states: x_t, (times, n, *event).
        velocities: v(t, x_t), of the same shape.
    """

    times: tuple[float, ...]
    states: Tensor
    velocities: Tensor


@dataclass(frozen=True)
class Flow:
    """A velocity and the starts of its trajectories, scaled as in training.

    Attributes:
        drift: v(t, x), on ``device``.
        path: that it was trained on, without noise.
        x0: starts, (n, *event), on the CPU.
        conditions: of a conditional drift, (n, ...) each.
        registry: has the solver of fine trajectories.
        device: where the drift is evaluated.
        weights: digest of the trained weights, "" where they aren't a run's.
        retention: of the blend with the anchor, a number or a short hash; 0 for the run's own drift.

    Raises:
        ConfigError: for a path with noise, or one that stops before t = 1.
    """

    drift: Drift
    path: Path
    x0: Tensor
    conditions: Mapping[str, Tensor]
    registry: Registry
    device: torch.device
    weights: str = ""
    retention: float | str = 0.0

    def __post_init__(self) -> None:
        if flow.is_stochastic(self.path):
            raise ConfigError(
                "this flow has noise (g > 0), so its trajectories have no velocity, length or energy. Geometry and "
                "fitted grids need a run on a path without noise."
            )
        if flow.t_end(self.path) != 1:
            raise ConfigError(
                f"this path ends at t = {flow.t_end(self.path):g}. Geometry and fitted grids need a flow that is known "
                f"up to t = 1."
            )

    def ends(self, solver: Solver | Integrator, steps: int, spacing: TimeGrid | None = None) -> Tensor:
        """x_1 by some steps of a solver, (n, *event) of float64."""
        return self._integrate(solver, steps, spacing).double()

    def trajectory(self, steps: int = FINE_STEPS) -> Trajectory:
        """Trace the flow by equal steps of rk4, 5 evaluations each with the velocity at its start."""
        states = self._integrate(self.registry.create("solver", "rk4"), steps, whole=True)
        times = grid_of(self.path, steps).times
        conditions = {name: values.to(self.device) for name, values in self.conditions.items()}
        field = bind_conditions(self.drift, **conditions)
        with torch.no_grad():
            velocities = [field(t, x.to(self.device)).cpu() for t, x in zip(times, states, strict=True)]
        return Trajectory(times, states.double(), torch.stack(velocities).double())

    def _integrate(
        self, solver: Solver | Integrator, steps: int, spacing: TimeGrid | None = None, *, whole: bool = False
    ) -> Tensor:
        return generate(
            self.drift,
            self.path,
            solver=solver,
            steps=steps,
            x0=self.x0,
            noise=torch.Generator(self.device),  # never drawn from: the flow has no noise
            conditions=self.conditions,
            whole=whole,
            spacing=spacing,
        )


def flow_of(
    run: RunFolder,
    first: int,
    count: int,
    *,
    seed: int = 0,
    weights: Weights = "ema",
    retention: RetentionRequest | None = None,
    device: torch.device | str = "cpu",
) -> Flow:
    """The flow that ``gft sample`` integrates for samples ``first`` to ``first + count - 1`` of a seed.

    Raises as ``flows_of``.
    """
    return flows_of(run, [first], count, seed=seed, weights=weights, retention=retention, device=device)[0]


def flows_of(
    run: RunFolder,
    firsts: Sequence[int],
    count: int,
    *,
    seed: int = 0,
    weights: Weights = "ema",
    retention: RetentionRequest | None = None,
    device: torch.device | str = "cpu",
) -> list[Flow]:
    """One flow with several sets of starts; its weights are read once.

    Args:
        run: a finished run.
        firsts: the index of the first sample of each set, a multiple of 64.
        count: samples in a set.
        seed: of the starts.
        weights: "ema" or "raw".
        retention: of a blend with the anchor; see ``gftkit.Run.samples``.
        device: where to evaluate the drift.

    Raises:
        GftkitError: see ``gftkit.generation.RunSampler``; ConfigError for a flow with noise.
    """
    path = run.path
    solver = {"name": "euler-maruyama" if flow.is_stochastic(path) else "euler", "steps": 1}  # refused by Flow
    count_all = max(firsts) + count
    request = Request(count=count_all, seed=seed, solver=solver, weights=weights, retention=retention)
    sampler = RunSampler(run, request, device)
    return [
        Flow(
            drift=sampler.drift,
            path=path,
            x0=sampler.starts(first, count),
            conditions=sampler.conditions(first, count),
            registry=run.registry,
            device=torch.device(device),
            weights=sampler.weights_digest,
            retention=sampler.retention,
        )
        for first in firsts
    ]


def squared_distances(x: Tensor, y: Tensor) -> Tensor:
    """|x - y|^2 of each sample, (n, *event) twice -> (n,)."""
    return (x - y).flatten(1).square().sum(1)
