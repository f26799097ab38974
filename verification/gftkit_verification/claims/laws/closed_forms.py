"""How far the laws of a blend are from the target's, on the way and at the end: T5 and T6 on closed forms."""

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim, Line, Measurement, exact, order
from gftkit_verification.oracles.affine import (
    Blend,
    blended,
    bures_wasserstein,
    carried,
    drift_gap,
    gaussian_kl,
    path_kl,
    squared_gap,
)
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, Diffusion
from gftkit_verification.testbeds.differences import log_slopes, relative_error
from gftkit_verification.testbeds.moments import TEMPERATURES, FineTune, fine_tunes, legendre, on_cpu, rho_of
from gftkit_verification.testbeds.objective_functions import BLENDS, keep_share, replace_each
from gftkit_verification.testbeds.problems import random_covariance

G = 0.8
"""Noise scale of the SDEs."""

COLD = (1e-4, 2e-4)
"""Temperatures where a terminal error is its first-order response."""

CONDITIONS = (
    "Gaussian problems of dimension 2 and 3; independent and optimal coupling; linear path; "
    f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}."
)
Law = tuple[Tensor, Tensor]
"""Mean and covariance."""
Bound = Callable[[float, Sequence[float], Sequence[float], Sequence[float]], float]


@dataclass(frozen=True)
class Shipped:
    """The blend that the objective trains toward, and what is predicted of its laws."""

    blend: Blend = objective.blend
    path_kl: Callable[[float, float], float] = predictions.path_kl
    wasserstein_bound: Bound = predictions.wasserstein_bound


SHIPPED = Shipped()

TOO_CLOSE: Mapping[str, Blend] = {
    "1/(1 + beta) for rho": BLENDS["1/(1 + beta) for rho"],
    "root of rho": keep_share(lambda beta: math.sqrt(rho_of(beta))),
}
"""Blends that stay closer to the anchor than they should."""


def both(problem: FineTune, g: Diffusion) -> tuple[AffineDrift, AffineDrift]:
    """The drifts of target and pretrained flow at noise scale g."""
    return partial(problem.target.affine, diffusion=g), partial(problem.pretrained.affine, diffusion=g)


def start_of(problem: FineTune) -> Law:
    """p0."""
    return problem.target.mean0, problem.target.cov0


def end_of(problem: FineTune) -> Law:
    """q."""
    return problem.target.mean1, problem.target.cov1


# T5


