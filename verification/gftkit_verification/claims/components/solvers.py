"""The declared orders of every registered solver, against exact solutions, through the sampler's own loop."""

import math
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Diffusion, Field, Integrator, Solver
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.verify.claims import Measurement, order, statistical
from gftkit.verify.declaration import claim_for_each
from gftkit_verification.testbeds.components import each_registered
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
from gftkit_verification.testbeds.problems.equations import DIMENSION, Equation, Forced, Mixed
from gftkit_verification.testbeds.problems.moments import cpu_generator
from gftkit_verification.testbeds.slips.solvers import (
    HIGHER_SLIPS,
    NOISE_SLIPS,
    SLIPS,
    AlteredSolver,
    Step,
    own_step,
    replayed,
    same_noise,
    scaled_noise,
)

FINER = 4
"""How much finer the Brownian path is known than the finest steps of a strong order."""

AXES = ("step h", "error")


def stepping_solvers(has_order: Callable[[Any], bool]) -> Callable[[Registry], Iterator[tuple[str, Any]]]:
    """The registered solvers that take steps of a drift and declare an order; flow maps and libraries have their own
    modules, ``flow_maps`` and ``integrators``.
    """
    return each_registered(
        "solver",
        where=lambda solver: (
            not getattr(solver, "jumps", False) and not isinstance(solver, Integrator) and has_order(solver)
        ),
    )


def _alter(solver: Solver, *groups: Mapping[str, Step]) -> dict[str, AlteredSolver]:
    return {name: AlteredSolver(solver, step) for steps in groups for name, step in steps.items()}


def _declare_more(solver: Solver) -> dict[str, AlteredSolver]:
    return {"one order more declared": AlteredSolver(solver, own_step, more=1)}


@claim_for_each(
    stepping_solvers(lambda solver: solver.ode_order is not None),
    "solver-ode-order-{name}",
    statement=lambda solver: (
        f"The error at t = 1 falls as h^{solver.ode_order:g}, that of one step as h^{solver.ode_order + 1:g}."
    ),
    reference="theory, section 6",
    bound=order(TOLERANCE),
    mutants=lambda solver: _alter(solver, SLIPS, HIGHER_SLIPS if solver.ode_order > 1 else {}) | _declare_more(solver),
    conditions=f"nonlinear, non-autonomous, d = {DIMENSION}; {ODE_STEPS} steps of gftkit.sampling.integrate.generate",
    component="solver:{name}",
    seeds=2,
    axes=AXES,
)
def ode_order(solver: Solver | Integrator, generator: Generator) -> Measurement:
    """The order for ODEs."""
    generator = cpu_generator(generator)
    problem = Mixed(generator)
    x0 = torch.randn(64, DIMENSION, generator=generator, dtype=torch.float64)
    errors = [solution_errors(problem, problem.equation.states(solver, n, x0, generator)) for n in ODE_STEPS]
    assert solver.ode_order is not None
    return fit_orders(ODE_STEPS, errors, solver.ode_order, solver.ode_order + 1)


