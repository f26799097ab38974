"""The best temperature as held-out pairs estimate it, and as fits of the shipped loop have it: T15."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.theory import flow as paths
from gftkit.theory.objective import retention
from gftkit.theory.predictions import best_temperature, error_with_noise
from gftkit.verify import REGISTRY, Measurement, claim, registered, statistical
from gftkit_verification.oracles.affine import drift_gap
from gftkit_verification.oracles.gaussian import Affine, AffineDrift, GaussianFlow
from gftkit_verification.testbeds.loops.shipped import LoopBuilder, build_loop
from gftkit_verification.testbeds.loops.side_by_side import Finite, Regressions, draw_regressions, weight_of
from gftkit_verification.testbeds.measuring.sgd import LOOP_SLIPS, TEMPERATURES, standardised_error
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed

DIMENSIONS = (2, 3, 5)
PAIRS = 4000
STEPS = 40
"""Of gradient descent on full batches, to convergence."""
RUNS, POINTS, FRESH = 200, 60, 100
"""Independent fits side by side, the samples of each, and the held-out ones."""
GAP = 0.6
"""|Delta| of those fits."""


@dataclass(frozen=True)
class HeldOut:
    """The held-out estimate: ``share`` gives numerator and denominator of rho* for each pair; and its prediction."""

    share: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    best: Callable[[float, float], float] = best_temperature


def held_out_share(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """T15: ``rho* = E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2``: numerator and denominator of each pair."""
    return ((fitted - label) * (fitted - anchor)).sum(-1), (fitted - anchor).square().sum(-1)


def in_sample(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate on pairs that were trained on: the fit is nearer to them."""
    return held_out_share(fitted, label + (fitted - label) / 2, anchor)


