"""T11 and T12 by the sampler: Euler's error of few steps, and the stochastic flow with its closing step."""

import itertools
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Drift, Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.sampling import integrate
from gftkit.theory import flow, objective, predictions
from gftkit.verify.claims import Claim, Line, Measurement, exact, order, statistical
from gftkit_verification.claims.components.solvers import NOISE_SLIPS, SLIPS, Altered
from gftkit_verification.oracles.gaussian import GaussianFlow, bures_map, square_root
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.equations import Equation
from gftkit_verification.testbeds.moments import cpu_generator
from gftkit_verification.testbeds.problems import COUPLINGS, draw_flow, random_covariance, retarget
from gftkit_verification.testbeds.statistics import cross_fitted_t

STEPS = (6, 12, 24)
TEMPERATURES = (0.0, 0.5, 3.0)
BLENDS = (0.01, 0.1, 0.5, 1.0, 5.0, 30.0)
FINE = 12
"""Runge-Kutta steps of a reference."""
VISIBLE = 1e-3
"""Relative error of one Euler step that is not round-off."""

Velocity = Callable[[Tensor, Tensor], Tensor]


@dataclass(frozen=True)
class Derivatives:
    """A velocity at some states, and its derivatives.

    Attributes:
        value: v, (n, d).
        rate: d_t v, (n, d).
        slope: grad v, (n, d, d).
    """

    value: Tensor
    rate: Tensor
    slope: Tensor

    def along(self, direction: Tensor) -> Tensor:
        """(grad v) direction, (n, d)."""
        return (self.slope @ direction[..., None])[..., 0]

    @property
    def acceleration(self) -> Tensor:
        """a = d_t v + (grad v) v."""
        return self.rate + self.along(self.value)


def derivatives(velocity: Velocity, t: Tensor, x: Tensor) -> Derivatives:
    """By autograd: (n,), (n, d)."""
    with torch.enable_grad():
        t, x = t.detach().clone().requires_grad_(), x.detach().clone().requires_grad_()
        value = velocity(t, x)
        found = [torch.autograd.grad(part.sum(), (t, x), retain_graph=True) for part in value.unbind(1)]
    return Derivatives(
        value.detach(), torch.stack([rate for rate, _ in found], 1), torch.stack([slope for _, slope in found], 1)
    )


def acceleration(target: Derivatives, anchor: Derivatives, retention: float) -> Tensor:
    """a_beta of the blend, by gftkit's prediction."""
    return _acceleration(predictions.blend_acceleration, target, anchor, retention)


def _acceleration(
    predicted: Callable[[Tensor, Tensor, Tensor, float], Tensor],
    target: Derivatives,
    anchor: Derivatives,
    retention: float,
) -> Tensor:
    apart = anchor.value - target.value
    gap_along_gap = anchor.along(apart) - target.along(apart)
    return predicted(target.acceleration, anchor.acceleration, gap_along_gap, retention)


@dataclass(frozen=True)
class FewSteps:
    """The sampler's Euler scheme, and the theory of its error.

    Attributes:
        solver: takes the steps.
        acceleration: a_beta, of the two velocities' derivatives and the retention.
        share: 1/2, of h a.
        transport: whether errors are carried on by the flow's Jacobian.
    """

    solver: Solver
    acceleration: Callable[[Derivatives, Derivatives, float], Tensor] = acceleration
    share: float = 0.5
    transport: bool = True


At = Callable[[int, Tensor], Derivatives]
"""Derivatives at a numbered time and states."""


class AffineGrid:
    """A Gaussian flow's velocity A x + c and its derivatives at times k/(2 FINE), computed once."""

    def __init__(self, gaussian: GaussianFlow) -> None:
        t = torch.linspace(0, 1, 2 * FINE + 1, dtype=torch.float64)
        self.slope, self.shift = gaussian.affine(t)
        # Each output depends on its own time only: the sum's derivatives are the outputs'.
        summed = torch.autograd.functional.jacobian(lambda t: tuple(part.sum(0) for part in gaussian.affine(t)), t)  # type: ignore[no-untyped-call]
        self.slope_rate, self.shift_rate = (part.movedim(-1, 0) for part in summed)

    def at(self, k: int, x: Tensor) -> Derivatives:
        """The derivatives at time k/(2 FINE)."""
        slope = self.slope[k]
        rate = x @ self.slope_rate[k].mT + self.shift_rate[k]
        return Derivatives(x @ slope.mT + self.shift[k], rate, slope.expand(len(x), -1, -1))


