"""The declared orders of every registered solver of a library, and the effect of its tolerances."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Integrator
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.sampling.noise import BLOCK, FromGenerator
from gftkit.verify.claims import Measurement, order, statistical
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.claims.components.solvers import AXES, ode_order
from gftkit_verification.testbeds.components import components, each_registered
from gftkit_verification.testbeds.measuring.convergence import (
    ODE_STEPS,
    SDE_STEPS,
    STRONG_TOLERANCE,
    TOLERANCE,
    WEAK_STEPS,
    Law,
    fit_orders,
    fit_weak_order,
    no_drift,
    solution_errors,
)
from gftkit_verification.testbeds.problems.brownian import unit_paths
from gftkit_verification.testbeds.problems.equations import DIMENSION, Equation, Forced, Mixed
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips.integrators import (
    HIGHER_SLIPS,
    NOISE_SLIPS,
    SLIPS,
    AlteredIntegrator,
    Run,
    own_run,
    scaled_path,
)

FINE = 64
"""Intervals on which the Brownian path of a strong order is known."""
SAMPLES = 300
TOLERANCES = tuple(10.0**-k for k in range(5, 11))
PROPORTIONAL = 0.2
"""How far from 1 the slope of log error on log tolerance may stay."""


def fixed_step_integrators(has_order: Callable[[Any], bool]) -> Callable[[Registry], Iterator[tuple[str, Any]]]:
    """The registered solvers of libraries that take the steps they are given, and declare an order."""
    return each_registered(
        "solver",
        where=lambda solver: (
            isinstance(solver, Integrator) and not getattr(solver, "adaptive", False) and has_order(solver)
        ),
    )


def _alter(solver: Integrator, *groups: Mapping[str, Run]) -> dict[str, AlteredIntegrator]:
    return {name: AlteredIntegrator(solver, run) for runs in groups for name, run in runs.items()}


def _declare_more(solver: Integrator) -> dict[str, AlteredIntegrator]:
    return {"one order more declared": AlteredIntegrator(solver, own_run, more=1)}


@claim_for_each(
    fixed_step_integrators(lambda solver: solver.ode_order is not None),
    "solver-ode-order-{name}",
    statement=lambda solver: (
        f"The error at t = 1 falls as h^{solver.ode_order:g}, that of one step as h^{solver.ode_order + 1:g}."
    ),
    reference="theory, section 6",
    bound=order(TOLERANCE),
    mutants=lambda solver: _alter(solver, SLIPS, HIGHER_SLIPS if solver.ode_order > 1 else {}) | _declare_more(solver),
    conditions=f"nonlinear, non-autonomous, d = {DIMENSION}; {ODE_STEPS} steps of gftkit.sampling.integrate.generate",
    component="solver:{name}",
    seeds=1,
    axes=AXES,
)
def integrator_ode_order(solver: Integrator, generator: Generator) -> Measurement:
    """The order for ODEs, measured as of any solver."""
    return ode_order(solver, generator)


@claim_for_each(
    fixed_step_integrators(lambda solver: solver.strong_order is not None),
    "solver-strong-order-{name}",
    statement=lambda solver: (
        f"Of a shared Brownian path the error at t = 1 falls as h^{solver.strong_order:g}, and that of one "
        f"step as h^{solver.strong_order + 0.5:g}, in root mean square."
    ),
    reference="theory, section 6",
    bound=order(STRONG_TOLERANCE),
    mutants=lambda solver: (
        _alter(
            solver,
            {name: SLIPS[name] for name in ("last step dropped", "half of the drift")},
            {name: NOISE_SLIPS[name] for name in ("noise scaled by h", "squared diffusion")},
            {"sign of the noise": scaled_path(lambda s, t: -1.0)},  # noqa: ARG005
        )
        | _declare_more(solver)
    ),
    conditions=f"quadratic, noise g(t) additive, d = {Forced.DIMENSION}; {SDE_STEPS} steps of "
    f"gftkit.sampling.integrate.trajectory, on a path whose increments and integrals are known on {FINE} "
    f"intervals",
    component="solver:{name}",
    seeds=1,
    axes=AXES,
)
def integrator_strong_order(solver: Integrator, generator: Generator) -> Measurement:
    """The strong order, along one of the solver's own Brownian paths, on which every number of steps is run."""
    generator = cpu_generator(generator)
    problem = Forced(generator)
    x0 = torch.randn(SAMPLES, Forced.DIMENSION, generator=generator, dtype=torch.float64)
    path = solver.brownian(x0, 1.0, generator)
    intervals = [path(k / FINE, (k + 1) / FINE, return_U=True) for k in range(FINE)]
    increments, integrals = (torch.stack(parts) for parts in zip(*intervals, strict=True))
    errors = []
    for n in SDE_STEPS:
        states = _states(problem.equation, AlteredIntegrator(solver, own_run, path), n, x0, generator)
        errors.append(problem.errors(states, problem.known(n, increments, integrals)))
    assert solver.strong_order is not None
    return fit_orders(SDE_STEPS, errors, solver.strong_order, solver.strong_order + 0.5)