@claim_for_each(
    stepping_solvers(lambda solver: solver.strong_order is not None),
    "solver-strong-order-{name}",
    statement=lambda solver: (
        f"Of a shared Brownian path the error at t = 1 falls as h^{solver.strong_order:g}, and that of one "
        f"step as h^{solver.strong_order + 0.5:g}, in root mean square."
    ),
    reference="theory, section 6",
    bound=order(STRONG_TOLERANCE),
    mutants=lambda solver: (
        _alter(solver, SLIPS, NOISE_SLIPS, {"sign of the noise": scaled_noise(lambda _: -1.0)}) | _declare_more(solver)
    ),
    conditions=f"quadratic, noise g(t) additive, d = {Forced.DIMENSION}; {SDE_STEPS} steps of "
    f"gftkit.sampling.integrate.generate, on a path that is known at {FINER * SDE_STEPS[-1]} times",
    component="solver:{name}",
    seeds=2,
    axes=AXES,
)
def strong_order(solver: Solver, generator: Generator) -> Measurement:
    """The strong order: a run that stands still keeps the sampler's own increments, the others replay their sums.

    The exact solution is known but for what the finest increments leave open, a part of 1/FINER of the error.
    """
    generator = cpu_generator(generator)
    problem = Forced(generator)
    x0 = torch.randn(300, Forced.DIMENSION, generator=generator, dtype=torch.float64)
    increments: list[Tensor] = []

    def recording_step(
        s: Solver,  # noqa: ARG001
        b: Field,  # noqa: ARG001
        g: Diffusion,  # noqa: ARG001
        t: float,  # noqa: ARG001
        h: float,  # noqa: ARG001
        x: Tensor,
        dw: Tensor | None,
    ) -> Tensor:
        assert dw is not None
        increments.append(dw)
        return x

    finest = FINER * SDE_STEPS[-1]
    problem.equation.states(AlteredSolver(solver, recording_step), finest, x0, generator)
    fine = torch.stack(increments)
    errors = []
    for n in SDE_STEPS:
        dw = fine.reshape(n, finest // n, *x0.shape).sum(1)
        states = problem.equation.states(AlteredSolver(solver, replayed(dw)), n, x0, generator)
        errors.append(problem.errors(states, problem.known(n, fine)))
    assert solver.strong_order is not None
    return fit_orders(SDE_STEPS, errors, solver.strong_order, solver.strong_order + 0.5)


@claim_for_each(
    stepping_solvers(lambda solver: solver.weak_order is not None),
    "solver-weak-order-{name}",
    statement=lambda solver: (
        f"The error of mean and covariance at t = 1 falls as h^{solver.weak_order:g}, that of one step as "
        f"h^{solver.weak_order + 1:g}."
    ),
    reference="theory, section 6",
    bound=order(TOLERANCE),
    mutants=lambda solver: _alter(solver, SLIPS, NOISE_SLIPS) | _declare_more(solver),
    conditions=f"linear, noise g(t) additive, d = {DIMENSION}; {WEAK_STEPS} steps of "
    f"gftkit.sampling.integrate.generate, moments computed and not sampled",
    component="solver:{name}",
    seeds=2,
    axes=AXES,
)
def weak_order(solver: Solver, generator: Generator) -> Measurement:
    """The weak order, without sampling: of an affine equation the chain's mean and covariance are computed."""

    def chain(equation: Equation, steps: int, start: Law, generator: Generator) -> Law:
        """The states are affine in the start and in every increment. One run on unit vectors gives all coefficients."""
        mean, cov = start
        d = len(mean)
        units = torch.eye(d, dtype=torch.float64)
        x0 = torch.zeros(1 + d + steps * d, d, dtype=torch.float64)
        x0[1 : 1 + d] = units
        dw = torch.zeros(steps, *x0.shape, dtype=torch.float64)
        for k in range(steps):
            dw[k, 1 + d + k * d : 1 + d + (k + 1) * d] = units
        states = equation.states(AlteredSolver(solver, replayed(dw)), steps, x0, generator)
        shift, rest = states[:, 0], states[:, 1:] - states[:, :1]
        slope, noise = rest[:, :d].mT, rest[:, d:]
        means = (slope @ mean[:, None])[..., 0] + shift
        return means, slope @ cov @ slope.mT + noise.mT @ noise / steps

    assert solver.weak_order is not None
    return fit_weak_order(solver.weak_order, chain, generator)


@claim_for_each(
    stepping_solvers(lambda solver: solver.strong_order is not None or solver.weak_order is not None),
    "solver-noise-{name}",
    statement="Without drift x1 - x0 ~ N(0, g^2 I) for every number of steps, and with a closing step.",
    reference="theory, sections 1 and 6",
    bound=statistical(),
    mutants=lambda solver: _alter(
        solver,
        {
            "increments of variance h^2": scaled_noise(math.sqrt),
            "increments of variance 1": scaled_noise(lambda h: 1 / math.sqrt(h)),
            "the same noise in every step": same_noise(),
            "no noise in the first half": lambda s, b, g, t, h, x, dw: s.step(
                b, g, t, h, x, None if dw is None or t < 0.4 else dw
            ),
        },
    ),
    conditions="g constant; 7 steps to 1, and 3 steps to 0.75 with one closing step",
    component="solver:{name}",
)
def noise_variance(solver: Solver, generator: Generator) -> float:
    """Standard errors of the variance of a Brownian motion that the sampler made, on two grids."""
    generator = cpu_generator(generator)
    total = 0.0
    for steps, t_end in ((7, 1.0), (3, 0.75)):
        g = 0.5 + float(torch.rand(1, generator=generator))
        equation = Equation(no_drift, lambda t, g=g: torch.full_like(t, g), t_end)  # type: ignore[misc]
        x0 = torch.randn(6000, 2, generator=generator, dtype=torch.float64)
        x1 = integrate.generate(equation.drift, equation, solver, steps, x0, generator, batch_size=2500)
        squares = ((x1 - x0) / g).square()
        total += float(squares.mean() - 1) * math.sqrt(squares.numel() / 2)
    return total / math.sqrt(2)
