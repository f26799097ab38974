"""The declared orders of every registered solver, against exact solutions, through the sampler's own loop."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence

import numpy as np
import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Diffusion, Field, Integrator, Solver
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.verify.claims import Claim, Measurement, order, statistical
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.equations import DIMENSION, Equation, Forced, Mixed, Scaled
from gftkit_verification.testbeds.moments import cpu_generator
from gftkit_verification.testbeds.problems import random_covariance

ODE_STEPS = (10, 20, 40)
SDE_STEPS = (8, 16, 32)
FINER = 4
"""How much finer the Brownian path is known than the finest of them."""
WEAK_STEPS = (10, 20, 40)
TOLERANCE = 0.15
"""Distance of a fitted slope from the declared order."""
STRONG_TOLERANCE = 0.2
"""The same for strong orders, which are measured on samples."""

Step = Callable[[Solver, Field, Diffusion, float, float, Tensor, Tensor | None], Tensor]
"""A solver's step, with the solver itself in front."""


class Altered:
    """A solver with another step, and the orders that it declares.

    Args:
        solver: the solver.
        altered: its step; by default the solver's own.
        more: added to every declared order.
    """

    def __init__(self, solver: Solver, altered: Step, more: float = 0) -> None:
        self.solver, self.altered = solver, altered
        orders = (solver.ode_order, solver.strong_order, solver.weak_order)
        self.ode_order, self.strong_order, self.weak_order = (None if p is None else p + more for p in orders)

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        """The state at t + h."""
        return self.altered(self.solver, drift, diffusion, t, h, x, dw)


