"""T5: the law of paths of a blend, against the target's, on closed forms."""

from torch import Generator

from gftkit.kernel.contracts import Path
from gftkit.verify.claims import Line, Measurement, exact, order
from gftkit.verify.declaration import claim, registered
from gftkit_verification.oracles.affine import blend_drifts, gaussian_kl, path_kl
from gftkit_verification.testbeds.measuring.differences import log_slopes, relative_error
from gftkit_verification.testbeds.problems.moments import TEMPERATURES, draw_fine_tunes, rho_of
from gftkit_verification.testbeds.slips.blend_laws import (
    CONDITIONS,
    POWERS,
    SHIPPED,
    BlendLaws,
    G,
    chain_law,
    drifts_of,
    end_of,
    start_of,
)
from gftkit_verification.testbeds.slips.objective import BLENDS, replace_each


@claim(
    "T05-path-kl-gaussian",
    statement="KL(P_tgt || P_beta) is proportional to rho^2: the slope of its logarithm on log rho is 2.",
    reference="theory, T5",
    subject=SHIPPED,
    bound=order(0.01),
    mutants=replace_each(SHIPPED, blend=BLENDS),
    conditions=f"{CONDITIONS} g = {G}.",
    seeds=1,
    axes=("temperature", "KL(P_tgt || P_beta)"),
    uses={"path": registered("path", "linear")},
)
def path_kl_slope(shipped: BlendLaws, generator: Generator, *, path: Path) -> Measurement:
    """The distance from 2 of the slope of log KL(P_tgt || P_beta) on log rho, between neighboring temperatures."""
    worst = 0.0
    lines: dict[str, Line] = {}
    rhos = [rho_of(beta) for beta in TEMPERATURES]
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        target, anchor = drifts_of(problem, G)
        marginal = problem.target.marginal
        divergences = [
            path_kl(target, blend_drifts(target, anchor, beta, shipped.blend), G, marginal) for beta in TEMPERATURES
        ]
        worst = max(worst, *(abs(slope - 2) for slope in log_slopes(rhos, divergences)))
        whole = path_kl(target, anchor, G, marginal)
        theory = [rho**2 * whole for rho in rhos]
        lines = lines or {"measured": (TEMPERATURES, divergences), "rho^2 KL(P_tgt || P_pre)": (TEMPERATURES, theory)}
        fitted = log_slopes([rhos[0], rhos[-1]], [divergences[0], divergences[-1]])[0]
    return Measurement(worst, lines, f"Fitted slope of log KL on log rho: {fitted:.6f}.")


@claim(
    "T05-path-kl-start-laws",
    statement="KL(P_tgt || P_beta) = rho^2 KL(P_tgt || P_pre), plus KL(p0 || p0') where the start laws differ.",
    reference="theory, T5",
    subject=SHIPPED,
    bound=exact(1e-9),
    mutants=replace_each(SHIPPED, blend={"1/(1 + beta) for rho": BLENDS["1/(1 + beta) for rho"]}, path_kl=POWERS),
    conditions=f"{CONDITIONS} Joint laws of chains of 5 Euler steps, for which it is exact; g = 0.4 and 1.5.",
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def chain_kl_error(shipped: BlendLaws, generator: Generator, *, path: Path) -> float:
    """The error of KL(p0 || p0') + rho^2 KL(P_tgt || P_pre) for the joint laws of chains from p0 and another p0'."""
    worst = 0.0
    for problem in draw_fine_tunes(path, generator, (2, 3)):
        for g in (0.4, 1.5):
            target, anchor = drifts_of(problem, g)
            other = end_of(problem)
            law = chain_law(target, g, start_of(problem))
            whole = gaussian_kl(*law, *chain_law(anchor, g, start_of(problem)))
            for beta in TEMPERATURES:
                blend = blend_drifts(target, anchor, beta, shipped.blend)
                divergence = gaussian_kl(*law, *chain_law(blend, g, other))
                expected = gaussian_kl(*start_of(problem), *other) + shipped.path_kl(rho_of(beta), whole)
                worst = max(worst, relative_error(divergence, expected))
    return worst