def leading_error(subject: FewSteps, one: At, other: At, beta: float, x0: Tensor, fine: int) -> tuple[Tensor, Tensor]:
    """x(1), and the integral of Phi(1, t) a_t/2: e(1) of e' = (grad v) e + a/2 along the blend's flow x' = v.

    By the classical Runge-Kutta scheme on the pair (x, e).

    Args:
        subject: the theory.
        one: the target's derivatives at time k/(2 fine) and states x.
        other: the anchor's.
        beta: the temperature.
        x0: the starts, (n, d).
        fine: steps.
    """
    rho, h = objective.retention(beta), 1 / fine

    def rates(k: int, state: Tensor) -> Tensor:
        x, e = state
        here, there = one(k, x), other(k, x)
        carried = (1 - rho) * here.along(e) + rho * there.along(e) if subject.transport else torch.zeros_like(e)
        pushed = subject.share * subject.acceleration(here, there, rho)
        return torch.stack([objective.blend(here.value, there.value, beta), carried + pushed])

    state = torch.stack([x0, torch.zeros_like(x0)])
    for k in range(0, 2 * fine, 2):
        k1 = rates(k, state)
        k2 = rates(k + 1, state + h / 2 * k1)
        k3 = rates(k + 1, state + h / 2 * k2)
        k4 = rates(k + 2, state + h * k3)
        state = state + h / 6 * (k1 + 2 * k2 + 2 * k3 + k4)
    return state[0], state[1]


def blended(target: Velocity, anchor: Velocity, beta: float) -> Drift:
    """The blend as a drift that the sampler takes."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
        return objective.blend(target(t, x), anchor(t, x), beta)

    return drift


def end(drift: Drift, solver: Solver, steps: int, x0: Tensor) -> Tensor:
    """The sampler's state at 1 for a deterministic flow."""
    return integrate.generate(drift, Equation(drift), solver, steps, x0, torch.Generator())


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
        drift = blended(target.velocity, anchor.velocity, beta)
        apart, lines = extrapolated(drift, subject.solver, STEPS, x0, exact_end, predicted)
        worst = max(worst, apart)
    return Measurement(worst, lines)


def extrapolated(
    drift: Drift, solver: Solver, counts: tuple[int, ...], x0: Tensor, wanted: Tensor, predicted: Tensor
) -> tuple[float, dict[str, Line]]:
    """The relative distance of lim N (error in N steps) from its prediction, and the errors as lines.

    Args:
        drift: what is sampled.
        solver: Euler's scheme.
        counts: numbers of steps; the last is twice the one before, and both give the limit up to O(h^2).
        x0: the starts.
        wanted: the exact states at 1.
        predicted: the limit.
    """
    errors = [wanted - end(drift, solver, n, x0) for n in counts]
    found = 2 * counts[-1] * errors[-1] - counts[-2] * errors[-2]
    sizes = [float(error.square().sum(1).mean().sqrt()) for error in errors]
    constant = float(predicted.square().sum(1).mean().sqrt())
    lines: dict[str, Line] = {"measured": (counts, sizes), "theory": (counts, [constant / n for n in counts])}
    return float((found - predicted).norm() / predicted.norm()), lines


