"""The velocity gap is a KL between the targets, and three kinds of intermediate target: T16 and T17."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial

import torch
from torch import Generator, Tensor
from torch.special import ndtr

from gftkit.kernel.contracts import Coupling, Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow, objective, predictions
from gftkit.theory.objective import squared_norm
from gftkit.verify.claims import Claim, Line, Measurement, exact, order
from gftkit_verification.claims.objective.closed_forms import BLENDS, SIGN, apart, off, variants
from gftkit_verification.claims.optima.closed_forms import slopes
from gftkit_verification.oracles.affine import (
    NODES,
    Blend,
    blend_drifts,
    bures_wasserstein,
    collocate,
    gaussian_kl,
    squared_gap,
)
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, GaussianFlow
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.blend_laws import CONDITIONS, TOO_CLOSE, G, Law, chain_law, drifts_of, start_of
from gftkit_verification.testbeds.components import components
from gftkit_verification.testbeds.moments import (
    TEMPERATURES,
    cpu_generator,
    draw_fine_tunes,
    gauss_legendre,
    rho_of,
    sigma_points,
)
from gftkit_verification.testbeds.problems import random_covariance

Rates = Callable[[Path, Tensor], tuple[Tensor, Tensor, Tensor]]


@dataclass(frozen=True)
class Shipped:
    """What a velocity and its SDE are made of, and the blend."""

    rates: Rates = flow.rates
    score: Callable[[Path, Tensor, Tensor, Tensor, Coupling], Tensor] = flow.score
    stochastic_drift: Callable[[Tensor, Tensor, Tensor], Tensor] = predictions.stochastic_drift
    path_kl: Callable[[float, float], float] = predictions.path_kl
    blend: Blend = objective.blend


SHIPPED = Shipped()


# T16


@dataclass(frozen=True)
class Standard:
    """The flow from N(0, I) to N(mean, cov) along an affine path, x0 and x1 independent; by the shipped rates."""

    path: Path
    rates: Rates
    mean: Tensor
    cov: Tensor

    def affine(self, t: Tensor) -> Affine:
        """v = alpha' m + (sigma sigma' I + alpha alpha' S)(sigma^2 I + alpha^2 S)^(-1) (x - alpha m)."""
        sigma, alpha, _ = (value[:, None, None] for value in self.path.coefficients(t))
        sigma_rate, alpha_rate, _ = (value[:, None, None] for value in self.rates(self.path, t))
        eye = torch.eye(len(self.mean), dtype=torch.float64)
        moving = sigma * sigma_rate * eye + alpha * alpha_rate * self.cov
        slope = torch.linalg.solve(sigma**2 * eye + alpha**2 * self.cov, moving, left=False)
        shift = alpha_rate[..., 0] * self.mean - (slope @ (alpha[..., 0] * self.mean)[..., None])[..., 0]
        return slope, shift

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """v(t, x)."""
        slope, shift = self.affine(t)
        return (slope @ x[..., None])[..., 0] + shift


def rate_of_kl(path: Path, rates: Rates, t: Tensor) -> Tensor:
    """k = alpha/(sigma (alpha' sigma - alpha sigma'))."""
    (sigma, alpha, _), (sigma_rate, alpha_rate, _) = path.coefficients(t), rates(path, t)
    return alpha / (sigma * (alpha_rate * sigma - alpha * sigma_rate))


def affine_paths(registry: Registry) -> Iterator[Path]:
    """The registered paths without noise that reach t = 1."""
    for _, path in components(registry, "path"):
        if not (flow.is_noisy(path) or flow.is_stochastic(path)) and flow.t_end(path) == 1:
            yield path


def targets(shipped: Shipped, path: Path, generator: Generator) -> Iterator[tuple[Standard, Standard]]:
    """Flows to a target and to a pretrained model's law."""
    for d in (2, 4):
        yield tuple(  # type: ignore[misc]
            Standard(
                path,
                shipped.rates,
                torch.randn(d, generator=generator, dtype=torch.float64),
                random_covariance(d, generator),
            )
            for _ in range(2)
        )