@claim_for_each(
    fixed_step_integrators(lambda solver: solver.weak_order is not None),
    "solver-weak-order-{name}",
    statement=lambda solver: (
        f"The error of mean and covariance at t = 1 falls as h^{solver.weak_order:g}, that of one step as "
        f"h^{solver.weak_order + 1:g}."
    ),
    reference="theory, section 6",
    bound=order(TOLERANCE),
    mutants=lambda solver: _alter(solver, SLIPS, NOISE_SLIPS) | _declare_more(solver),
    conditions=f"linear, noise g(t) additive, d = {DIMENSION}; {WEAK_STEPS} steps of "
    f"gftkit.sampling.integrate.trajectory, moments computed and not sampled",
    component="solver:{name}",
    seeds=1,
    axes=AXES,
)
def integrator_weak_order(solver: Integrator, generator: Generator) -> Measurement:
    """The weak order, without sampling: of an affine equation the chain's mean and covariance are computed.

    The states are affine in the start, in every increment and in every integral. One run on unit vectors gives all
    coefficients.
    """

    def chain(equation: Equation, steps: int, start: Law, generator: Generator) -> Law:
        mean, cov = start
        d = len(mean)
        path = unit_paths(steps, d)
        x0 = torch.zeros(1 + d, d, dtype=torch.float64)
        x0[1:] = torch.eye(d, dtype=torch.float64)
        x0 = torch.cat([x0, torch.zeros(path.increments.shape[1:], dtype=torch.float64)])
        none = torch.zeros(steps, 1 + d, d, dtype=torch.float64)
        path = type(path)(torch.cat([none, path.increments], 1), torch.cat([none, path.integrals], 1))
        states = _states(equation, AlteredIntegrator(solver, own_run, path), steps, x0, generator)
        shift, rest = states[:, 0], states[:, 1:] - states[:, :1]
        slope, noise = rest[:, :d].mT, rest[:, d:]
        return (slope @ mean[:, None])[..., 0] + shift, slope @ cov @ slope.mT + noise.mT @ noise

    assert solver.weak_order is not None
    return fit_weak_order(solver.weak_order, chain, generator)


def _states(equation: Equation, solver: Integrator, steps: int, x0: Tensor, generator: Generator) -> Tensor:
    """States at times 0, 1/steps, ..., 1, by the sampler's loop; ``generate`` gives a library 64 samples at once."""
    grid = integrate.grid_of(equation, steps)
    g = integrate.diffusion_of(equation, grid.times)
    run = integrate.trajectory(integrate.bind_conditions(equation.drift), g, solver, grid, x0, FromGenerator(generator))
    states = torch.stack(list(run))
    return states[torch.arange(steps + 1).clamp(max=len(states) - 1)]


