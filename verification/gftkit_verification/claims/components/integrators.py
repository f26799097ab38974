"""The declared orders of every registered solver of a library, and what its tolerances do."""

import itertools
import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import BrownianPath, Diffusion, Field, Integrator
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.sampling.noise import BLOCK, FromGenerator
from gftkit.verify.claims import Claim, Measurement, order, statistical
from gftkit_verification.claims.components.solvers import (
    ODE_STEPS,
    SDE_STEPS,
    STRONG_TOLERANCE,
    TOLERANCE,
    WEAK_STEPS,
    apart,
    errors,
    fitted,
    ode_order,
    still,
)
from gftkit_verification.testbeds.brownian import Changed, units
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.equations import DIMENSION, Equation, Forced, Mixed, Scaled
from gftkit_verification.testbeds.moments import on_cpu
from gftkit_verification.testbeds.problems import random_covariance

FINE = 64
"""Intervals on which the Brownian path of a strong order is known."""
SAMPLES = 300
TOLERANCES = tuple(10.0**-k for k in range(5, 11))
PROPORTIONAL = 0.2
"""How far from 1 the slope of log error on log tolerance may stay."""

Run = Callable[[Integrator, Field, Diffusion | None, Sequence[float], Tensor, BrownianPath | None], Iterator[Tensor]]
"""A solver's integration, with the solver itself in front."""


class Altered:
    """A library's solver with another integration or Brownian path, and the orders that it declares.

    Args:
        solver: the solver.
        run: its integration.
        path: given in place of the solver's own.
        more: added to every declared order.
    """

    def __init__(self, solver: Integrator, run: Run, path: BrownianPath | None = None, more: float = 0) -> None:
        self.solver, self.run, self.path = solver, run, path
        orders = (solver.ode_order, solver.strong_order, solver.weak_order)
        self.ode_order, self.strong_order, self.weak_order = (None if p is None else p + more for p in orders)

    def brownian(self, x: Tensor, t_end: float, generator: Generator) -> BrownianPath:
        """The given path, or the solver's."""
        return self.solver.brownian(x, t_end, generator) if self.path is None else self.path

    def integrate(
        self,
        drift: Field,
        diffusion: Diffusion | None,
        times: Sequence[float],
        x: Tensor,
        brownian: BrownianPath | None,
    ) -> Iterator[Tensor]:
        """The states at ``times``."""
        return self.run(self.solver, drift, diffusion, times, x, brownian)


def own(
    s: Integrator, b: Field, g: Diffusion | None, times: Sequence[float], x: Tensor, path: BrownianPath | None
) -> Iterator[Tensor]:
    """The solver's own integration."""
    return s.integrate(b, g, times, x, path)


def _noise(scale: Callable[[float, float], float]) -> Run:
    """The path's increments multiplied by scale(s, t)."""
    return lambda s, b, g, times, x, path: s.integrate(b, g, times, x, None if path is None else Changed(path, scale))


def _g(change: Callable[[Diffusion], Diffusion]) -> Run:
    """Another diffusion."""
    return lambda s, b, g, times, x, path: s.integrate(b, None if g is None else change(g), times, x, path)


def _held(
    s: Integrator, b: Field, g: Diffusion | None, times: Sequence[float], x: Tensor, path: BrownianPath | None
) -> Iterator[Tensor]:
    """The slope of each interval's start all over it."""
    yield x
    for t, later in itertools.pairwise(times):
        slope = b(t, x)
        *_, x = s.integrate(lambda *_, slope=slope: slope, g, (t, later), x, path)
        yield x


SLIPS: Mapping[str, Run] = {
    "time held at 0": lambda s, b, g, times, x, path: s.integrate(
        lambda _, y: b(0.0, y), None if g is None else lambda _: g(0.0), times, x, path
    ),
    "last step dropped": lambda s, b, g, times, x, path: s.integrate(b, g, times[:-1], x, path),
    "half of the drift": lambda s, b, g, times, x, path: s.integrate(lambda t, y: b(t, y) / 2, g, times, x, path),
}
HIGHER_SLIPS: Mapping[str, Run] = {
    "slope of the step's start": _held,
    "step too long by h/10": lambda s, b, g, times, x, path: s.integrate(
        lambda t, y: b(t, y) * (1 + (times[1] - times[0]) / 10), g, times, x, path
    ),
}
NOISE_SLIPS: Mapping[str, Run] = {
    "noise scaled by h": _noise(lambda s, t: math.sqrt(t - s)),
    "no noise": _noise(lambda s, t: 0.0),  # noqa: ARG005
    "diffusion held at 0": _g(lambda g: lambda _: g(0.0)),
    "squared diffusion": _g(lambda g: lambda t: g(t) ** 2),
}