def velocity_gap(registry: Registry, shipped: Shipped, generator: Generator) -> float:
    """KL(q || q_pre) against int k E|Delta_v|^2 dt, and against the path KL of the SDEs with g^2 = 2/k."""
    worst, generator = 0.0, cpu_generator(generator)
    independent = registry.create("coupling", "independent")
    for path in affine_paths(registry):
        for target, anchor in targets(shipped, path, generator):
            law = GaussianFlow(0 * target.mean, torch.eye(len(target.mean)), target.mean, target.cov)
            at = sigma_points(law, *gauss_legendre(NODES))
            x = flow.sample(path, at.t, at.x0, at.x1, at.noise)
            velocities = [each.velocity(at.t, x) for each in (target, anchor)]
            k = rate_of_kl(path, shipped.rates, at.t)
            g = (2 / k).abs().sqrt()[:, None]
            drifts = [shipped.stochastic_drift(v, shipped.score(path, at.t, x, v, independent), g) for v in velocities]
            wanted = gaussian_kl(target.mean, target.cov, anchor.mean, anchor.cov)
            by_velocity = float((at.weight * k) @ squared_norm(velocities[1] - velocities[0]))
            by_path = float((at.weight / (2 * g[:, 0] ** 2)) @ squared_norm(drifts[1] - drifts[0]))
            worst = max(worst, off(by_velocity, wanted), off(by_path, wanted))
    return worst


EARLY = 1e-6
"""Where the SDEs with g^2 = 2/k start: at 0 their noise is infinite. They forget the start as t/EARLY grows."""


def terminal_kl(registry: Registry, shipped: Shipped, generator: Generator) -> Measurement:
    """By how much KL(q || p_1^beta) is above rho^2 KL(q || q_pre), p^beta by the SDE with g^2 = 2/k."""
    worst, generator = 0.0, cpu_generator(generator)
    lines: dict[str, Line] = {}
    span = -math.log(EARLY)
    for path in affine_paths(registry):

        def clock(s: Tensor) -> tuple[Tensor, Tensor]:
            t = torch.exp(-span * (1 - s))
            return t, span * t  # t and dt/ds

        def noise(s: Tensor) -> Tensor:
            t, speed = clock(s)
            return (2 * speed / rate_of_kl(path, shipped.rates, t)).sqrt()  # noqa: B023

        for target, anchor in targets(shipped, path, generator):
            target_drift, anchor_drift = (partial(hurried, each, shipped, clock) for each in (target, anchor))
            start = path.coefficients(torch.tensor([EARLY], dtype=torch.float64))
            sigma, alpha = float(start[0]), float(start[1])
            law = alpha * target.mean, sigma**2 * torch.eye(len(target.mean)) + alpha**2 * target.cov
            whole = gaussian_kl(target.mean, target.cov, anchor.mean, anchor.cov)
            ends = [
                collocate(blend_drifts(target_drift, anchor_drift, beta, shipped.blend), noise, *law)
                for beta in TEMPERATURES
            ]
            found = [gaussian_kl(target.mean, target.cov, *end) for end in ends]
            bounds = [shipped.path_kl(rho_of(beta), whole) for beta in TEMPERATURES]
            worst = max(worst, *(value / bound - 1 for value, bound in zip(found, bounds, strict=True)))
            lines = lines or {"measured": (TEMPERATURES, found), "rho^2 KL(q || q_pre)": (TEMPERATURES, bounds)}
    return Measurement(worst, lines)


def hurried(one: Standard, shipped: Shipped, clock: Callable[[Tensor], tuple[Tensor, Tensor]], s: Tensor) -> Affine:
    """The drift v + (1/k) score in the time s of a clock; the score is that of N(alpha m, sigma^2 I + alpha^2 S)."""
    t, speed = clock(s)
    slope, shift = one.affine(t)
    sigma, alpha, _ = (value[:, None, None] for value in one.path.coefficients(t))
    precision = torch.linalg.inv(sigma**2 * torch.eye(len(one.mean), dtype=torch.float64) + alpha**2 * one.cov)
    pull = (precision @ (alpha[..., 0] * one.mean)[..., None])[..., 0]
    g = (2 / rate_of_kl(one.path, shipped.rates, t)).sqrt()[:, None]
    return (
        speed[:, None, None] * shipped.stochastic_drift(slope, -precision, g[..., None]),
        speed[:, None] * shipped.stochastic_drift(shift, pull, g),
    )


