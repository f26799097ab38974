"""Three kinds of intermediate target, the blend, the geometric mixture of path laws, and replay: T17."""

import math
from collections.abc import Callable
from functools import partial

import torch
from torch import Generator, Tensor
from torch.special import ndtr

from gftkit.kernel.contracts import Path
from gftkit.verify import FromRegistry, Line, Measurement, claim, exact, order, registered
from gftkit_verification.claims.objective.velocity_gap import affine_paths
from gftkit_verification.oracles.affine import blend_drifts, bures_wasserstein, collocate, gaussian_kl, squared_gap
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, GaussianFlow
from gftkit_verification.oracles.mixture import MixtureFlow
from gftkit_verification.testbeds.measuring.differences import log_slopes, relative_difference
from gftkit_verification.testbeds.problems.flows import random_covariance
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, cpu_generator, draw_fine_tunes, rho_of
from gftkit_verification.testbeds.slips.blend_laws import (
    CONDITIONS,
    TOO_CLOSE,
    G,
    Law,
    chain_law,
    drifts_of,
    start_of,
)
from gftkit_verification.testbeds.slips.objective import (
    BLENDS,
    OBJECTIVE,
    SIGN,
    ObjectiveFunctions,
    objective_slips,
)

LEAST_KL = 1e-3
"""The KL of the blend's law from the geometric mixture that must be reached where Delta depends on x."""


def log_density(drift: AffineDrift, g: float, start: Law, walk: Tensor) -> Tensor:
    """Log density of the Euler-Maruyama chain's states (n, steps + 1, d), but for a constant."""
    steps = walk.shape[1] - 1
    slope, shift = drift(torch.arange(steps, dtype=torch.float64) / steps)
    means = walk[:, :-1] + (torch.einsum("kab,nkb->nka", slope, walk[:, :-1]) + shift) / steps
    centred = walk[:, 0] - start[0]
    first = -(centred * torch.linalg.solve(start[1], centred.mT).mT).sum(1) / 2
    return first - (walk[:, 1:] - means).square().sum((1, 2)) * steps / (2 * g**2)


