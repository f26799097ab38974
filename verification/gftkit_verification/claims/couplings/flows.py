"""T10 for the flows that couplings lead to, in closed form: their laws, their energy, and blends of two of them."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.theory import flow, objective
from gftkit.verify import FromRegistry, claim, exact, registered
from gftkit_verification.oracles import affine
from gftkit_verification.oracles.gaussian import GaussianFlow, bures_map, square_root
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.problems.equations import Equation
from gftkit_verification.testbeds.problems.flows import draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator, gauss_legendre
from gftkit_verification.testbeds.problems.pairs import Function, Joint, affine_regression, covariance, draw_joints

DIMENSIONS = (2, 5)
MISS = 1e-5
"""The least W2 by which a blend of two couplings' drifts must miss q."""
THREE_COUPLINGS = f"normal laws, d = {DIMENSIONS}; no, the optimal and a random covariance of x0 and x1;"


@dataclass(frozen=True)
class Conditional:
    """The functions that the loop regresses, conditional velocities at samples; and the optimal map of normal laws."""

    sample: Function = flow.sample
    velocity: Function = flow.velocity
    optimal: Callable[[Tensor, Tensor], Tensor] = bures_map


CONDITIONAL = Conditional()


def noiseless_paths(registry: Registry) -> list[Path]:
    """The registered paths without noise that reach t = 1."""
    return [
        path
        for _, path in components(registry, "path")
        if not flow.is_noisy(path) and not flow.is_stochastic(path) and flow.t_end(path) == 1
    ]


def transport_residuals(subject: Conditional, joint: Joint, path: Path, t: Tensor) -> Iterator[float]:
    """Relative residuals of m' = A m + c and S' = A S + S A^T by the regression, and of the laws at both ends."""
    d = len(joint.mean) // 2
    x, v = joint.at(subject.sample, path, t), joint.at(subject.velocity, path, t)
    rate = joint.rate(subject.sample, path, t)
    slope, shift = affine_regression(x, v)
    mean, cov, mean_rate = x.mean(1), covariance(x, x), rate.mean(1)
    cov_rate = covariance(x, rate) + covariance(rate, x)
    transported = slope @ cov
    residuals = (
        (mean_rate - (slope @ mean[..., None])[..., 0] - shift, mean_rate),
        (cov_rate - transported - transported.mT, cov_rate),
        (mean[[0, -1]].flatten() - joint.mean, joint.mean),
        (cov[0] - joint.cov[:d, :d], joint.cov),
        (cov[-1] - joint.cov[d:, d:], joint.cov),
    )
    yield from (float(residual.abs().max() / size.abs().max()) for residual, size in residuals)


@claim(
    "T10-terminal-law-gaussian",
    statement=(
        "For every coupling the regression A x + c of the conditional velocity on x_t carries p_t, from p0 to q: "
        "m' = A m + c and S' = A S + S A^T."
    ),
    reference="theory, T10 and section 1",
    subject=CONDITIONAL,
    bound=exact(),
    mutants={
        "endpoints swapped": replace(CONDITIONAL, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, x1, x0, e)),
        "velocity of other pairs": replace(
            CONDITIONAL, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, x0.roll(1, 0), x1, e)
        ),
        "rate of x0 dropped": replace(
            CONDITIONAL, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, torch.zeros_like(x0), x1, e)
        ),
        "sample at 1 - t": replace(CONDITIONAL, sample=lambda p, t, x0, x1, e: flow.sample(p, 1 - t, x0, x1, e)),
    },
    conditions=f"{THREE_COUPLINGS} every registered path without noise",
    seeds=2,
    uses={"paths": FromRegistry(noiseless_paths)},
)
def transport_violation(subject: Conditional, generator: Generator, *, paths: list[Path]) -> float:
    """The largest residual of the transport of mean and covariance, and of the laws at both ends."""
    generator = cpu_generator(generator)
    t = torch.linspace(0, 1, 9, dtype=torch.float64)
    return max(
        residual
        for d, path in itertools.product(DIMENSIONS, paths)
        for joint in draw_joints(d, generator, subject.optimal).values()
        for residual in transport_residuals(subject, joint, path, t)
    )