# T17


def log_density(drift: AffineDrift, g: float, start: Law, path: Tensor) -> Tensor:
    """Log density of the Euler-Maruyama chain's states (n, steps + 1, d), but for a constant."""
    steps = path.shape[1] - 1
    slope, shift = drift(torch.arange(steps, dtype=torch.float64) / steps)
    means = path[:, :-1] + (torch.einsum("kab,nkb->nka", slope, path[:, :-1]) + shift) / steps
    apart_ = path[:, 0] - start[0]
    first = -(apart_ * torch.linalg.solve(start[1], apart_.mT).mT).sum(1) / 2
    return first - (path[:, 1:] - means).square().sum((1, 2)) * steps / (2 * g**2)


def geometric_mixture(path: Path, shipped: Shipped, generator: Generator) -> float:
    """(1-rho) log P_tgt + rho log P_pre = log P_beta - rho (1-rho)/2 sum h |Delta|^2/g^2 at random paths of states."""
    worst, steps = 0.0, 6
    generator = cpu_generator(generator)
    for problem in draw_fine_tunes(path, generator):
        d = len(problem.target.mean0)
        walk = torch.randn(5, steps + 1, d, generator=generator, dtype=torch.float64).cumsum(1)
        target, anchor = drifts_of(problem, G)
        laws = [log_density(drift, G, start_of(problem), walk) for drift in (target, anchor)]
        (slope, shift), (slope0, shift0) = (
            by(torch.arange(steps, dtype=torch.float64) / steps) for by in (target, anchor)
        )
        gaps = torch.einsum("kab,nkb->nka", slope0 - slope, walk[:, :-1]) + shift0 - shift
        energy = gaps.square().sum((1, 2)) / (steps * G**2)
        for beta in TEMPERATURES:
            rho = rho_of(beta)
            law = log_density(blend_drifts(target, anchor, beta, shipped.blend), G, start_of(problem), walk)
            found = law - rho * (1 - rho) / 2 * energy
            worst = max(worst, apart(found, (1 - rho) * laws[0] + rho * laws[1]))
    return worst


def mixed(law: Law, other: Law, rho: float) -> tuple[Law, float]:
    """The normalized geometric mixture N^(1-rho) N'^rho of two normal laws, and the logarithm of its integral."""
    shares = (1 - rho, rho)
    precisions = [share * torch.linalg.inv(cov) for share, (_, cov) in zip(shares, (law, other), strict=True)]
    cov = torch.linalg.inv(precisions[0] + precisions[1])
    mean = cov @ (precisions[0] @ law[0] + precisions[1] @ other[0])
    log_z = torch.logdet(cov) / 2
    for share, precision, (mean0, cov0) in zip(shares, precisions, (law, other), strict=True):
        apart_ = mean0 - mean
        log_z = log_z - (share * torch.logdet(cov0) + apart_ @ precision @ apart_) / 2
    return (mean, cov), float(log_z)


def parallel(path: Path, shipped: Shipped, generator: Generator) -> float:
    """Drifts of equal slopes, so that Delta doesn't depend on x: P_beta is the geometric mixture, as a joint law."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        target, _ = drifts_of(problem, G)
        shifted = partial(moved, target, problem.pretrained.mean1)
        laws = [chain_law(drift, G, start_of(problem)) for drift in (target, shifted)]
        for beta in TEMPERATURES:
            wanted, _ = mixed(laws[0], laws[1], rho_of(beta))
            found = chain_law(blend_drifts(target, shifted, beta, shipped.blend), G, start_of(problem))
            worst = max(worst, apart(found[0] - laws[0][0], wanted[0] - laws[0][0]), apart(found[1], wanted[1]))
    return worst


def moved(drift: AffineDrift, by: Tensor, t: Tensor) -> Affine:
    """The drift + (1 + t) by."""
    slope, shift = drift(t)
    return slope, shift + (1 + t)[:, None] * by


APART = 1e-3
"""What the KL of the blend's law from the geometric mixture must reach where Delta depends on x."""