@claim_for_each(
    fixed_step_integrators(lambda solver: solver.strong_order is not None or solver.weak_order is not None),
    "solver-noise-{name}",
    statement="Without drift x1 - x0 ~ N(0, g^2 I) for every number of steps, and with a closing step.",
    reference="theory, sections 1 and 6",
    bound=statistical(),
    mutants=lambda solver: _alter(
        solver,
        {
            "increments of variance h^2": scaled_path(lambda s, t: math.sqrt(t - s)),
            "increments of variance 1": scaled_path(lambda s, t: 1 / math.sqrt(t - s)),
            "no noise in the first half": scaled_path(lambda s, t: float(s >= 0.4)),  # noqa: ARG005
        },
    ),
    conditions="g constant; 7 steps to 1, and 3 steps to 0.75 with one closing step",
    component="solver:{name}",
    seeds=1,
)
def integrator_noise_variance(solver: Integrator, generator: Generator) -> float:
    """Standard errors of the variance of Brownian motions that the sampler made, on two grids."""
    generator = cpu_generator(generator)
    total = 0.0
    for steps, t_end in ((7, 1.0), (3, 0.75)):
        g = 0.5 + float(torch.rand(1, generator=generator))
        equation = Equation(no_drift, lambda t, g=g: torch.full_like(t, g), t_end)  # type: ignore[misc]
        x0 = torch.randn(2 * BLOCK, 80, generator=generator, dtype=torch.float64)
        x1 = integrate.generate(equation.drift, equation, solver, steps, x0, generator)
        squares = ((x1 - x0) / g).square()
        total += float(squares.mean() - 1) * math.sqrt(squares.numel() / 2)
    return total / math.sqrt(2)


Toleranced = Callable[[float], Integrator]
"""An adaptive solver of a relative and absolute tolerance."""


def adaptive_solvers(registry: Registry) -> Iterator[tuple[str, Toleranced]]:
    """The registered solvers that choose their own steps, with the options ``rtol`` and ``atol``."""
    for name, solver in components(registry, "solver"):
        options = set(registry.component("solver", name).options)
        if isinstance(solver, Integrator) and getattr(solver, "adaptive", False) and {"rtol", "atol"} <= options:

            def create(tolerance: float, name: str = name) -> Integrator:
                solver: Integrator = registry.create("solver", name, rtol=tolerance, atol=tolerance)
                return solver

            yield name, create


def _tolerance_slips(create: Toleranced) -> dict[str, Any]:
    altered = {
        name: lambda tolerance, run=run: AlteredIntegrator(create(tolerance), run) for name, run in SLIPS.items()
    }
    return {
        **altered,
        "tolerances not passed on": lambda _: create(1e-5),
        "steps accepted by the tolerance's cube root": lambda tolerance: create(tolerance ** (1 / 3)),
    }


@claim_for_each(
    adaptive_solvers,
    "solver-tolerance-{name}",
    statement="The error falls at least in proportion to the tolerances.",
    reference="Hairer, Norsett, Wanner (1993), section II.4",
    bound=order(PROPORTIONAL),
    mutants=_tolerance_slips,
    conditions=f"nonlinear, non-autonomous, d = {DIMENSION}; tolerances {TOLERANCES[0]:g} to {TOLERANCES[-1]:g}",
    component="solver:{name}",
    seeds=2,
    axes=("tolerance", "error"),
)
def proportionality(create: Toleranced, generator: Generator) -> Measurement:
    """The shortfall from 1 of the slope of log error on log tolerance, on an ODE that meets the time 1/2."""
    generator = cpu_generator(generator)
    problem = Mixed(generator)
    x0 = torch.randn(16, DIMENSION, generator=generator, dtype=torch.float64)
    solvers = (create(tolerance) for tolerance in TOLERANCES)
    errors = [solution_errors(problem, problem.equation.states(solver, 2, x0, generator)) for solver in solvers]
    logs = np.log(np.maximum(np.array(errors), 1e-300))
    slopes = np.polyfit(np.log(np.array(TOLERANCES)), logs, 1)[0]
    ends = [end for end, _ in errors]
    line = [ends[0] * tolerance / TOLERANCES[0] for tolerance in TOLERANCES]
    return Measurement(
        max(0.0, 1 - float(slopes.min())),
        {"measured": (TOLERANCES, ends), "proportional": (TOLERANCES, line)},
        f"slopes {slopes[0]:.3f} at t = 1 and {slopes[1]:.3f} at the worse time",
    )
