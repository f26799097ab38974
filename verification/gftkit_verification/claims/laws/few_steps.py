"""T11: the error of Euler's scheme in few steps, on Gaussian flows and trained drifts; straight flows have none."""

import functools
from collections.abc import Callable
from dataclasses import replace

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.theory import objective, predictions
from gftkit.verify.claims import Line, Measurement, exact, order
from gftkit.verify.declaration import FromRegistry, claim, registered
from gftkit_verification.oracles.gaussian import bures_map
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.loops.fitted_flows import DEGREE, LINEAR, FlowFit
from gftkit_verification.testbeds.loops.shipped import LinearModel
from gftkit_verification.testbeds.measuring.euler_error import (
    FINE,
    AffineGrid,
    Derivatives,
    FewSteps,
    Velocity,
    acceleration,
    blended_drift,
    derivatives,
    end_state,
    extrapolate_error,
    leading_error,
    predict_acceleration,
    without_rate,
)
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, random_covariance, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.slips.solvers import SLIPS, AlteredSolver

STEPS = (6, 12, 24)
TEMPERATURES = (0.0, 0.5, 3.0)
ACCELERATED = (0.01, 0.1, 0.5, 1.0, 5.0, 30.0)
"""Temperatures of the blends whose acceleration is measured."""
VISIBLE = 1e-3
"""Relative error of one Euler step that is not round-off."""

NETWORK = Train(steps=400, batch_size=256, learning_rate=3e-3, decay="cosine", clip=None)
TRAINED_STEPS = (32, 64, 128, 256)
TRAINED_TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 5.0, 30.0)
TRAINED_FINE = 100
"""Runge-Kutta steps of a trained network's reference."""

AXES = ("steps", "error at t = 1")


def _drop_last_step(solver: Solver) -> AlteredSolver:
    return AlteredSolver(solver, SLIPS["last step dropped"])


def _late_drift(solver: Solver) -> AlteredSolver:
    return AlteredSolver(solver, lambda s, b, g, t, h, x, dw: s.step(b, g, min(t + h, 1.0), h, x, dw))


# --- the error's constant ---------------------------------------------------------------------------------------------


@claim(
    "T11-euler-constant-gaussian",
    statement=(
        "N times Euler's error in N steps tends to (1/2) int Phi(1, t) a_t dt with a_beta of the blend's velocity."
    ),
    reference="theory, T11",
    subject=registered("solver", "euler").then(FewSteps),
    bound=order(0.04),
    mutants=lambda few: {
        "d_t v dropped": replace(
            few, acceleration=lambda one, other, rho: acceleration(without_rate(one), without_rate(other), rho)
        ),
        "(grad Delta) Delta dropped": replace(
            few, acceleration=lambda one, other, rho: (1 - rho) * one.acceleration + rho * other.acceleration
        ),
        "factor 1/2 dropped": replace(few, share=1.0),
        "Phi dropped": replace(few, transport=False),
        "last step dropped": replace(few, solver=_drop_last_step(few.solver)),
        "drift at the step's end": replace(few, solver=_late_drift(few.solver)),
    },
    conditions=(
        f"normal laws, d = 3, both couplings, temperatures {TEMPERATURES}; {STEPS} steps, extrapolated to h = 0"
    ),
    component="solver:euler",
    seeds=1,
    axes=AXES,
)
def euler_constant(subject: FewSteps, generator: Generator) -> Measurement:
    """The relative distance of N times the error, extrapolated to h = 0, from its predicted limit."""
    generator = cpu_generator(generator)
    worst = 0.0
    lines: dict[str, Line] = {}
    for coupling, beta in zip(COUPLINGS * 2, TEMPERATURES, strict=False):
        target = draw_flow(3, generator, coupling)
        anchor = retarget(target, generator)
        x0 = target.starts(8, generator)
        exact_end, predicted = leading_error(subject, AffineGrid(target).at, AffineGrid(anchor).at, beta, x0, FINE)
        drift = blended_drift(target.velocity, anchor.velocity, beta)
        error, lines = extrapolate_error(drift, subject.solver, STEPS, x0, exact_end=exact_end, predicted=predicted)
        worst = max(worst, error)
    return Measurement(worst, lines)