def not_parallel(path: Path, shipped: Shipped, generator: Generator) -> Measurement:
    """KL(M || P_beta) of the normalized mixture M is -log Z - rho (1-rho)/2 E_M[energy].

    Z = int P_tgt^(1-rho) P_pre^rho; the energy is the sum of h |Delta|^2/g^2. And how far the KL, at its largest,
    falls short of ``APART``.
    """
    worst, largest = 0.0, 0.0
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        target, anchor = drifts_of(problem, G)
        d, laws = len(problem.target.mean0), [chain_law(drift, G, start_of(problem)) for drift in (target, anchor)]
        for beta in TEMPERATURES:
            rho = rho_of(beta)
            law, log_z = mixed(laws[0], laws[1], rho)
            steps = len(law[0]) // d - 1
            means = law[0].reshape(-1, d)[:-1]
            covs = torch.stack([law[1][k : k + d, k : k + d] for k in range(0, d * steps, d)])
            t = torch.arange(steps, dtype=torch.float64) / steps
            energy = float(squared_gap(anchor, target, t, means, covs).sum()) / (steps * G**2)
            found = gaussian_kl(
                *law, *chain_law(blend_drifts(target, anchor, beta, shipped.blend), G, start_of(problem))
            )
            cost = rho * (1 - rho) / 2 * energy
            worst, largest = max(worst, abs(found + log_z + cost) / cost), max(largest, found)
    return Measurement(max(worst, APART / largest - 1), note=f"Largest KL: {largest:.3g}.")


Replay = Callable[[Tensor, Tensor, float], Tensor]
"""(log p, log p_pre, rho) -> the share r of the pretrained drift."""


def replayed(log_p: Tensor, log_pre: Tensor, rho: float) -> Tensor:
    """r = rho p_pre/((1 - rho) p + rho p_pre), (n,)."""
    return torch.sigmoid(log_pre - log_p + math.log(rho / (1 - rho)))


def replay(registry: Registry, share: Replay, generator: Generator) -> float:
    """The flow to (1 - rho) q + rho q_pre, of all components, against b_tgt + r Delta; and its law at every t."""
    generator = cpu_generator(generator)
    worst, d, k = 0.0, 2, 2
    for path in affine_paths(registry):
        start = torch.randn(d, generator=generator, dtype=torch.float64), random_covariance(d, generator)
        means = 1.5 * torch.randn(2, k, d, generator=generator, dtype=torch.float64)
        covs = torch.stack([random_covariance(d, generator) for _ in range(2 * k)]).reshape(2, k, d, d)
        weights = torch.tensor([[0.3, 0.7], [0.6, 0.4]], dtype=torch.float64)
        target, anchor = (MixtureFlow(path, *start, weights[i], means[i], covs[i]) for i in range(2))
        t = torch.cat([torch.rand(20, generator=generator, dtype=torch.float64), torch.ones(20, dtype=torch.float64)])
        x = 2 * torch.randn(40, d, generator=generator, dtype=torch.float64)
        log_p, log_pre = target.log_density(t, x), anchor.log_density(t, x)
        velocity, gap = target.velocity(t, x), anchor.velocity(t, x) - target.velocity(t, x)
        for beta in TEMPERATURES:
            rho = rho_of(beta)
            shares = torch.cat([(1 - rho) * weights[0], rho * weights[1]])
            whole = MixtureFlow(path, *start, shares, means.flatten(0, 1), covs.flatten(0, 1))
            found = velocity + share(log_p, log_pre, rho)[:, None] * gap
            law = torch.logaddexp(log_p + math.log(1 - rho), log_pre + math.log(rho))
            worst = max(worst, apart(found, whole.velocity(t, x)), apart(whole.log_density(t, x), law))
    return worst


