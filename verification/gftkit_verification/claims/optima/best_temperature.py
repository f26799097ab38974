"""The best final temperature: T15, on closed forms and in the shipped loop."""

import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit.kernel.registry import Registry
from gftkit.theory import flow as paths
from gftkit.theory.objective import blend, retention, squared_norm
from gftkit.theory.predictions import best_temperature, error_with_noise
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.oracles.affine import drift_gap
from gftkit_verification.oracles.gaussian import Affine, AffineDrift
from gftkit_verification.testbeds.loops import build_loop
from gftkit_verification.testbeds.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.sgd import LOOP_SLIPS, TEMPERATURES, standardised_error
from gftkit_verification.testbeds.side_by_side import Finite, draw_regressions, weight_of
from gftkit_verification.testbeds.slips import LoopBuilder

DIMENSIONS = (2, 3, 5)


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    yield from _best_temperature(registry)
    yield _held_out(registry)
    yield _best_temperature_trained(registry)


@dataclass(frozen=True)
class Best:
    """How a fit at a temperature comes about, and what is predicted of its error."""

    blend: Callable[[Tensor, Tensor, float], Tensor] = blend
    error: Callable[[float, float, float], float] = error_with_noise
    best: Callable[[float, float], float] = best_temperature


def _mean(left: Tensor, right: Tensor) -> float:
    """``E<left, right>``."""
    return float((left * right).sum(1).mean())


def _errors(subject: Best, fitted: Tensor, target: Tensor, anchor: Tensor) -> Callable[[float], float]:
    """E|b - b_tgt|^2 of the blend at a temperature."""
    return lambda beta: float(squared_norm(subject.blend(fitted, anchor, beta) - target).mean())


def _least(error: Callable[[float], float]) -> float:
    """The temperature where a quadratic in rho is least, by its values at rho = 0, 1/2 and 3/4."""
    rho = torch.tensor([0.0, 0.5, 0.75], dtype=torch.float64)
    values = torch.tensor([error(beta) for beta in (0.0, 1.0, 3.0)], dtype=torch.float64)
    _, linear, square = torch.linalg.solve(torch.stack([rho**0, rho, rho**2], 1), values).tolist()
    found = -linear / (2 * square)
    return found / (1 - found)


def _best_temperature(registry: Registry) -> Iterator[Claim]:
    path = registry.create("path", "linear")

    def populations(generator: Generator) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        """Target drift, anchor and a random error, at 50 states: the whole population."""
        for d in DIMENSIONS:
            for coupling in COUPLINGS:
                flow = draw_flow(d, generator, coupling)
                x0, x1 = flow.pairs(50, generator)
                t = torch.rand(50, generator=generator, dtype=torch.float64)
                x = paths.sample(path, t, x0, x1, None)
                zeta = torch.randn(50, d, generator=generator, dtype=torch.float64)
                yield flow.velocity(t, x), retarget(flow, generator).velocity(t, x), zeta

    def orthogonal(subject: Best, generator: Generator) -> Measurement:
        worst, lines = 0.0, {}
        for target, anchor, zeta in populations(cpu_generator(generator)):
            gap = anchor - target
            zeta = zeta - _mean(zeta, gap) / _mean(gap, gap) * gap
            noise, size = _mean(zeta, zeta), math.sqrt(_mean(gap, gap))
            error = _errors(subject, target + zeta, target, anchor)
            best = subject.best(size, noise)
            worst = max(worst, abs(_least(error) / best - 1))
            temperatures = sorted((*TEMPERATURES, best))
            measured = [error(beta) for beta in temperatures]
            theory = [subject.error(retention(beta), size, noise) for beta in temperatures]
            worst = max(worst, *(abs(found / wanted - 1) for found, wanted in zip(measured, theory, strict=True)))
            lines = {"measured": (temperatures, measured), "theory": (temperatures, theory)}
        return Measurement(worst, lines)

    def correlated(subject: Best, generator: Generator) -> Measurement:
        worst, lines = 0.0, {}
        for target, anchor, zeta in populations(cpu_generator(generator)):
            gap = anchor - target
            zeta = 0.7 * zeta * gap.norm() / zeta.norm() + 0.3 * gap  # plain fine-tuning that stopped early
            noise, squared, cross = _mean(zeta, zeta), _mean(gap, gap), _mean(zeta, gap)
            error = _errors(subject, target + zeta, target, anchor)
            best, formula = (noise - cross) / (squared - cross), subject.best(math.sqrt(squared), noise)
            worst = max(worst, abs(_least(error) / best - 1))
            if abs(formula / best - 1) < 0.05:  # then T15 would hold here
                worst = math.inf
            measured = [error(beta) for beta in TEMPERATURES]
            theory = [error_with_noise(retention(beta), math.sqrt(squared), noise) for beta in TEMPERATURES]
            lines = {"measured": (TEMPERATURES, measured), "E<zeta, Delta> = 0": (TEMPERATURES, theory)}
        return Measurement(worst, lines)

    swapped = Best(blend=lambda target, anchor, beta: blend(anchor, target, beta))
    unscaled = Best(blend=lambda target, anchor, beta: target + beta * (anchor - target))
    population = "50 states of Gaussian flows as the population, d = 2, 3, 5, both couplings; beta 0.01 to 30."
    axes = ("temperature", "E|b - b_tgt|^2")
    yield Claim(
        name="T15-best-temperature",
        statement=(
            "E|b - b_tgt|^2 = rho^2 |Delta|^2 + (1 - rho)^2 F for b = b_beta + (1 - rho) zeta with F = E|zeta|^2 and "
            "E<zeta, Delta> = 0; it is least at beta* = F/|Delta|^2."
        ),
        reference="theory, T15",
        subject=Best(),
        measure=orthogonal,
        bound=exact(1e-8),
        mutants={
            "target and anchor swapped": swapped,
            "beta for rho": unscaled,
            "noise not damped": Best(error=lambda rho, gap, noise: rho**2 * gap**2 + noise),
            "1 - rho not squared": Best(error=lambda rho, gap, noise: rho**2 * gap**2 + (1 - rho) * noise),
            "gap not squared": Best(best=lambda gap, noise: noise / gap),
            "rho for beta": Best(best=lambda gap, noise: noise / (noise + gap**2)),
        },
        conditions=population,
        axes=axes,
        seeds=1,
    )
    yield Claim(
        name="T15-best-temperature-counterexample",
        statement=(
            "Where c = E<zeta, Delta> is not 0 the best temperature is (F - c)/(|Delta|^2 - c), and F/|Delta|^2 misses "
            "it."
        ),
        reference="theory, T15",
        subject=Best(),
        measure=correlated,
        bound=exact(1e-8),
        mutants={
            "target and anchor swapped": swapped,
            "beta for rho": unscaled,
            "half the anchor's share": Best(
                blend=lambda target, anchor, beta: (target + blend(target, anchor, beta)) / 2
            ),
        },
        conditions=f"{population} zeta is noise plus 0.3 Delta: plain fine-tuning that stopped early.",
        axes=axes,
        seeds=1,
    )