@claim(
    "T10-kinetic-energy",
    statement=(
        "int E|v_t|^2 dt >= W2(p0, q)^2, with equality for the optimal coupling on the linear path, more for others."
    ),
    reference="theory, T10; Benamou, Brenier (2000)",
    subject=CONDITIONAL,
    bound=exact(),
    mutants={
        "map of commuting covariances": replace(
            CONDITIONAL, optimal=lambda s0, s1: square_root(s1) @ torch.linalg.inv(square_root(s0))
        ),
        "map of the way back": replace(CONDITIONAL, optimal=lambda s0, s1: bures_map(s1, s0)),
        "sign of x0": replace(CONDITIONAL, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, -x0, x1, e)),
        "half of x1": replace(CONDITIONAL, velocity=lambda p, t, x0, x1, e: flow.velocity(p, t, x0, x1 / 2, e)),
    },
    conditions=f"{THREE_COUPLINGS} linear path",
    uses={"path": registered("path", "linear")},
)
def energy_violation(subject: Conditional, generator: Generator, *, path: Path) -> float:
    """The largest relative error of W2^2 as the optimal coupling's int E|v_t|^2 dt, and as a lower bound of others'."""
    generator = cpu_generator(generator)
    t, weight = gauss_legendre(48)
    worst = 0.0
    for d in DIMENSIONS:
        for name, joint in draw_joints(d, generator, subject.optimal).items():
            x, v = joint.at(subject.sample, path, t), joint.at(subject.velocity, path, t)
            slope, shift = affine_regression(x, v)
            cov = covariance(x, x)
            at_mean = (slope @ x.mean(1)[..., None])[..., 0] + shift
            energy = float(weight @ (at_mean.square().sum(1) + ((slope @ cov) * slope).sum((1, 2))))
            m, s = joint.mean, joint.cov
            least = affine.bures_wasserstein(m[:d], s[:d, :d], m[d:], s[d:, d:]) ** 2
            if name == "optimal-transport":
                worst = max(worst, abs(energy / least - 1))
            else:
                worst = max(worst, (1 + 1e-6) * least / energy - 1)
    return worst


@claim(
    "T10-different-couplings",
    statement=(
        "For q_pre = q the blend is the target's velocity if both have one coupling; if anchor and target have "
        "different ones, Delta is not 0 and the blend at beta = 1 misses q."
    ),
    reference="theory, T10",
    subject=objective.blend,
    bound=exact(),
    mutants={
        "anchor forgotten": lambda target, anchor, beta: target,  # noqa: ARG005
        "target forgotten": lambda target, anchor, beta: anchor,  # noqa: ARG005
        "weights that don't add up to 1": lambda target, anchor, beta: (target + beta * anchor) / (1 + beta / 2),
    },
    conditions=f"normal laws in the plane; independent and optimal coupling; missed by W2 > {MISS:g}",
    seeds=2,
    uses={"solver": registered("solver", "rk4")},
)
def blend_of_couplings(blend: affine.Blend, generator: Generator, *, solver: Solver) -> float:
    """The blend's distance from the target where the couplings agree; 1 where they don't and it still hits q."""
    generator = cpu_generator(generator)
    independent = draw_flow(2, generator)
    laws = independent.mean0, independent.cov0, independent.mean1, independent.cov1
    optimal = GaussianFlow(*laws, coupling="optimal-transport")
    root = math.sqrt(2) * square_root(laws[1])
    start = laws[0] + torch.cat([root, -root])  # of exactly the source's mean and covariance
    t = torch.linspace(0, 1, len(start), dtype=torch.float64)
    velocity = independent.velocity(t, start)
    difference = float((blend(velocity, velocity, 1.0) - velocity).abs().max() / velocity.abs().max())

    def mixed(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
        return blend(independent.velocity(t, x), optimal.velocity(t, x), 1.0)

    end = integrate.generate(mixed, Equation(mixed), solver, 20, start, generator)  # affine in the start
    centred = end - end.mean(0)
    miss = affine.bures_wasserstein(end.mean(0), centred.mT @ centred / len(end), *laws[2:])
    return max(difference, 0.0 if miss > MISS else 1.0)