def path_kl_slope(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """The slope of log KL(P_tgt || P_beta) on log rho, between neighboring temperatures, is 2."""
    worst = 0.0
    lines: dict[str, Line] = {}
    rhos = [rho_of(beta) for beta in TEMPERATURES]
    for problem in fine_tunes(path, generator, (2, 3)):
        target, anchor = both(problem, G)
        marginal = problem.target.marginal
        found = [path_kl(target, blended(target, anchor, beta, shipped.blend), G, marginal) for beta in TEMPERATURES]
        worst = max(worst, *(abs(slope - 2) for slope in log_slopes(rhos, found)))
        whole = path_kl(target, anchor, G, marginal)
        theory = [rho**2 * whole for rho in rhos]
        lines = lines or {"measured": (TEMPERATURES, found), "rho^2 KL(P_tgt || P_pre)": (TEMPERATURES, theory)}
        fitted = log_slopes([rhos[0], rhos[-1]], [found[0], found[-1]])[0]
    return Measurement(worst, lines, f"Fitted slope of log KL on log rho: {fitted:.6f}.")


def chain(drift: AffineDrift, diffusion: float, start: Law, steps: int = 5) -> Law:
    """The law of all states (x_0, ..., x_N) of the Euler-Maruyama chain of an affine drift, from a normal law."""
    mean, cov = start
    d, h = len(mean), 1 / steps
    noise = diffusion**2 * h * torch.eye(d * (steps + 1), dtype=torch.float64)
    noise[:d, :d] = cov
    slope, shift = drift(torch.arange(steps, dtype=torch.float64) * h)
    rows, means = [torch.eye(d, d * (steps + 1), dtype=torch.float64)], [mean]  # x_k as a map of start and noises
    for k in range(steps):
        step = torch.eye(d, dtype=torch.float64) + h * slope[k]
        row = step @ rows[-1]
        row[:, (k + 1) * d : (k + 2) * d] += torch.eye(d)
        rows.append(row)
        means.append(step @ means[-1] + h * shift[k])
    whole = torch.cat(rows)
    return torch.cat(means), whole @ noise @ whole.mT


def chain_kl(path: Path, shipped: Shipped, generator: Generator) -> float:
    """KL of the joint laws of two chains, from p0 and from another p0': KL(p0 || p0') + rho^2 KL(P_tgt || P_pre)."""
    worst = 0.0
    for problem in fine_tunes(path, generator, (2, 3)):
        for g in (0.4, 1.5):
            target, anchor = both(problem, g)
            other = end_of(problem)
            law = chain(target, g, start_of(problem))
            whole = gaussian_kl(*law, *chain(anchor, g, start_of(problem)))
            for beta in TEMPERATURES:
                blend = blended(target, anchor, beta, shipped.blend)
                found = gaussian_kl(*law, *chain(blend, g, other))
                wanted = gaussian_kl(*start_of(problem), *other) + shipped.path_kl(rho_of(beta), whole)
                worst = max(worst, relative_error(found, wanted))
    return worst


# T6


def terminal_kl(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """By how much KL(q || p_1^beta) is above rho^2 KL(P_tgt || P_pre)."""
    worst = 0.0
    lines: dict[str, Line] = {}
    for problem in fine_tunes(path, generator, (2, 3)):
        target, anchor = both(problem, G)
        whole = path_kl(target, anchor, G, problem.target.marginal)
        ends = [carried(blended(target, anchor, b, shipped.blend), G, *start_of(problem)) for b in TEMPERATURES]
        found = [gaussian_kl(*end_of(problem), *end) for end in ends]
        bounds = [shipped.path_kl(rho_of(beta), whole) for beta in TEMPERATURES]
        worst = max(worst, *(value / bound - 1 for value, bound in zip(found, bounds, strict=True)))
        lines = lines or {"measured": (TEMPERATURES, found), "rho^2 KL(P_tgt || P_pre)": (TEMPERATURES, bounds)}
    return Measurement(worst, lines)


def wasserstein(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """By how much W2(q, p_1^beta) is above its bound, for ODE and SDE."""
    worst = 0.0
    lines: dict[str, Line] = {}
    times = torch.linspace(0, 1, 65, dtype=torch.float64)
    for problem in fine_tunes(path, generator, (2, 3)):
        for g in (G, 0.0):
            target, anchor = both(problem, g)
            gaps = squared_gap(anchor, target, times, *problem.target.marginal(times)).sqrt().tolist()
            found, bounds = [], []
            for beta in TEMPERATURES:
                blend = blended(target, anchor, beta, shipped.blend)
                slope = blend(times)[0]
                lipschitz = torch.linalg.eigvalsh((slope + slope.mT) / 2)[:, -1].tolist()
                found.append(bures_wasserstein(*end_of(problem), *carried(blend, g, *start_of(problem))))
                bounds.append(shipped.wasserstein_bound(rho_of(beta), times.tolist(), gaps, lipschitz))
            worst = max(worst, *(value / bound - 1 for value, bound in zip(found, bounds, strict=True)))
            lines = lines or {"measured": (TEMPERATURES, found), "bound": (TEMPERATURES, bounds)}
    return Measurement(worst, lines)


def terminal_slopes(path: Path, shipped: Shipped, generator: Generator) -> float:
    """The slopes of log KL and log W2 on log rho at low temperatures are 2 and 1."""
    worst = 0.0
    rhos = [rho_of(beta) for beta in COLD]
    for problem in fine_tunes(path, generator, (2, 3)):
        target, anchor = both(problem, G)
        ends = [carried(blended(target, anchor, beta, shipped.blend), G, *start_of(problem)) for beta in COLD]
        for distance, slope in ((gaussian_kl, 2), (bures_wasserstein, 1)):
            found = log_slopes(rhos, [distance(*end_of(problem), *end) for end in ends])
            worst = max(worst, abs(found[0] - slope))
    return worst


def constant_gap(shipped: Shipped, generator: Generator) -> float:
    """b_tgt = -a(t) x and b_pre = b_tgt + e: W2(q, p_1^beta) = rho |e| int exp(-int_t^1 a) dt, the bound itself."""
    generator = on_cpu(generator)
    worst = 0.0
    times = torch.linspace(0, 1, 257, dtype=torch.float64)
    for sign in (1, -1):
        d = 3
        rate = sign * (1 + float(torch.rand((), generator=generator)))
        e = torch.randn(d, generator=generator, dtype=torch.float64)
        law = torch.randn(d, generator=generator, dtype=torch.float64), random_covariance(d, generator)

        def decay(t: Tensor) -> Tensor:
            return rate * (0.3 + 2 * t)  # noqa: B023

        def moving(shift: Tensor, t: Tensor) -> Affine:
            return -decay(t)[:, None, None] * torch.eye(d, dtype=torch.float64), shift.expand(len(t), d)  # noqa: B023

        target, anchor = partial(moving, 0 * e), partial(moving, e)
        end = carried(target, 0.0, *law)
        lipschitz = (-decay(times)).tolist()
        for beta in TEMPERATURES:
            found = bures_wasserstein(*end, *carried(blended(target, anchor, beta, shipped.blend), 0.0, *law))
            bound = shipped.wasserstein_bound(rho_of(beta), times.tolist(), [float(e.norm())] * len(times), lipschitz)
            worst = max(worst, relative_error(found, bound))
    return worst


def rotation(shipped: Shipped, generator: Generator) -> float:
    """q = q_pre = N(0, I), b_tgt = 0, b_pre a rotation: a drift error rho |Delta|, and W2(q, p_1^beta) = 0."""
    d = 3
    root = torch.randn(d, d, generator=on_cpu(generator), dtype=torch.float64)
    turn, law = root - root.mT, (torch.zeros(d, dtype=torch.float64), torch.eye(d, dtype=torch.float64))

    def turning(speed: float, t: Tensor) -> Affine:
        return (speed * turn).expand(len(t), d, d), law[0].expand(len(t), d)

    def marginal(t: Tensor) -> Law:
        return law[0].expand(len(t), d), law[1].expand(len(t), d, d)

    still, rotating = partial(turning, 0.0), partial(turning, 1.0)
    worst = 0.0
    for beta in TEMPERATURES:
        blend = blended(still, rotating, beta, shipped.blend)
        terminal = bures_wasserstein(*law, *carried(blend, 0.0, *law))
        error = drift_gap(blend, still, marginal)
        worst = max(worst, terminal, relative_error(error, rho_of(beta) * float(turn.norm())))
    return worst


def unseen_gap(shipped: Shipped, generator: Generator) -> Measurement:  # noqa: ARG001
    """On the line with b_tgt = 0 and Delta = 1/((1 - t) log(1/delta)) up to 1 - delta, in closed form.

    The end moves by rho for every delta, but the norm with w = 1 - t, rho/sqrt(log(1/delta)), tends to 0 and the path
    KL, rho^2 (1/delta - 1)/(2 g^2 log(1/delta)^2), to infinity.
    """
    worst, found, moved = 0.0, [], []
    inverse = [10.0**k for k in (1, 2, 4, 6, 8)]
    for size in inverse:
        log = math.log(size)
        u, weights = legendre(40, log)  # u = -log(1 - t)
        left = torch.exp(-u)
        gap = (1 / (left * log))[:, None]
        for beta in TEMPERATURES:
            rho, drift = rho_of(beta), shipped.blend(0 * gap, gap, beta)
            end = float((weights * left) @ drift[:, 0])
            norm = float((weights * left**2) @ squared_norm(drift))
            kl = float((weights * left) @ squared_norm(drift)) / (2 * G**2)
            whole = (size - 1) / (2 * G**2 * log**2)
            worst = max(
                worst,
                relative_error(end, rho),
                relative_error(norm, rho**2 / log),
                relative_error(kl, shipped.path_kl(rho, whole)),
            )
        found.append(math.sqrt(norm))
        moved.append(end)
    return Measurement(worst, {"measured": (inverse, found), "W2": (inverse, moved)})


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path = registry.create("path", "linear")
    powers = {"rho for rho squared": lambda rho, whole: rho * whole, "rho^4": lambda rho, whole: rho**4 * whole}
    yield Claim(
        name="T05-path-kl-gaussian",
        statement="KL(P_tgt || P_beta) is proportional to rho^2: the slope of its logarithm on log rho is 2.",
        reference="theory, T5",
        subject=SHIPPED,
        measure=partial(path_kl_slope, path),
        bound=order(0.01),
        mutants=replace_each(SHIPPED, blend=BLENDS),
        conditions=f"{CONDITIONS} g = {G}.",
        seeds=1,
        axes=("temperature", "KL(P_tgt || P_beta)"),
    )
    yield Claim(
        name="T05-path-kl-start-laws",
        statement="KL(P_tgt || P_beta) = rho^2 KL(P_tgt || P_pre), plus KL(p0 || p0') where the start laws differ.",
        reference="theory, T5",
        subject=SHIPPED,
        measure=partial(chain_kl, path),
        bound=exact(1e-9),
        mutants=replace_each(SHIPPED, blend={"1/(1 + beta) for rho": BLENDS["1/(1 + beta) for rho"]}, path_kl=powers),
        conditions=f"{CONDITIONS} Joint laws of chains of 5 Euler steps, for which it is exact; g = 0.4 and 1.5.",
        seeds=1,
    )
    yield Claim(
        name="T06-terminal-kl-gaussian",
        statement="KL(q || p_1^beta) <= rho^2 KL(P_tgt || P_pre).",
        reference="theory, T6",
        subject=SHIPPED,
        measure=partial(terminal_kl, path),
        bound=exact(1e-9),
        mutants=replace_each(SHIPPED, blend=TOO_CLOSE, path_kl={"rho^4": powers["rho^4"]}),
        conditions=f"{CONDITIONS} g = {G}.",
        seeds=1,
        axes=("temperature", "KL(q || p_1^beta)"),
    )
    shrunk = {"rho squared": lambda rho, *rest: predictions.wasserstein_bound(rho**2, *rest)}
    yield Claim(
        name="T06-wasserstein-gaussian",
        statement=(
            "W2(q, p_1^beta) <= rho int exp(int_t^1 L) (E_{p_t} |Delta|^2)^(1/2) dt, L the one-sided Lipschitz "
            "constant."
        ),
        reference="theory, T6",
        subject=SHIPPED,
        measure=partial(wasserstein, path),
        bound=exact(1e-9),
        mutants=replace_each(SHIPPED, blend=TOO_CLOSE, wasserstein_bound=shrunk),
        conditions=f"{CONDITIONS} g = {G} and 0; the integral by 64 trapezoids.",
        seeds=1,
        axes=("temperature", "W2(q, p_1^beta)"),
    )
    yield Claim(
        name="T06-wasserstein-sharp",
        statement="For b_tgt = -a(t) x and a constant gap the bound on W2 is attained.",
        reference="theory, T6",
        subject=SHIPPED,
        measure=constant_gap,
        bound=order(1e-3),
        mutants=replace_each(
            SHIPPED,
            wasserstein_bound={
                **shrunk,
                "L's sign": lambda rho, t, gaps, lip: predictions.wasserstein_bound(rho, t, gaps, [-v for v in lip]),
                "growth from 0 to t": lambda rho, t, gaps, lip: predictions.wasserstein_bound(rho, t, gaps, lip[::-1]),
                "no growth": lambda rho, t, gaps, lip: predictions.wasserstein_bound(rho, t, gaps, [0.0] * len(lip)),
            },
        ),
        conditions="Dimension 3, a(t) of both signs and not constant; the integral by 256 trapezoids.",
        seeds=1,
    )
    yield Claim(
        name="T06-terminal-slopes",
        statement=(
            "At low temperatures the slopes of log KL(q || p_1^beta) and of log W2(q, p_1^beta) on log rho are 2 and 1."
        ),
        reference="theory, T6",
        subject=SHIPPED,
        measure=partial(terminal_slopes, path),
        bound=order(0.02),
        mutants=replace_each(SHIPPED, blend={**TOO_CLOSE, "rho squared": BLENDS["rho squared"]}),
        conditions=f"Gaussian problems of dimension 2 and 3, both couplings, temperatures {COLD[0]:g} and {COLD[1]:g}.",
        seeds=1,
    )
    yield Claim(
        name="T06-rotation-counterexample",
        statement=(
            "No lower bound: with q = q_pre = N(0, I), b_tgt = 0 and b_pre a rotation, the drift error is rho |Delta| "
            "and the terminal error 0."
        ),
        reference="theory, T6",
        subject=SHIPPED,
        measure=rotation,
        bound=exact(1e-9),
        mutants=replace_each(
            SHIPPED, blend={"not divided": lambda target, anchor, beta: target + beta * anchor, **TOO_CLOSE}
        ),
        conditions="Dimension 3, a random rotation.",
        seeds=1,
    )
    yield Claim(
        name="T06-weight-counterexample",
        statement="The norm with w = 1 - t bounds neither W2 nor the path KL: a gap 1/((1 - t) log(1/delta)) of norm "
        "1/sqrt(log(1/delta)) moves the end by rho for every delta, and its KL grows without end.",
        reference="theory, T6",
        subject=SHIPPED,
        measure=unseen_gap,
        bound=exact(1e-9),
        mutants=replace_each(SHIPPED, blend=BLENDS, path_kl=powers),
        conditions="On the line; delta from 0.1 to 1e-8.",
        seeds=1,
        axes=("1/delta", "norm of the drift error with w = 1 - t"),
    )