def _plain_fit(registry: Registry) -> FlowFit:
    """Independent pairs on the linear path; Euler's scheme."""
    independent, linear = registry.create("coupling", "independent"), registry.create("path", "linear")
    return FlowFit(registry, independent, linear, registry.create("solver", "euler"))


@claim(
    "T11-few-steps-trained",
    statement="For a trained network, and for blends of trained drifts, N times Euler's error in N steps tends to "
    "(1/2) int Phi(1, t) a_t dt.",
    reference="theory, T11",
    subject=registered("solver", "euler").then(FewSteps),
    bound=order(0.02),
    mutants=lambda few: {
        "factor 1/2 dropped": replace(few, share=1.0),
        "Phi dropped": replace(few, transport=False),
        "d_t v dropped": replace(
            few, acceleration=lambda one, _, rho: acceleration(without_rate(one), without_rate(one), rho)
        ),
        "last step dropped": replace(few, solver=_drop_last_step(few.solver)),
    },
    conditions=f"mlp of width 32 in the plane; linear models in dimension 2 with independent and 3 with optimal "
    f"coupling, at temperatures {', '.join(f'{beta:g}' for beta in TRAINED_TEMPERATURES)}; {TRAINED_STEPS} steps, "
    f"extrapolated to h = 0",
    component="solver:euler",
    profile="full",
    seeds=1,
    axes=AXES,
    uses={"fit": FromRegistry(_plain_fit)},
)
def euler_constant_trained(subject: FewSteps, generator: Generator, *, fit: FlowFit) -> Measurement:
    """The relative distance of N times Euler's error, extrapolated, from its predicted limit, for trained drifts.

    A network at temperature 0, and blends of linear models, whose smoothness allows many cases.
    """
    here = cpu_generator(generator)
    target = draw_flow(2, here)
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw_seed(here))
        drift = fit.registry.build("drift", {"name": "mlp", "width": 32, "depth": 2}, event_shape=(2,))
    network = fit.trained_drift(drift, target, NETWORK, generator).cpu().double()
    worst, lines = _trained_error(subject, network, network, 0.0, target.starts(16, here), TRAINED_FINE)
    for k, (d, coupling) in enumerate(zip((2, 3), COUPLINGS, strict=True)):
        target = draw_flow(d, here, coupling)
        one, other = (
            fit.trained_drift(LinearModel(d, DEGREE), gaussian, LINEAR, generator).cpu().double()
            for gaussian in (target, retarget(target, here))
        )
        for beta in TRAINED_TEMPERATURES[k::2]:
            error, _ = _trained_error(subject, one, other, beta, target.starts(16, here), TRAINED_FINE // 4)
            worst = max(worst, error)
    return Measurement(worst, lines)


def _trained_error(
    subject: FewSteps, one: nn.Module, other: nn.Module, beta: float, x0: Tensor, fine: int
) -> tuple[float, dict[str, Line]]:
    """The distance from the predicted limit, and the errors, of the blend of two drifts."""

    def at(drift: nn.Module, k: int, x: Tensor) -> Derivatives:
        return derivatives(drift, torch.full((len(x),), k / (2 * fine), dtype=torch.float64), x)

    both = functools.partial(at, one), functools.partial(at, other)
    exact_end, predicted = leading_error(subject, *both, beta, x0, fine)
    drift = blended_drift(one, other, beta)
    return extrapolate_error(drift, subject.solver, TRAINED_STEPS, x0, exact_end=exact_end, predicted=predicted)


# --- straight flows ---------------------------------------------------------------------------------------------------


@claim(
    "T11-straight-flow-exact",
    statement="One Euler step is exact on the optimal coupling's flow, straight and of constant speed; it isn't on the "
    "independent coupling's, nor on a blend of two straight flows.",
    reference="theory, T11",
    subject=registered("solver", "euler"),
    bound=exact(),
    mutants=lambda euler: {
        "last step dropped": _drop_last_step(euler),
        "drift at the step's end": _late_drift(euler),
        "half of the drift": AlteredSolver(euler, SLIPS["half of the drift"]),
    },
    conditions="normal laws, d = 2 and 5; 1, 2 and 5 steps of gftkit.sampling.integrate.generate",
    component="solver:euler",
    seeds=2,
)
def error_on_straight_flows(solver: Solver, generator: Generator) -> float:
    """Euler's relative error on straight flows in 1 to 5 steps; 1 where it has none on a flow that isn't straight."""
    generator = cpu_generator(generator)
    worst = 0.0
    for d in (2, 5):
        target = draw_flow(d, generator, "optimal-transport")
        anchor = retarget(target, generator)
        x0 = target.starts(8, generator)
        exact_end = target.mean1 + (x0 - target.mean0) @ bures_map(target.cov0, target.cov1).mT
        bent = draw_flow(d, generator)
        for steps in (1, 2, 5):
            end = end_state(blended_drift(target.velocity, target.velocity, 0.0), solver, steps, x0)
            worst = max(worst, float((end - exact_end).norm() / exact_end.norm()))
        bent_drift = blended_drift(bent.velocity, bent.velocity, 0.0)
        for drift in (bent_drift, blended_drift(target.velocity, anchor.velocity, 1.0)):
            one, many = (end_state(drift, solver, steps, x0) for steps in (1, 2))
            worst = max(worst, 0.0 if (one - many).norm() > VISIBLE * many.norm() else 1.0)
    return worst


# --- the blend's acceleration -----------------------------------------------------------------------------------------


@claim(
    "T11-blend-acceleration-gaussian",
    statement=(
        "a_beta = (1 - rho) a_tgt + rho a_pre - rho (1 - rho) (grad Delta) Delta is the blend's total derivative."
    ),
    reference="theory, T11",
    subject=predictions.blend_acceleration,
    bound=exact(),
    mutants={
        "last term dropped": lambda one, other, gap, rho: (1 - rho) * one + rho * other,  # noqa: ARG005
        "sign of the last term": lambda one, other, gap, rho: predictions.blend_acceleration(one, other, -gap, rho),
        "rho for 1 - rho": lambda one, other, gap, rho: predictions.blend_acceleration(one, other, gap, 1 - rho),
        "rho^2 for rho (1 - rho)": lambda one, other, gap, rho: (1 - rho) * one + rho * other - rho**2 * gap,
    },
    conditions="flows to normal laws of both couplings and to mixtures, d = 2 and 5; temperatures 0.01 to 30",
    seeds=2,
    uses={"path": registered("path", "linear")},
)
def acceleration_error(
    predicted: Callable[[Tensor, Tensor, Tensor, float], Tensor], generator: Generator, *, path: Path
) -> float:
    """The relative distance of the predicted a_beta from the blend's total derivative by autograd."""
    generator = cpu_generator(generator)
    worst = 0.0
    for d in (2, 5):
        flows: list[tuple[Velocity, Velocity]] = []
        for coupling in COUPLINGS:
            target = draw_flow(d, generator, coupling)
            flows.append((target.velocity, retarget(target, generator).velocity))
        flows.append((_draw_mixture(path, d, generator).velocity, _draw_mixture(path, d, generator).velocity))
        count = len(ACCELERATED)
        t = torch.rand(8 * count, generator=generator, dtype=torch.float64)
        x = torch.randn(len(t), d, generator=generator, dtype=torch.float64)
        for one, other in flows:
            # One part of the states for each temperature.
            def blend(t: Tensor, x: Tensor, one: Velocity = one, other: Velocity = other) -> Tensor:
                parts = zip(one(t, x).chunk(count), other(t, x).chunk(count), ACCELERATED, strict=True)  # noqa: B023
                return torch.cat([objective.blend(*part) for part in parts])

            expected = derivatives(blend, t, x).acceleration.chunk(count)
            here, there = derivatives(one, t, x), derivatives(other, t, x)
            for k, beta in enumerate(ACCELERATED):
                value = predict_acceleration(predicted, here, there, objective.retention(beta)).chunk(count)[k]
                worst = max(worst, float((value - expected[k]).norm() / expected[k].norm()))
    return worst


def _draw_mixture(path: Path, d: int, generator: Generator) -> MixtureFlow:
    source = draw_flow(d, generator)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.randn(2, d, generator=generator, dtype=torch.float64)
    covs = torch.stack([random_covariance(d, generator) for _ in weights])
    return MixtureFlow(path, source.mean0, source.cov0, weights, means, covs)