def terminal_distance(shipped: Shipped, generator: Generator) -> Measurement:
    """On the line, q and q_pre 12 apart: the slope of log W2 on log rho is 1 for the blend, 1/2 for replay."""
    mean = torch.randn((), generator=cpu_generator(generator), dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    target = GaussianFlow(torch.zeros(1), one, mean[None], one / 4)
    anchor = GaussianFlow(torch.zeros(1), one, mean[None] + 12, one / 2)
    betas = (1e-4, 3e-4, 1e-3, 3e-3)
    rhos = [rho_of(beta) for beta in betas]
    ends = [
        collocate(blend_drifts(target.affine, anchor.affine, b, shipped.blend), 0.0, target.mean0, one) for b in betas
    ]
    by_blend = [bures_wasserstein(target.mean1, target.cov1, *end) for end in ends]
    # Replay keeps the share of the anchor that the blend keeps of a gap of 1.
    zero = torch.zeros(1, 1, dtype=torch.float64)
    by_replay = [mixture_distance(float(shipped.blend(zero, one, beta)), target, anchor) for beta in betas]
    found = [*(slope - 1 for slope in slopes(rhos, by_blend)), *(slope - 0.5 for slope in slopes(rhos, by_replay))]
    lines: dict[str, Line] = {"measured": (betas, by_blend), "replay": (betas, by_replay)}
    return Measurement(max(map(abs, found)), lines)


def mixture_distance(share: float, target: GaussianFlow, anchor: GaussianFlow) -> float:
    """W2 of q and (1 - share) q + share q_pre on the line, by the optimal map, which keeps the order.

    W2^2 = int |x - G(F(x))|^2 dF' over the mixture's law F', with G the quantile of q.
    """
    if not 0 < share < 1:
        return math.nan
    mean, mean0 = float(target.mean1), float(anchor.mean1)
    spread, spread0 = float(target.cov1) ** 0.5, float(anchor.cov1) ** 0.5
    x = torch.linspace(mean - 9 * spread, mean0 + 9 * spread0, 20001, dtype=torch.float64)
    low, high = ndtr((x - mean) / spread), ndtr((x - mean0) / spread0)
    below = (1 - share) * low + share * high
    above = (1 - share) * ndtr((mean - x) / spread) + share * ndtr((mean0 - x) / spread0)
    half = below < 0.5  # from the nearer tail, for its digits
    back = torch.where(half, torch.special.ndtri(below), -torch.special.ndtri(above))
    apart_ = (x - mean - spread * back).square()
    density = (1 - share) * normal(x, mean, spread) + share * normal(x, mean0, spread0)
    return float(torch.trapezoid((apart_ * density).nan_to_num(posinf=0.0), x)) ** 0.5


def normal(x: Tensor, mean: float, spread: float) -> Tensor:
    """The density of N(mean, spread^2)."""
    return torch.exp(-((x - mean) ** 2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    path = registry.create("path", "linear")
    rates = {
        "sigma' of the wrong sign": lambda path, t: (-flow.rates(path, t)[0], *flow.rates(path, t)[1:]),
        "alpha' halved": lambda path, t: (flow.rates(path, t)[0], flow.rates(path, t)[1] / 2, flow.rates(path, t)[2]),
        "rates swapped": lambda path, t: (flow.rates(path, t)[1], flow.rates(path, t)[0], flow.rates(path, t)[2]),
    }
    scores = {
        "sign": lambda *on: -flow.score(*on),
        "sigma forgotten": lambda path, t, *on: path.coefficients(t)[0][:, None] * flow.score(path, t, *on),
    }
    terms = {
        "g^2 for g^2/2": lambda v, score, g: v + g**2 * score,
        "no score": lambda v, score, g: v + 0 * g * score,
    }
    yield Claim(
        name="T16-velocity-gap-kl",
        statement="int k E|v_pre - v_tgt|^2 dt = KL(q || q_pre) = KL(P_tgt || P_pre) of the SDEs with g^2 = 2/k.",
        reference="theory, T16",
        subject=SHIPPED,
        measure=partial(velocity_gap, registry),
        bound=exact(1e-9),
        mutants=variants(SHIPPED, rates=rates, score=scores, stochastic_drift=terms),
        conditions="Every registered affine path; source N(0, I), independent; normal targets of dimension 2 and 4.",
        seeds=1,
    )
    yield Claim(
        name="T16-terminal-kl",
        statement="KL(q || p_1^beta) <= rho^2 KL(q || q_pre), for the SDE with g^2 = 2/k.",
        reference="theory, T16",
        subject=SHIPPED,
        measure=partial(terminal_kl, registry),
        bound=exact(1e-9),
        mutants=variants(
            SHIPPED,
            stochastic_drift=terms,
            blend={"1/(1 + beta) for rho": BLENDS["1/(1 + beta) for rho"]},
            path_kl={"rho^4": lambda rho, whole: rho**4 * whole},
        ),
        conditions="Every registered affine path; source N(0, I), independent; normal targets of dimension 2 and 4; "
        f"from t = {EARLY:g}; temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}.",
        seeds=1,
        axes=("temperature", "KL(q || p_1^beta)"),
    )
    yield Claim(
        name="T17-geometric-mixture",
        statement="P_tgt^(1-rho) P_pre^rho = P_beta exp(-rho (1-rho)/2 int |Delta|^2/g^2 dt) on every path of states.",
        reference="theory, T17",
        subject=SHIPPED,
        measure=partial(geometric_mixture, path),
        bound=exact(1e-9),
        mutants=variants(SHIPPED, blend={**BLENDS, **SIGN}),
        conditions=f"{CONDITIONS} Euler-Maruyama chains of 6 steps, for which it is exact; g = {G}.",
        seeds=1,
    )
    yield Claim(
        name="T17-geometric-mixture-constant-gap",
        statement="Where Delta doesn't depend on x, the blend's law is the geometric mixture of the path laws.",
        reference="theory, T17",
        subject=SHIPPED,
        measure=partial(parallel, path),
        bound=exact(1e-9),
        mutants=variants(SHIPPED, blend={**BLENDS, **SIGN}),
        conditions=f"{CONDITIONS} Joint laws of chains of 5 Euler-Maruyama steps; g = {G}.",
        seeds=1,
    )
    yield Claim(
        name="T17-geometric-mixture-counterexample",
        statement=f"Where Delta depends on x it is not: KL(geometric mixture || P_beta) reaches {APART:g}.",
        reference="theory, T17",
        subject=SHIPPED,
        measure=partial(not_parallel, path),
        bound=exact(1e-9),
        mutants=variants(SHIPPED, blend={**BLENDS, **SIGN}),
        conditions=f"{CONDITIONS} Joint laws of chains of 5 Euler-Maruyama steps; g = {G}.",
        seeds=1,
    )
    yield Claim(
        name="T17-replay",
        statement=(
            "Replay's flow, to (1-rho) q + rho q_pre, has drift b_tgt + r Delta, r = rho p_pre/((1-rho) p + rho "
            "p_pre), and the law (1-rho) p + rho p_pre at every t. About the oracles: gftkit trains by the blend."
        ),
        reference="theory, T17",
        subject=replayed,
        measure=partial(replay, registry),
        bound=exact(1e-9),
        mutants={
            "rho for r": lambda log_p, log_pre, rho: torch.full_like(log_p, rho),  # noqa: ARG005
            "densities swapped": lambda log_p, log_pre, rho: replayed(log_pre, log_p, rho),
            "1 - rho for rho": lambda log_p, log_pre, rho: replayed(log_p, log_pre, 1 - rho),
            "densities forgotten to normalize": lambda log_p, log_pre, rho: rho * (log_pre - log_p).exp(),
        },
        conditions="Every registered affine path; mixtures of two components in dimension 2; t up to 1; "
        f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}.",
        seeds=1,
    )
    yield Claim(
        name="T17-terminal-slopes",
        statement=(
            "For separated targets the slope of log W2(q, terminal law) on log rho is 1 for the blend, 1/2 for replay."
        ),
        reference="theory, T17",
        subject=SHIPPED,
        measure=terminal_distance,
        bound=order(0.03),
        mutants=variants(SHIPPED, blend={**TOO_CLOSE, "rho squared": BLENDS["rho squared"]}),
        conditions="On the line; q and q_pre normal, 12 apart; temperatures 1e-4 to 3e-3.",
        seeds=2,
        axes=("temperature", "W2(q, terminal law)"),
    )