@claim(
    "T17-geometric-mixture",
    statement="P_tgt^(1-rho) P_pre^rho = P_beta exp(-rho (1-rho)/2 int |Delta|^2/g^2 dt) on every path of states.",
    reference="theory, T17",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(blend={**BLENDS, **SIGN}),
    conditions=f"{CONDITIONS} Euler-Maruyama chains of 6 steps, for which it is exact; g = {G}.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def mixture_of_densities(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """(1-rho) log P_tgt + rho log P_pre = log P_beta - rho (1-rho)/2 sum h |Delta|^2/g^2 at random paths of states."""
    worst, steps = 0.0, 6
    generator = cpu_generator(generator)
    t = torch.arange(steps, dtype=torch.float64) / steps
    for problem in draw_fine_tunes(path, generator):
        d, start = len(problem.target.mean0), start_of(problem)
        walk = torch.randn(5, steps + 1, d, generator=generator, dtype=torch.float64).cumsum(1)
        target, anchor = drifts_of(problem, G)
        of_target, of_anchor = (log_density(drift, G, start, walk) for drift in (target, anchor))
        (slope, shift), (anchor_slope, anchor_shift) = target(t), anchor(t)
        gaps = torch.einsum("kab,nkb->nka", anchor_slope - slope, walk[:, :-1]) + anchor_shift - shift
        energy = gaps.square().sum((1, 2)) / (steps * G**2)
        for beta in TEMPERATURES:
            rho = rho_of(beta)
            of_blend = log_density(blend_drifts(target, anchor, beta, functions.blend), G, start, walk)
            measured = of_blend - rho * (1 - rho) / 2 * energy
            worst = max(worst, relative_difference(measured, (1 - rho) * of_target + rho * of_anchor))
    return worst


def geometric_mixture(law: Law, other: Law, rho: float) -> tuple[Law, float]:
    """The normalized geometric mixture N^(1-rho) N'^rho of two normal laws, and the logarithm of its integral."""
    shares = (1 - rho, rho)
    precisions = [share * torch.linalg.inv(cov) for share, (_, cov) in zip(shares, (law, other), strict=True)]
    cov = torch.linalg.inv(precisions[0] + precisions[1])
    mean = cov @ (precisions[0] @ law[0] + precisions[1] @ other[0])
    log_z = torch.logdet(cov) / 2
    for share, precision, (part_mean, part_cov) in zip(shares, precisions, (law, other), strict=True):
        away = part_mean - mean
        log_z = log_z - (share * torch.logdet(part_cov) + away @ precision @ away) / 2
    return (mean, cov), float(log_z)


def shifted_drift(drift: AffineDrift, shift_rate: Tensor, t: Tensor) -> Affine:
    """The drift + (1 + t) times a vector."""
    slope, shift = drift(t)
    return slope, shift + (1 + t)[:, None] * shift_rate


@claim(
    "T17-geometric-mixture-constant-gap",
    statement="Where Delta doesn't depend on x, the blend's law is the geometric mixture of the path laws.",
    reference="theory, T17",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(blend={**BLENDS, **SIGN}),
    conditions=f"{CONDITIONS} Joint laws of chains of 5 Euler-Maruyama steps; g = {G}.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def mixture_of_equal_slopes(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> float:
    """Drifts of equal slopes, so that Delta doesn't depend on x: P_beta is the geometric mixture, as a joint law."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        target, _ = drifts_of(problem, G)
        start = start_of(problem)
        shifted = partial(shifted_drift, target, problem.pretrained.mean1)
        target_law, shifted_law = (chain_law(drift, G, start) for drift in (target, shifted))
        for beta in TEMPERATURES:
            (mean, cov), _ = geometric_mixture(target_law, shifted_law, rho_of(beta))
            blend_mean, blend_cov = chain_law(blend_drifts(target, shifted, beta, functions.blend), G, start)
            of_mean = relative_difference(blend_mean - target_law[0], mean - target_law[0])
            worst = max(worst, of_mean, relative_difference(blend_cov, cov))
    return worst


@claim(
    "T17-geometric-mixture-counterexample",
    statement=f"Where Delta depends on x it is not: KL(geometric mixture || P_beta) reaches {LEAST_KL:g}.",
    reference="theory, T17",
    subject=OBJECTIVE,
    bound=exact(1e-9),
    mutants=objective_slips(blend={**BLENDS, **SIGN}),
    conditions=f"{CONDITIONS} Joint laws of chains of 5 Euler-Maruyama steps; g = {G}.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def mixture_kl(functions: ObjectiveFunctions, generator: Generator, *, path: Path) -> Measurement:
    """KL(M || P_beta) of the normalized mixture M is -log Z - rho (1-rho)/2 E_M[energy].

    Z = int P_tgt^(1-rho) P_pre^rho; the energy is the sum of h |Delta|^2/g^2. And how far the KL, at its largest,
    falls short of ``LEAST_KL``.
    """
    worst, largest = 0.0, 0.0
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        target, anchor = drifts_of(problem, G)
        d, start = len(problem.target.mean0), start_of(problem)
        target_law, anchor_law = (chain_law(drift, G, start) for drift in (target, anchor))
        for beta in TEMPERATURES:
            rho = rho_of(beta)
            mixture, log_z = geometric_mixture(target_law, anchor_law, rho)
            steps = len(mixture[0]) // d - 1
            means = mixture[0].reshape(-1, d)[:-1]
            covs = torch.stack([mixture[1][k : k + d, k : k + d] for k in range(0, d * steps, d)])
            t = torch.arange(steps, dtype=torch.float64) / steps
            energy = float(squared_gap(anchor, target, t, means, covs).sum()) / (steps * G**2)
            kl = gaussian_kl(*mixture, *chain_law(blend_drifts(target, anchor, beta, functions.blend), G, start))
            cost = rho * (1 - rho) / 2 * energy
            worst, largest = max(worst, abs(kl + log_z + cost) / cost), max(largest, kl)
    return Measurement(max(worst, LEAST_KL / largest - 1), note=f"Largest KL: {largest:.3g}.")


Replay = Callable[[Tensor, Tensor, float], Tensor]
"""(log p, log p_pre, rho) -> the share r of the pretrained drift."""


def replay_share(log_p: Tensor, log_pre: Tensor, rho: float) -> Tensor:
    """r = rho p_pre/((1 - rho) p + rho p_pre), (n,)."""
    return torch.sigmoid(log_pre - log_p + math.log(rho / (1 - rho)))


@claim(
    "T17-replay",
    statement=(
        "Replay's flow, to (1-rho) q + rho q_pre, has drift b_tgt + r Delta, r = rho p_pre/((1-rho) p + rho p_pre), "
        "and the law (1-rho) p + rho p_pre at every t. About the oracles: gftkit trains by the blend."
    ),
    reference="theory, T17",
    subject=replay_share,
    bound=exact(1e-9),
    mutants={
        "rho for r": lambda log_p, log_pre, rho: torch.full_like(log_p, rho),  # noqa: ARG005
        "densities swapped": lambda log_p, log_pre, rho: replay_share(log_pre, log_p, rho),
        "1 - rho for rho": lambda log_p, log_pre, rho: replay_share(log_p, log_pre, 1 - rho),
        "densities forgotten to normalize": lambda log_p, log_pre, rho: rho * (log_pre - log_p).exp(),
    },
    conditions=(
        "Every registered affine path; mixtures of two components in dimension 2; t up to 1; temperatures "
        f"{', '.join(f'{beta:g}' for beta in TEMPERATURES)}."
    ),
    seeds=1,
    uses={"paths": FromRegistry(affine_paths)},
)
def replay_difference(share: Replay, generator: Generator, *, paths: list[Path]) -> float:
    """The flow to (1 - rho) q + rho q_pre, of all components, against b_tgt + r Delta; and its law at every t."""
    generator = cpu_generator(generator)
    worst, d, k = 0.0, 2, 2
    for path in paths:
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
            replayed = velocity + share(log_p, log_pre, rho)[:, None] * gap
            law = torch.logaddexp(log_p + math.log(1 - rho), log_pre + math.log(rho))
            of_law = relative_difference(whole.log_density(t, x), law)
            worst = max(worst, relative_difference(replayed, whole.velocity(t, x)), of_law)
    return worst


def normal_density(x: Tensor, mean: float, spread: float) -> Tensor:
    """The density of N(mean, spread^2)."""
    return torch.exp(-((x - mean) ** 2) / (2 * spread**2)) / (spread * math.sqrt(2 * math.pi))


def mixture_distance(share: float, target: GaussianFlow, anchor: GaussianFlow) -> float:
    """W2 of q and (1 - share) q + share q_pre on the line, by the optimal map, which keeps the order.

    W2^2 = int |x - G(F(x))|^2 dF' over the mixture's law F', with G the quantile of q.
    """
    if not 0 < share < 1:
        return math.nan
    mean, anchor_mean = float(target.mean1), float(anchor.mean1)
    spread, anchor_spread = float(target.cov1) ** 0.5, float(anchor.cov1) ** 0.5
    x = torch.linspace(mean - 9 * spread, anchor_mean + 9 * anchor_spread, 20001, dtype=torch.float64)
    below = (1 - share) * ndtr((x - mean) / spread) + share * ndtr((x - anchor_mean) / anchor_spread)
    above = (1 - share) * ndtr((mean - x) / spread) + share * ndtr((anchor_mean - x) / anchor_spread)
    lower_half = below < 0.5  # from the nearer tail, for its digits
    quantile = torch.where(lower_half, torch.special.ndtri(below), -torch.special.ndtri(above))
    squares = (x - mean - spread * quantile).square()
    density = (1 - share) * normal_density(x, mean, spread) + share * normal_density(x, anchor_mean, anchor_spread)
    return float(torch.trapezoid((squares * density).nan_to_num(posinf=0.0), x)) ** 0.5


@claim(
    "T17-terminal-slopes",
    statement=(
        "For separated targets the slope of log W2(q, terminal law) on log rho is 1 for the blend, 1/2 for replay."
    ),
    reference="theory, T17",
    subject=OBJECTIVE,
    bound=order(0.03),
    mutants=objective_slips(blend={**TOO_CLOSE, "rho squared": BLENDS["rho squared"]}),
    conditions="On the line; q and q_pre normal, 12 apart; temperatures 1e-4 to 3e-3.",
    seeds=2,
    axes=("temperature", "W2(q, terminal law)"),
)
def terminal_slopes(functions: ObjectiveFunctions, generator: Generator) -> Measurement:
    """On the line, q and q_pre 12 apart: the slope of log W2 on log rho is 1 for the blend, 1/2 for replay."""
    mean = torch.randn((), generator=cpu_generator(generator), dtype=torch.float64)
    one = torch.ones(1, 1, dtype=torch.float64)
    target = GaussianFlow(torch.zeros(1), one, mean[None], one / 4)
    anchor = GaussianFlow(torch.zeros(1), one, mean[None] + 12, one / 2)
    betas = (1e-4, 3e-4, 1e-3, 3e-3)
    rhos = [rho_of(beta) for beta in betas]
    drifts = [blend_drifts(target.affine, anchor.affine, beta, functions.blend) for beta in betas]
    ends = [collocate(drift, 0.0, target.mean0, one) for drift in drifts]
    by_blend = [bures_wasserstein(target.mean1, target.cov1, *end) for end in ends]
    # Replay keeps the share of the anchor that the blend keeps of a gap of 1.
    zero = torch.zeros(1, 1, dtype=torch.float64)
    by_replay = [mixture_distance(float(functions.blend(zero, one, beta)), target, anchor) for beta in betas]
    errors = [slope - 1 for slope in log_slopes(rhos, by_blend)]
    errors += [slope - 0.5 for slope in log_slopes(rhos, by_replay)]
    lines: dict[str, Line] = {"measured": (betas, by_blend), "replay": (betas, by_replay)}
    return Measurement(max(map(abs, errors)), lines)