def _own(solver: Solver, b: Field, g: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
    return solver.step(b, g, t, h, x, dw)


def _noise(scale: Callable[[float], float]) -> Step:
    """The increment multiplied by scale(h)."""
    return lambda s, b, g, t, h, x, dw: s.step(b, g, t, h, x, None if dw is None else scale(h) * dw)


def _same_noise() -> Step:
    """The first step's increment in every step."""
    first: list[Tensor | None] = [None]

    def step(s: Solver, b: Field, g: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        if t == 0:
            first[0] = dw
        return s.step(b, g, t, h, x, first[0])

    return step


SLIPS: Mapping[str, Step] = {
    "time held at 0": lambda s, b, g, t, h, x, dw: s.step(lambda _, y: b(0.0, y), lambda _: g(0.0), t, h, x, dw),
    "last step dropped": lambda s, b, g, t, h, x, dw: x if t + h > 1 - 1e-9 else s.step(b, g, t, h, x, dw),
    "half of the drift": lambda s, b, g, t, h, x, dw: s.step(lambda u, y: b(u, y) / 2, g, t, h, x, dw),
}
HIGHER_SLIPS: Mapping[str, Step] = {
    "slope of the step's start": lambda s, b, g, t, h, x, dw: s.step(lambda *_: b(t, x), g, t, h, x, dw),
    "step 1 % too long at h = 0.1": lambda s, b, g, t, h, x, dw: s.step(
        lambda u, y: b(u, y) * (1 + h / 10), g, t, h, x, dw
    ),
}
NOISE_SLIPS: Mapping[str, Step] = {
    "noise scaled by h": _noise(math.sqrt),
    "no noise": _noise(lambda _: 0.0),
    "diffusion held at 0": lambda s, b, g, t, h, x, dw: s.step(b, lambda _: g(0.0), t, h, x, dw),
    "squared diffusion": lambda s, b, g, t, h, x, dw: s.step(b, lambda u: g(u) ** 2, t, h, x, dw),
}


Errors = tuple[float, float]
"""Over the whole interval, and the largest of one step."""


def fitted(steps: Sequence[int], errors: Sequence[Errors], declared: float, local: float) -> Measurement:
    """The distance of two slopes from what is declared: of the error at t = 1, and of the largest error of one step.

    The error of one step sees what the end doesn't: an Euler scheme that leaves out its last step still has order 1.

    Args:
        steps: how many, increasing.
        errors: for each of them.
        declared: the order.
        local: the order of one step's error.
    """
    h = 1 / np.array(steps)
    logs = np.log(np.maximum(np.array(errors), 1e-300))
    whole, single = np.polyfit(np.log(h), logs, 1)[0]
    apart = max(whole - declared, single - local, key=abs)
    ends = [error for error, _ in errors]
    line = ends[-1] * (h / h[-1]) ** declared
    return Measurement(
        float(apart),
        {"measured": (h.tolist(), ends), "declared order": (h.tolist(), line.tolist())},
        f"slopes {whole:.3f} at t = 1 and {single:.3f} for one step",
    )


def errors(problem: Mixed, states: Tensor) -> Errors:
    """Root mean squares over samples."""
    times = torch.linspace(0, 1, len(states), dtype=torch.float64)[:, None, None]
    whole = states[-1] - problem.exact(times[0], states[0], times[-1])
    single = states[1:] - problem.exact(times[:-1], states[:-1], times[1:])
    return float(whole.square().mean().sqrt()), float(single.square().mean((1, 2)).sqrt().max())


def ode_order(solver: Solver | Integrator, generator: Generator) -> Measurement:
    """The order for ODEs."""
    generator = cpu_generator(generator)
    problem = Mixed(generator)
    x0 = torch.randn(64, DIMENSION, generator=generator, dtype=torch.float64)
    found = [errors(problem, problem.equation.states(solver, n, x0, generator)) for n in ODE_STEPS]
    assert solver.ode_order is not None
    return fitted(ODE_STEPS, found, solver.ode_order, solver.ode_order + 1)


def strong_order(solver: Solver, generator: Generator) -> Measurement:
    """The strong order: a run that stands still keeps the sampler's own increments, the others replay their sums.

    The exact solution is known but for what the finest increments don't tell of it, a part of 1/FINER of the error.
    """
    generator = cpu_generator(generator)
    problem = Forced(generator)
    x0 = torch.randn(300, Forced.DIMENSION, generator=generator, dtype=torch.float64)
    drawn: list[Tensor] = []

    def recorded(s: Solver, b: Field, g: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:  # noqa: ARG001
        assert dw is not None
        drawn.append(dw)
        return x

    finest = FINER * SDE_STEPS[-1]
    problem.equation.states(Altered(solver, recorded), finest, x0, generator)
    fine = torch.stack(drawn)
    found = []
    for n in SDE_STEPS:
        dw = fine.reshape(n, finest // n, *x0.shape).sum(1)
        states = problem.equation.states(Altered(solver, _replay(dw)), n, x0, generator)
        found.append(problem.errors(states, problem.known(n, fine)))
    assert solver.strong_order is not None
    return fitted(SDE_STEPS, found, solver.strong_order, solver.strong_order + 0.5)


def _replay(increments: Tensor) -> Step:
    """Steps with these increments, (steps, n, d), for those that the sampler draws."""
    return lambda s, b, g, t, h, x, _: s.step(b, g, t, h, x, increments[round(t * len(increments))])


def weak_order(solver: Solver, generator: Generator) -> Measurement:
    """The weak order, without sampling: of an affine equation the chain's mean and covariance are computed."""
    generator = cpu_generator(generator)
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


def apart(law: tuple[Tensor, Tensor], other: tuple[Tensor, Tensor]) -> Tensor:
    """The distance of means and covariances, (n,)."""
    return torch.sqrt((law[0] - other[0]).square().sum(1) + (law[1] - other[1]).square().sum((1, 2)))


def _chain(
    equation: Equation, solver: Solver, steps: int, mean: Tensor, cov: Tensor, generator: Generator
) -> tuple[Tensor, Tensor]:
    """Mean and covariance of the sampler's states at each time, from a normal law: (steps + 1, d), (steps + 1, d, d).

    The states are affine in the start and in every increment. One run on unit vectors gives all coefficients.
    """
    d = len(mean)
    units = torch.eye(d, dtype=torch.float64)
    x0 = torch.zeros(1 + d + steps * d, d, dtype=torch.float64)
    x0[1 : 1 + d] = units
    dw = torch.zeros(steps, *x0.shape, dtype=torch.float64)
    for k in range(steps):
        dw[k, 1 + d + k * d : 1 + d + (k + 1) * d] = units
    states = equation.states(Altered(solver, _replay(dw)), steps, x0, generator)
    shift, rest = states[:, 0], states[:, 1:] - states[:, :1]
    slope, noise = rest[:, :d].mT, rest[:, d:]
    means = (slope @ mean[:, None])[..., 0] + shift
    return means, slope @ cov @ slope.mT + noise.mT @ noise / steps


def noise(solver: Solver, generator: Generator) -> float:
    """Standard errors of the variance of a Brownian motion that the sampler made, on two grids."""
    generator = cpu_generator(generator)
    found = 0.0
    for steps, t_end in ((7, 1.0), (3, 0.75)):
        g = 0.5 + float(torch.rand(1, generator=generator))
        equation = Equation(still, lambda t, g=g: torch.full_like(t, g), t_end)  # type: ignore[misc]
        x0 = torch.randn(6000, 2, generator=generator, dtype=torch.float64)
        x1 = integrate.generate(equation.drift, equation, solver, steps, x0, generator, batch_size=2500)
        squares = ((x1 - x0) / g).square()
        found += float(squares.mean() - 1) * math.sqrt(squares.numel() / 2)
    return found / math.sqrt(2)


def still(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
    """No drift."""
    return torch.zeros_like(x)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    for name, solver in components(registry, "solver"):
        if getattr(solver, "jumps", False):
            continue  # it asks a flow map: see flow_maps
        if isinstance(solver, Integrator):
            continue  # see integrators.py
        component = f"solver:{name}"
        one_more = {"one order more declared": Altered(solver, _own, more=1)}
        slips = {key: Altered(solver, step) for key, step in SLIPS.items()}
        noise_slips = {key: Altered(solver, step) for key, step in NOISE_SLIPS.items()}
        axes = ("step h", "error")
        if solver.ode_order is not None:
            higher = {key: Altered(solver, step) for key, step in HIGHER_SLIPS.items()} if solver.ode_order > 1 else {}
            yield Claim(
                name=f"solver-ode-order-{name}",
                statement=(
                    f"The error at t = 1 falls as h^{solver.ode_order:g}, that of one step as "
                    f"h^{solver.ode_order + 1:g}."
                ),
                reference="theory, section 6",
                subject=solver,
                measure=ode_order,
                bound=order(TOLERANCE),
                mutants={**slips, **higher, **one_more},
                conditions=(
                    f"nonlinear, non-autonomous, d = {DIMENSION}; {ODE_STEPS} steps of "
                    "gftkit.sampling.integrate.generate"
                ),
                component=component,
                seeds=2,
                axes=axes,
            )
        if solver.strong_order is not None:
            yield Claim(
                name=f"solver-strong-order-{name}",
                statement=(
                    f"Of a shared Brownian path the error at t = 1 falls as h^{solver.strong_order:g}, and that of one "
                    f"step as h^{solver.strong_order + 0.5:g}, in root mean square."
                ),
                reference="theory, section 6",
                subject=solver,
                measure=strong_order,
                bound=order(STRONG_TOLERANCE),
                mutants={
                    **slips,
                    **noise_slips,
                    "sign of the noise": Altered(solver, _noise(lambda _: -1.0)),
                    **one_more,
                },
                conditions=f"quadratic, noise g(t) additive, d = {Forced.DIMENSION}; {SDE_STEPS} steps of "
                f"gftkit.sampling.integrate.generate, on a path that is known at {FINER * SDE_STEPS[-1]} times",
                component=component,
                seeds=2,
                axes=axes,
            )
        if solver.weak_order is not None:
            yield Claim(
                name=f"solver-weak-order-{name}",
                statement=(
                    f"The error of mean and covariance at t = 1 falls as h^{solver.weak_order:g}, that of one step as "
                    f"h^{solver.weak_order + 1:g}."
                ),
                reference="theory, section 6",
                subject=solver,
                measure=weak_order,
                bound=order(TOLERANCE),
                mutants={**slips, **noise_slips, **one_more},
                conditions=f"linear, noise g(t) additive, d = {DIMENSION}; {WEAK_STEPS} steps of "
                f"gftkit.sampling.integrate.generate, moments computed and not sampled",
                component=component,
                seeds=2,
                axes=axes,
            )
        if solver.strong_order is not None or solver.weak_order is not None:
            yield Claim(
                name=f"solver-noise-{name}",
                statement="Without drift x1 - x0 ~ N(0, g^2 I) for every number of steps, and with a closing step.",
                reference="theory, sections 1 and 6",
                subject=solver,
                measure=noise,
                bound=statistical(),
                mutants={
                    "increments of variance h^2": Altered(solver, _noise(math.sqrt)),
                    "increments of variance 1": Altered(solver, _noise(lambda h: 1 / math.sqrt(h))),
                    "the same noise in every step": Altered(solver, _same_noise()),
                    "no noise in the first half": Altered(
                        solver,
                        lambda s, b, g, t, h, x, dw: s.step(b, g, t, h, x, None if dw is None or t < 0.4 else dw),
                    ),
                },
                conditions="g constant; 7 steps to 1, and 3 steps to 0.75 with one closing step",
                component=component,
            )