def wrong_sign(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate with the other sign."""
    numerator, denominator = held_out_share(fitted, label, anchor)
    return -numerator, denominator


def by_labels(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """The estimate with labels in the denominator."""
    return held_out_share(fitted, label, anchor)[0], (label - anchor).square().sum(-1)


def turned_drift(drift: AffineDrift, turn: Tensor) -> AffineDrift:
    """(1/2 + t) turn b(t, x)."""

    def turned(t: Tensor) -> Affine:
        slope, shift = drift(t)
        share = 0.5 + t[:, None]
        return share[:, :, None] * (turn @ slope), share * (shift @ turn.mT)

    return turned


def share_errors(subject: HeldOut, flow: GaussianFlow, path: Path, generator: Generator) -> tuple[Tensor, Tensor]:
    """Numerator - rho* denominator of each pair, zeta orthogonal to Delta and with 0.3 Delta added: (PAIRS,) each."""
    d, other = len(flow.mean0), retarget(flow, generator)
    turn = torch.randn(d, d, generator=generator, dtype=torch.float64)
    turn = turn - turn.mT  # <turn Delta, Delta> = 0
    x0, x1 = flow.pairs(PAIRS, generator)
    t = torch.rand(PAIRS, generator=generator, dtype=torch.float64)
    x = paths.sample(path, t, x0, x1, None)
    target, anchor = flow.velocity(t, x), other.velocity(t, x)
    gap = drift_gap(other.affine, flow.affine, flow.marginal)
    noise = drift_gap(turned_drift(other.affine, turn), turned_drift(flow.affine, turn), flow.marginal) ** 2
    fitted = target + (0.5 + t[:, None]) * (anchor - target) @ turn.mT
    label = paths.drift(path, t, x0, x1, None)

    def error(fit: Tensor, rho: float) -> Tensor:
        numerator, denominator = subject.share(fit, label, anchor)
        return (numerator - rho * denominator) / denominator.mean()

    orthogonal = error(fitted, retention(subject.best(gap, noise)))
    # With zeta + 0.3 Delta: F gains 0.09 |Delta|^2, and c = 0.3 |Delta|^2 is taken from F and |Delta|^2.
    rho = (noise - 0.21 * gap**2) / (noise + 0.49 * gap**2)
    return orthogonal, error(fitted + 0.3 * (anchor - target), rho)


@claim(
    "T15-held-out-estimate",
    statement=(
        "On held-out pairs rho* = E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2 estimates the best retention of a "
        "fit b_hat = b_tgt + zeta: beta*/(1 + beta*), and in general (F - c)/(F + |Delta|^2 - 2c), c = E<zeta, Delta>."
    ),
    reference="theory, T15",
    subject=HeldOut(held_out_share),
    bound=statistical(degrees=PAIRS - PAIRS // 2 - 1),
    mutants={
        "sign": HeldOut(wrong_sign),
        "pairs that were trained on": HeldOut(in_sample),
        "labels in the denominator": HeldOut(by_labels),
        "beta for rho": HeldOut(held_out_share, lambda gap, noise: noise / gap**2 / (1 + noise / gap**2)),
    },
    conditions=(
        "Gaussian flows, d = 2, 3, 5, both couplings, 4000 pairs; zeta orthogonal to Delta, and with 0.3 Delta added."
    ),
    seeds=1,
    uses={"path": registered("path", "linear")},
)
def estimate_error(subject: HeldOut, generator: Generator, *, path: Path) -> float:
    """Standard errors of the estimate, over problems and both kinds of error."""
    generator = cpu_generator(generator)
    columns: list[Tensor] = []
    for d in DIMENSIONS:
        for coupling in COUPLINGS:
            columns += share_errors(subject, draw_flow(d, generator, coupling), path, generator)
    return standardised_error(torch.stack(columns, 1))


@dataclass(frozen=True)
class Fits:
    """Fits of the shipped loop to few samples, RUNS of them side by side.

    Attributes:
        make: builds the loop.
        registry: gives what the loop needs.
        problem: the regressions that are fitted.
        data: the samples.
        generator: on the CPU; a seed is drawn of it for each fit.
        device: where the fits are made.
    """

    make: LoopBuilder
    registry: Registry
    problem: Regressions
    data: Finite
    generator: Generator
    device: torch.device

    def weight(self, beta: float) -> Tensor:
        """The weights fitted at a temperature, (RUNS, d, d)."""
        loop = self.problem.loop(
            self.make,
            self.registry,
            schedule=beta,
            seed=draw_seed(self.generator),
            rate=0.8,
            steps=STEPS,
            batch_size=POINTS,
            data=self.data,
            device=self.device,
        )
        for step in range(STEPS):
            loop.take(step)
        return weight_of(loop).cpu()

    def estimate(self) -> tuple[Tensor, Tensor]:
        """Numerator and denominator of rho* by held-out pairs, (RUNS,) each."""
        plain, fresh = self.weight(0.0), self.problem.draw(FRESH, self.generator)
        assert fresh.x0 is not None
        fitted = torch.einsum("rij,brj->bri", plain, fresh.x0)
        numerator, denominator = held_out_share(fitted, fresh.x1, fresh.x0 @ self.problem.pretrained.mT)
        return numerator.mean(0), denominator.mean(0)


def compare_fits(
    make: LoopBuilder, registry: Registry, d: int, generator: Generator, device: torch.device
) -> tuple[Tensor, Measurement]:
    """The fits' differences from the prediction, (RUNS, k), and the report's lines."""
    drawn = draw_regressions(d, generator, RUNS)
    gap = GAP * drawn.gap / drawn.gap.norm()
    problem = replace(drawn, features=torch.eye(d, dtype=torch.float64), pretrained=drawn.target + gap)
    noise = d * d / (POINTS - d - 1)  # E|zeta|^2 of least squares: d sigma^2 E tr (X^T X)^-1, inverse Wishart
    fits = Fits(make, registry, problem, Finite(problem.draw(POINTS, generator)), generator, device)
    rho = retention(best_temperature(GAP, noise))
    below, above = ((rho + shift) / (1 - rho - shift) for shift in (-0.2, 0.2))
    temperatures = sorted((*TEMPERATURES, below, above))
    errors = {beta: problem.norm(fits.weight(beta) - problem.target) for beta in temperatures}
    theory = {beta: error_with_noise(retention(beta), GAP, noise) for beta in temperatures}
    numerator, denominator = fits.estimate()
    columns = [errors[beta] / theory[beta] - 1 for beta in temperatures]
    columns.append((errors[above] - errors[below]) / noise)  # a parabola about its least value
    columns.append((numerator - rho * denominator) / noise)
    lines = {
        "measured": (temperatures, [float(errors[beta].mean()) for beta in temperatures]),
        "theory": (temperatures, [theory[beta] for beta in temperatures]),
    }
    estimate = float(numerator.mean() / denominator.mean())
    note = f"rho* {rho:.3f} predicted, {estimate:.3f} by held-out pairs"
    return torch.stack(columns, 1), Measurement(0.0, lines, note)


@claim(
    "T15-best-temperature-trained",
    statement=(
        "Fits of the shipped loop to few samples err by rho^2 |Delta|^2 + (1 - rho)^2 F, least at beta* = "
        "F/|Delta|^2, which held-out pairs find."
    ),
    reference="theory, T15",
    subject=build_loop,
    bound=statistical(degrees=RUNS - RUNS // 2 - 1),
    mutants=LOOP_SLIPS,
    conditions=(
        "Linear model, Gaussian features, d = 3 and 4, 60 samples, full batches to convergence, 200 independent "
        "fits, 100 held-out pairs each; F = d sigma^2 p/(n - p - 1) of least squares; beta 0.01 to 30."
    ),
    profile="full",
    seeds=1,
    axes=("temperature", "E|b - b_tgt|^2"),
    uses={"registry": REGISTRY},
)
def error_of_fits(make: LoopBuilder, generator: Generator, *, registry: Registry) -> Measurement:
    """Standard errors of the fits' errors, of where they are least, and of the held-out estimate."""
    cpu = cpu_generator(generator)
    columns, shown = zip(*(compare_fits(make, registry, d, cpu, generator.device) for d in (3, 4)), strict=True)
    return Measurement(standardised_error(torch.cat(columns, 1)), shown[0].lines, shown[0].note)