def strong_order(solver: Integrator, generator: Generator) -> Measurement:
    """The strong order, along one of the solver's own Brownian paths, on which every number of steps is run."""
    generator = on_cpu(generator)
    problem = Forced(generator)
    x0 = torch.randn(SAMPLES, Forced.DIMENSION, generator=generator, dtype=torch.float64)
    path = solver.brownian(x0, 1.0, generator)
    known = [path(k / FINE, (k + 1) / FINE, return_U=True) for k in range(FINE)]
    increments, integrals = (torch.stack(parts) for parts in zip(*known, strict=True))
    found = []
    for n in SDE_STEPS:
        states = _states(problem.equation, Altered(solver, own, path), n, x0, generator)
        found.append(problem.errors(states, problem.known(n, increments, integrals)))
    assert solver.strong_order is not None
    return fitted(SDE_STEPS, found, solver.strong_order, solver.strong_order + 0.5)


def weak_order(solver: Integrator, generator: Generator) -> Measurement:
    """The weak order, without sampling: of an affine equation the chain's mean and covariance are computed.

    The states are affine in the start, in every increment and in every integral. One run on unit vectors gives all
    coefficients.
    """
    generator = on_cpu(generator)
    problem = Scaled(generator)
    mean = torch.randn(DIMENSION, generator=generator, dtype=torch.float64)
    cov = random_covariance(DIMENSION, generator)
    found = []
    for n in WEAK_STEPS:
        means, covs = _chain(problem.equation, solver, n, mean, cov, generator)
        times = torch.linspace(0, 1, n + 1, dtype=torch.float64)[:, None]
        whole = problem.exact_law(times[:1], (mean, cov), times[-1:])
        single = problem.exact_law(times[:-1], (means[:-1], covs[:-1]), times[1:])
        ends, steps = apart((means[-1:], covs[-1:]), whole), apart((means[1:], covs[1:]), single)
        found.append((float(ends), float(steps.max())))
    assert solver.weak_order is not None
    return fitted(WEAK_STEPS, found, solver.weak_order, solver.weak_order + 1)