def straight(solver: Solver, generator: Generator) -> float:
    """Euler's relative error on straight flows in 1 to 5 steps; 1 where it has none on a flow that isn't straight."""
    generator = cpu_generator(generator)
    worst = 0.0
    for d in (2, 5):
        target = draw_flow(d, generator, "optimal-transport")
        anchor = retarget(target, generator)
        x0 = target.starts(8, generator)
        wanted = target.mean1 + (x0 - target.mean0) @ bures_map(target.cov0, target.cov1).mT
        bent = draw_flow(d, generator)
        for steps in (1, 2, 5):
            made = end(blended(target.velocity, target.velocity, 0.0), solver, steps, x0)
            worst = max(worst, float((made - wanted).norm() / wanted.norm()))
        for drift in (blended(bent.velocity, bent.velocity, 0.0), blended(target.velocity, anchor.velocity, 1.0)):
            one, many = (end(drift, solver, steps, x0) for steps in (1, 2))
            worst = max(worst, 0.0 if (one - many).norm() > VISIBLE * many.norm() else 1.0)
    return worst


def blend_acceleration(
    predicted: Callable[[Tensor, Tensor, Tensor, float], Tensor], path: Path, generator: Generator
) -> float:
    """The relative distance of the predicted a_beta from the blend's total derivative by autograd."""
    generator = cpu_generator(generator)
    worst = 0.0
    for d in (2, 5):
        flows: list[tuple[Velocity, Velocity]] = []
        for coupling in COUPLINGS:
            target = draw_flow(d, generator, coupling)
            flows.append((target.velocity, retarget(target, generator).velocity))
        flows.append((_mixture(path, d, generator).velocity, _mixture(path, d, generator).velocity))
        t = torch.rand(8 * len(BLENDS), generator=generator, dtype=torch.float64)
        x = torch.randn(len(t), d, generator=generator, dtype=torch.float64)
        for one, other in flows:
            # One part of the states for each temperature.
            def blend(t: Tensor, x: Tensor, one: Velocity = one, other: Velocity = other) -> Tensor:
                parts = zip(one(t, x).chunk(len(BLENDS)), other(t, x).chunk(len(BLENDS)), BLENDS, strict=True)
                return torch.cat([objective.blend(*part) for part in parts])

            wanted = derivatives(blend, t, x).acceleration.chunk(len(BLENDS))
            here, there = derivatives(one, t, x), derivatives(other, t, x)
            for k, beta in enumerate(BLENDS):
                found = _acceleration(predicted, here, there, objective.retention(beta)).chunk(len(BLENDS))[k]
                worst = max(worst, float((found - wanted[k]).norm() / wanted[k].norm()))
    return worst


def _mixture(path: Path, d: int, generator: Generator) -> MixtureFlow:
    source = draw_flow(d, generator)
    weights = torch.tensor([0.3, 0.7], dtype=torch.float64)
    means = torch.randn(2, d, generator=generator, dtype=torch.float64)
    covs = torch.stack([random_covariance(d, generator) for _ in weights])
    return MixtureFlow(path, source.mean0, source.cov0, weights, means, covs)