@dataclass(frozen=True)
class HeldOut:
    """The held-out estimate: ``share`` gives numerator and denominator of rho* for each pair; and its prediction."""

    share: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    best: Callable[[float, float], float] = best_temperature


def held_out_share(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """T15: ``rho* = E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2``: numerator and denominator of each pair."""
    return ((fitted - label) * (fitted - anchor)).sum(-1), (fitted - anchor).square().sum(-1)


PAIRS = 4000


def _held_out(registry: Registry) -> Claim:
    path = registry.create("path", "linear")

    def measure(subject: HeldOut, generator: Generator) -> float:
        generator = cpu_generator(generator)
        columns = []
        for d in DIMENSIONS:
            for coupling in COUPLINGS:
                flow = draw_flow(d, generator, coupling)
                other = retarget(flow, generator)
                turn = torch.randn(d, d, generator=generator, dtype=torch.float64)
                turn = turn - turn.mT  # <turn Delta, Delta> = 0
                x0, x1 = flow.pairs(PAIRS, generator)
                t = torch.rand(PAIRS, generator=generator, dtype=torch.float64)
                x = paths.sample(path, t, x0, x1, None)
                target, anchor = flow.velocity(t, x), other.velocity(t, x)
                gap = drift_gap(other.affine, flow.affine, flow.marginal)
                noise = drift_gap(_turned(other.affine, turn), _turned(flow.affine, turn), flow.marginal) ** 2
                fitted = target + (0.5 + t[:, None]) * (anchor - target) @ turn.mT
                label = paths.drift(path, t, x0, x1, None)
                rho = retention(subject.best(gap, noise))
                numerator, denominator = subject.share(fitted, label, anchor)
                columns.append((numerator - rho * denominator) / denominator.mean())
                # With zeta + 0.3 Delta: F gains 0.09 |Delta|^2, and c = 0.3 |Delta|^2 is taken from F and |Delta|^2.
                numerator, denominator = subject.share(fitted + 0.3 * (anchor - target), label, anchor)
                rho = (noise - 0.21 * gap**2) / (noise + 0.49 * gap**2)
                columns.append((numerator - rho * denominator) / denominator.mean())
        return standardised_error(torch.stack(columns, 1))

    def in_sample(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        return held_out_share(fitted, label + (fitted - label) / 2, anchor)

    def sign(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        numerator, denominator = held_out_share(fitted, label, anchor)
        return -numerator, denominator

    def by_labels(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        return held_out_share(fitted, label, anchor)[0], (label - anchor).square().sum(-1)

    return Claim(
        name="T15-held-out-estimate",
        statement=(
            "On held-out pairs rho* = E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2 estimates the best retention of "
            "a fit b_hat = b_tgt + zeta: beta*/(1 + beta*), and in general (F - c)/(F + |Delta|^2 - 2c), c = E<zeta, "
            "Delta>."
        ),
        reference="theory, T15",
        subject=HeldOut(held_out_share),
        measure=measure,
        bound=statistical(degrees=PAIRS - PAIRS // 2 - 1),
        mutants={
            "sign": HeldOut(sign),
            "pairs that were trained on": HeldOut(in_sample),
            "labels in the denominator": HeldOut(by_labels),
            "beta for rho": HeldOut(held_out_share, lambda gap, noise: noise / gap**2 / (1 + noise / gap**2)),
        },
        conditions=(
            "Gaussian flows, d = 2, 3, 5, both couplings, 4000 pairs; zeta orthogonal to Delta, and with 0.3 Delta "
            "added."
        ),
        seeds=1,
    )


def _turned(drift: AffineDrift, turn: Tensor) -> AffineDrift:
    """(1/2 + t) turn b(t, x)."""

    def turned(t: Tensor) -> Affine:
        slope, shift = drift(t)
        share = 0.5 + t[:, None]
        return share[:, :, None] * (turn @ slope), share * (shift @ turn.mT)

    return turned


RUNS, POINTS, FRESH = 200, 60, 100
"""Independent fits side by side, the samples of each, and the held-out ones."""

GAP = 0.6
"""|Delta| of those fits."""


def _best_temperature_trained(registry: Registry) -> Claim:
    steps = 40

    def measure(make: LoopBuilder, generator: Generator) -> Measurement:
        here = cpu_generator(generator)
        columns, found = zip(*(fits(make, d, here, generator.device) for d in (3, 4)), strict=True)
        return Measurement(standardised_error(torch.cat(columns, 1)), found[0].lines, found[0].note)

    def fits(make: LoopBuilder, d: int, here: Generator, device: torch.device) -> tuple[Tensor, Measurement]:
        """What the fits are off the prediction, (RUNS, k), and what the report shows of them."""
        drawn = draw_regressions(d, here, RUNS)
        gap = GAP * drawn.gap / drawn.gap.norm()
        problem = replace(drawn, features=torch.eye(d, dtype=torch.float64), pretrained=drawn.target + gap)
        noise = d * d / (POINTS - d - 1)  # E|zeta|^2 of least squares: d sigma^2 E tr (X^T X)^-1, inverse Wishart
        data = Finite(problem.draw(POINTS, here))
        best = best_temperature(GAP, noise)

        def fitted(beta: float) -> Tensor:
            loop = problem.loop(
                make,
                registry,
                schedule=beta,
                seed=draw_seed(here),
                rate=0.8,
                steps=steps,
                batch_size=POINTS,
                data=data,
                device=device,
            )
            for step in range(steps):
                loop.take(step)
            return weight_of(loop).cpu()

        rho = retention(best)
        beside = [(rho + off) / (1 - rho - off) for off in (-0.2, 0.2)]
        temperatures = sorted((*TEMPERATURES, *beside))
        errors = {beta: problem.norm(fitted(beta) - problem.target) for beta in temperatures}
        theory = {beta: error_with_noise(retention(beta), GAP, noise) for beta in temperatures}
        plain, fresh = fitted(0.0), problem.draw(FRESH, here)
        assert fresh.x0 is not None
        drifts = torch.einsum("rij,brj->bri", plain, fresh.x0), fresh.x1, fresh.x0 @ problem.pretrained.mT
        numerator, denominator = (value.mean(0) for value in held_out_share(*drifts))
        columns = [errors[beta] / theory[beta] - 1 for beta in temperatures]
        columns.append((errors[beside[1]] - errors[beside[0]]) / noise)  # a parabola about its least value
        columns.append((numerator - rho * denominator) / noise)
        lines = {
            "measured": (temperatures, [float(errors[beta].mean()) for beta in temperatures]),
            "theory": (temperatures, [theory[beta] for beta in temperatures]),
        }
        estimate = float(numerator.mean() / denominator.mean())
        note = f"rho* {rho:.3f} predicted, {estimate:.3f} by held-out pairs"
        return torch.stack(columns, 1), Measurement(0.0, lines, note)

    return Claim(
        name="T15-best-temperature-trained",
        statement=(
            "Fits of the shipped loop to few samples err by rho^2 |Delta|^2 + (1 - rho)^2 F, least at beta* = "
            "F/|Delta|^2, which held-out pairs find."
        ),
        reference="theory, T15",
        subject=build_loop,
        measure=measure,
        bound=statistical(degrees=RUNS - RUNS // 2 - 1),
        mutants=LOOP_SLIPS,
        conditions=(
            "Linear model, Gaussian features, d = 3 and 4, 60 samples, full batches to convergence, 200 independent "
            "fits, 100 held-out pairs each; F = d sigma^2 p/(n - p - 1) of least squares; beta 0.01 to 30."
        ),
        profile="full",
        seeds=1,
        axes=("temperature", "E|b - b_tgt|^2"),
    )