def _chain(
    equation: Equation, solver: Integrator, steps: int, mean: Tensor, cov: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mean and covariance at each time, from a normal law: (steps + 1, d), (steps + 1, d, d)."""
    d = len(mean)
    given = units(steps, d)
    start = torch.zeros(1 + d, d, dtype=torch.float64)
    start[1:] = torch.eye(d, dtype=torch.float64)
    x0 = torch.cat([start, torch.zeros(given.increments.shape[1:], dtype=torch.float64)])
    none = torch.zeros(steps, 1 + d, d, dtype=torch.float64)
    path = type(given)(torch.cat([none, given.increments], 1), torch.cat([none, given.integrals], 1))
    states = _states(equation, Altered(solver, own, path), steps, x0, generator)
    shift, rest = states[:, 0], states[:, 1:] - states[:, :1]
    slope, noise = rest[:, :d].mT, rest[:, d:]
    return (slope @ mean[:, None])[..., 0] + shift, slope @ cov @ slope.mT + noise.mT @ noise


def _states(equation: Equation, solver: Integrator, steps: int, x0: Tensor, generator: Generator) -> Tensor:
    """States at times 0, 1/steps, ..., 1, by the sampler's loop; ``generate`` gives a library 64 samples at once."""
    grid = integrate.grid_of(equation, steps)
    g = integrate.diffusion_of(equation, grid.times)
    run = integrate.trajectory(integrate.bind_conditions(equation.drift), g, solver, grid, x0, FromGenerator(generator))
    states = torch.stack(list(run))
    return states[torch.arange(steps + 1).clamp(max=len(states) - 1)]


def noise(solver: Integrator, generator: Generator) -> float:
    """Standard errors of the variance of Brownian motions that the sampler made, on two grids."""
    generator = on_cpu(generator)
    found = 0.0
    for steps, t_end in ((7, 1.0), (3, 0.75)):
        g = 0.5 + float(torch.rand(1, generator=generator))
        equation = Equation(still, lambda t, g=g: torch.full_like(t, g), t_end)  # type: ignore[misc]
        x0 = torch.randn(2 * BLOCK, 80, generator=generator, dtype=torch.float64)
        x1 = integrate.generate(equation.drift, equation, solver, steps, x0, generator)
        squares = ((x1 - x0) / g).square()
        found += float(squares.mean() - 1) * math.sqrt(squares.numel() / 2)
    return found / math.sqrt(2)


Toleranced = Callable[[float], Integrator]
"""An adaptive solver of a relative and absolute tolerance."""


def proportional(make: Toleranced, generator: Generator) -> Measurement:
    """How much the slope of log error on log tolerance falls short of 1, on an ODE that meets the time 1/2."""
    generator = on_cpu(generator)
    problem = Mixed(generator)
    x0 = torch.randn(16, DIMENSION, generator=generator, dtype=torch.float64)
    found = [errors(problem, problem.equation.states(make(each), 2, x0, generator)) for each in TOLERANCES]
    logs = np.log(np.maximum(np.array(found), 1e-300))
    slopes = np.polyfit(np.log(np.array(TOLERANCES)), logs, 1)[0]
    ends = [end for end, _ in found]
    line = [ends[0] * each / TOLERANCES[0] for each in TOLERANCES]
    return Measurement(
        max(0.0, 1 - float(slopes.min())),
        {"measured": (TOLERANCES, ends), "proportional": (TOLERANCES, line)},
        f"slopes {slopes[0]:.3f} at t = 1 and {slopes[1]:.3f} at the worse time",
    )


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    for name, solver in components(registry, "solver"):
        if not isinstance(solver, Integrator):
            continue  # see solvers.py
        component, axes = f"solver:{name}", ("step h", "error")
        if getattr(solver, "adaptive", False):
            yield from _adaptive(registry, name)
            continue
        one_more = {"one order more declared": Altered(solver, own, more=1)}
        slips = {key: Altered(solver, run) for key, run in SLIPS.items()}
        noise_slips = {key: Altered(solver, run) for key, run in NOISE_SLIPS.items()}
        if solver.ode_order is not None:
            higher = {key: Altered(solver, run) for key, run in HIGHER_SLIPS.items()} if solver.ode_order > 1 else {}
            yield Claim(
                f"solver-ode-order-{name}",
                f"The error at t = 1 falls as h^{solver.ode_order:g}, that of one step as h^{solver.ode_order + 1:g}.",
                "theory, section 6",
                solver,
                ode_order,
                order(TOLERANCE),
                {**slips, **higher, **one_more},
                f"nonlinear, non-autonomous, d = {DIMENSION}; {ODE_STEPS} steps of gftkit.sampling.integrate.generate",
                component,
                seeds=1,
                axes=axes,
            )
        if solver.strong_order is not None:
            yield Claim(
                f"solver-strong-order-{name}",
                f"Of a shared Brownian path the error at t = 1 falls as h^{solver.strong_order:g}, and that of one "
                f"step as h^{solver.strong_order + 0.5:g}, in root mean square.",
                "theory, section 6",
                solver,
                strong_order,
                order(STRONG_TOLERANCE),
                {
                    "last step dropped": slips["last step dropped"],
                    "half of the drift": slips["half of the drift"],
                    "noise scaled by h": noise_slips["noise scaled by h"],
                    "squared diffusion": noise_slips["squared diffusion"],
                    "sign of the noise": Altered(solver, _noise(lambda s, t: -1.0)),  # noqa: ARG005
                    **one_more,
                },
                f"quadratic, noise g(t) additive, d = {Forced.DIMENSION}; {SDE_STEPS} steps of "
                f"gftkit.sampling.integrate.trajectory, on a path whose increments and integrals are known on {FINE} "
                f"intervals",
                component,
                seeds=1,
                axes=axes,
            )
        if solver.weak_order is not None:
            yield Claim(
                f"solver-weak-order-{name}",
                f"The error of mean and covariance at t = 1 falls as h^{solver.weak_order:g}, that of one step as "
                f"h^{solver.weak_order + 1:g}.",
                "theory, section 6",
                solver,
                weak_order,
                order(TOLERANCE),
                {**slips, **noise_slips, **one_more},
                f"linear, noise g(t) additive, d = {DIMENSION}; {WEAK_STEPS} steps of "
                f"gftkit.sampling.integrate.trajectory, moments computed and not sampled",
                component,
                seeds=1,
                axes=axes,
            )
        if solver.strong_order is not None or solver.weak_order is not None:
            yield Claim(
                f"solver-noise-{name}",
                "Without drift x1 - x0 ~ N(0, g^2 I) for every number of steps, and with a closing step.",
                "theory, sections 1 and 6",
                solver,
                noise,
                statistical(),
                {
                    "increments of variance h^2": Altered(solver, _noise(lambda s, t: math.sqrt(t - s))),
                    "increments of variance 1": Altered(solver, _noise(lambda s, t: 1 / math.sqrt(t - s))),
                    "no noise in the first half": Altered(solver, _noise(lambda s, t: float(s >= 0.4))),  # noqa: ARG005
                },
                "g constant; 7 steps to 1, and 3 steps to 0.75 with one closing step",
                component,
                seeds=1,
            )


def _adaptive(registry: Registry, name: str) -> Iterator[Claim]:
    """That of a solver that chooses its own steps, with the options ``rtol`` and ``atol``."""
    if not {"rtol", "atol"} <= set(registry.component("solver", name).options):
        return

    def make(tolerance: float) -> Integrator:
        made: Integrator = registry.create("solver", name, rtol=tolerance, atol=tolerance)
        return made

    slips = {key: lambda tolerance, run=run: Altered(make(tolerance), run) for key, run in SLIPS.items()}
    yield Claim(
        f"solver-tolerance-{name}",
        "The error falls at least in proportion to the tolerances.",
        "Hairer, Norsett, Wanner (1993), section II.4",
        make,
        proportional,
        order(PROPORTIONAL),
        {
            **slips,
            "tolerances not passed on": lambda _: make(1e-5),
            "steps accepted by the tolerance's cube root": lambda tolerance: make(tolerance ** (1 / 3)),
        },
        f"nonlinear, non-autonomous, d = {DIMENSION}; tolerances {TOLERANCES[0]:g} to {TOLERANCES[-1]:g}",
        f"solver:{name}",
        seeds=2,
        axes=("tolerance", "error"),
    )