@dataclass(frozen=True)
class Bridge:
    """The marginals of a Brownian bridge between two independent normal laws: the sampler's start, velocity and score.

    With S_t the linear path's covariance and S = S_t + g^2 t(1 - t) I:
    v = m1 - m0 + (D_t + g^2 (1 - 2t)/2 I) S^(-1) (x - m_t).

    Args:
        gaussian: the linear path's flow.
        scale: g > 0.
    """

    gaussian: GaussianFlow
    scale: float

    def affine(self, t: float) -> tuple[Tensor, Tensor, Tensor]:
        """(A, B, m) of velocity m1 - m0 + A (x - m) and score B (x - m), at one time."""
        g = self.gaussian
        eye = torch.eye(len(g.mean0), dtype=torch.float64)
        spread = (1 - t) ** 2 * g.cov0 + t**2 * g.cov1 + self.scale**2 * t * (1 - t) * eye
        moved = t * g.cov1 - (1 - t) * g.cov0 + self.scale**2 / 2 * (1 - 2 * t) * eye
        inverse = torch.linalg.inv(spread)
        return moved @ inverse, -inverse, (1 - t) * g.mean0 + t * g.mean1

    def drift(self, build: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Drift:
        """The drift that ``build`` makes of velocity, score and g."""

        def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:  # noqa: ARG001
            slope, score, mean = self.affine(float(t[0]))
            velocity = self.gaussian.mean1 - self.gaussian.mean0 + (x - mean) @ slope.mT
            return build(velocity, (x - mean) @ score.mT, torch.tensor(self.scale, dtype=torch.float64))

        return drift

    def chain(self, steps: int, t_end: float) -> Iterator[tuple[Tensor, Tensor]]:
        """Mean and covariance after each step of Euler-Maruyama: m + h b(m), (I + h A) S (I + h A)^T + g^2 h I.

        The closing step is one of them. The drift's slope is that of (x1 - x_t)/(1 - t): (D_t - g^2 t I) S^(-1).
        """
        g = self.gaussian
        mean, cov = g.mean0, g.cov0
        eye = torch.eye(len(mean), dtype=torch.float64)
        times = [t_end * k / steps for k in range(steps + 1)] + [1.0]
        for t, later in itertools.pairwise(times):
            h = later - t
            slope, score, centre = self.affine(t)
            slope = slope + self.scale**2 / 2 * score
            mean = mean + h * (g.mean1 - g.mean0 + slope @ (mean - centre))
            cov = (eye + h * slope) @ cov @ (eye + h * slope).mT + self.scale**2 * h * eye
            yield mean, cov


@dataclass(frozen=True)
class Stochastic:
    """What a stochastic flow is sampled by: its drift of velocity, score and g, a solver, and a path's closing step."""

    solver: Solver
    build: Callable[[Tensor, Tensor, Tensor], Tensor] = predictions.stochastic_drift
    closing: Callable[[Path], Path] = lambda path: path


@dataclass(frozen=True)
class Closed:
    """A path with another closing step.

    Args:
        path: the path.
        final_step: the step from t_end to 1.
    """

    path: Path
    final_step: str
    t_end: float

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The path's."""
        return self.path.coefficients(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """The path's."""
        return flow.diffusion(self.path, t)


def stochastic_samples(subject: Stochastic, registry: Registry, generator: Generator) -> float:
    """Standard errors of the states' moments from those of the Euler-Maruyama chain: half way, at t_end and at 1."""
    generator = cpu_generator(generator)
    steps, delta, scale, n = 12, 0.1, 1.6 + 0.4 * float(torch.rand(1, generator=generator)), 8000
    drawn = draw_flow(2, generator)
    gaussian = GaussianFlow(drawn.mean0, drawn.cov0, drawn.mean1, 0.1 * drawn.cov1)
    path = registry.create("path", "brownian-bridge", scale=scale, delta=delta)
    bridge = Bridge(gaussian, scale)
    x0 = gaussian.starts(n, generator)
    drift = bridge.drift(subject.build)
    path = subject.closing(path)
    states = integrate.generate(drift, path, subject.solver, steps, x0, generator, batch_size=n // 2, whole=True)
    laws = list(bridge.chain(steps, 1 - delta))
    found = [_standard(states[k], *laws[k - 1]) for k in (steps // 2, steps, steps + 1)]
    return cross_fitted_t(torch.cat(found, 1), torch.zeros(15))


def _standard(x: Tensor, mean: Tensor, cov: Tensor) -> Tensor:
    """First and second moments of whitened samples of a law in the plane, less those of N(0, I): (n, 2) -> (n, 5)."""
    white = torch.linalg.solve(square_root(cov), (x - mean).mT).mT
    u, v = white.unbind(1)
    return torch.stack([u, v, u**2 - 1, v**2 - 1, u * v], 1)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    euler = registry.create("solver", "euler")
    few = FewSteps(euler)
    late = Altered(euler, lambda s, b, g, t, h, x, dw: s.step(b, g, min(t + h, 1.0), h, x, dw))
    dropped = Altered(euler, SLIPS["last step dropped"])
    axes = ("steps", "error at t = 1")
    yield Claim(
        name="T11-euler-constant-gaussian",
        statement=(
            "N times Euler's error in N steps tends to (1/2) int Phi(1, t) a_t dt with a_beta of the blend's velocity."
        ),
        reference="theory, T11",
        subject=few,
        measure=euler_constant,
        bound=order(0.04),
        mutants={
            "d_t v dropped": replace(
                few, acceleration=lambda one, other, rho: acceleration(still(one), still(other), rho)
            ),
            "(grad Delta) Delta dropped": replace(
                few, acceleration=lambda one, other, rho: (1 - rho) * one.acceleration + rho * other.acceleration
            ),
            "factor 1/2 dropped": replace(few, share=1.0),
            "Phi dropped": replace(few, transport=False),
            "last step dropped": replace(few, solver=dropped),
            "drift at the step's end": replace(few, solver=late),
        },
        conditions=(
            f"normal laws, d = 3, both couplings, temperatures {TEMPERATURES}; {STEPS} steps, extrapolated to h = 0"
        ),
        component="solver:euler",
        seeds=1,
        axes=axes,
    )
    yield Claim(
        name="T11-straight-flow-exact",
        statement=(
            "One Euler step is exact on the optimal coupling's flow, straight and of constant speed; it isn't on the "
            "independent coupling's, nor on a blend of two straight flows."
        ),
        reference="theory, T11",
        subject=euler,
        measure=straight,
        bound=exact(),
        mutants={
            "last step dropped": dropped,
            "drift at the step's end": late,
            "half of the drift": Altered(euler, SLIPS["half of the drift"]),
        },
        conditions="normal laws, d = 2 and 5; 1, 2 and 5 steps of gftkit.sampling.integrate.generate",
        component="solver:euler",
        seeds=2,
    )
    linear = registry.create("path", "linear")
    yield Claim(
        name="T11-blend-acceleration-gaussian",
        statement=(
            "a_beta = (1 - rho) a_tgt + rho a_pre - rho (1 - rho) (grad Delta) Delta is the blend's total derivative."
        ),
        reference="theory, T11",
        subject=predictions.blend_acceleration,
        measure=lambda predicted, generator: blend_acceleration(predicted, linear, generator),
        bound=exact(),
        mutants={
            "last term dropped": lambda one, other, apart, rho: (1 - rho) * one + rho * other,  # noqa: ARG005
            "sign of the last term": lambda one, other, apart, rho: predictions.blend_acceleration(
                one, other, -apart, rho
            ),
            "rho for 1 - rho": lambda one, other, apart, rho: predictions.blend_acceleration(
                one, other, apart, 1 - rho
            ),
            "rho^2 for rho (1 - rho)": lambda one, other, apart, rho: (1 - rho) * one + rho * other - rho**2 * apart,
        },
        conditions="flows to normal laws of both couplings and to mixtures, d = 2 and 5; temperatures 0.01 to 30",
        seeds=2,
    )
    stochastic = Stochastic(registry.create("solver", "euler-maruyama"))
    yield Claim(
        name="T12-sampler-gaussian",
        statement=(
            "Samples of dX = (v + (g^2/2) grad log p_t) dt + g dW on the Brownian bridge, closing step included, have "
            "the mean and covariance of its Euler-Maruyama chain."
        ),
        reference="theory, T12 and section 1",
        subject=stochastic,
        measure=lambda subject, generator: stochastic_samples(subject, registry, generator),
        bound=statistical(),
        mutants={
            "sign of the score": replace(stochastic, build=lambda v, s, g: predictions.stochastic_drift(v, -s, g)),
            "factor 1/2 dropped": replace(stochastic, build=lambda v, s, g: v + g**2 * s),
            "g for g^2": replace(stochastic, build=lambda v, s, g: v + g / 2 * s),
            "noise scaled by h": replace(
                stochastic, solver=Altered(stochastic.solver, NOISE_SLIPS["noise scaled by h"])
            ),
            "no noise in the closing step": replace(stochastic, closing=lambda path: Closed(path, "mean", 0.9)),
        },
        conditions="two normal laws in the plane, 8000 samples, 12 steps to t = 0.9 and the closing step",
        component="solver:euler-maruyama",
    )


def still(found: Derivatives) -> Derivatives:
    """The same without d_t v."""
    return replace(found, rate=torch.zeros_like(found.rate))
