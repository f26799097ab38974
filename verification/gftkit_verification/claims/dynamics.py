"""What stochastic gradients leave behind: T14 and T15, on closed forms and in the shipped loop. T13 is in tracking."""

import itertools
import math
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor

from gftkit import flow as paths
from gftkit.claims import Claim, Measurement, exact, statistical
from gftkit.objective import blend, blended_loss, penalty_loss, retention, squared_norm
from gftkit.predictions import best_temperature, error_with_noise
from gftkit.registry import Registry
from gftkit_verification import slips
from gftkit_verification.affine import drift_gap
from gftkit_verification.gaussian import Affine, AffineDrift, square_root
from gftkit_verification.moments import on_cpu, seed_of
from gftkit_verification.problems import COUPLINGS, drawn_flow, random_covariance, retargeted
from gftkit_verification.sidebyside import Finite, Regressions, drawn_regressions, weight_of
from gftkit_verification.slips import Loss, Trial
from gftkit_verification.statistics import cross_fitted, evened
from gftkit_verification.trials import trial

TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 3.0, 10.0, 30.0)
DIMENSIONS = (2, 3, 5)
SIGMA = 0.7
"""Standard deviation of a label."""

LOOP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor shares the weights": slips.sharing_anchor,
    "rho for beta": slips.rho_for_beta,
}


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    yield _recursion()
    yield _stationary()
    yield _interpolation(registry)
    yield _sgd_trained(registry)
    yield from _best_temperature(registry)
    yield _held_out(registry)
    yield _best_temperature_trained(registry)


# T14: SGD on a model linear in its parameters, with Gaussian features.


def second_moment(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
    """T14: V+ = V - eta (HV + VH) + eta^2 (2 HVH + tr(HV) H) + eta^2 (1 - rho)^2 sigma^2 H."""
    pulled = features @ moment
    noise = (1 - rho) ** 2 * SIGMA**2
    return (
        moment
        - eta * (pulled + pulled.mT)
        + eta**2 * (2 * pulled @ features + pulled.trace() * features)
        + eta**2 * noise * features
    )


def stationary(features: Tensor, eta: float, rho: float) -> Tensor:
    """Where ``second_moment`` rests. In H's eigenbasis, with k = sum_i eta lambda_i/(2 (1 - eta lambda_i)) < 1,

    V_i = eta (1 - rho)^2 sigma^2/(2 (1 - k) (1 - eta lambda_i)): set V+ = V and solve for tr(HV).
    """
    values, vectors = torch.linalg.eigh(features)
    damped = 1 / (2 * (1 - eta * values))
    share = eta * (1 - rho) ** 2 * SIGMA**2 * damped / (1 - float((eta * values * damped).sum()))
    return (vectors * share) @ vectors.mT


@dataclass(frozen=True)
class Sgd:
    """The loss whose gradient is followed, and what is predicted of it."""

    loss: Loss = blended_loss
    moment: Callable[[Tensor, Tensor, float, float], Tensor] = second_moment
    rest: Callable[[Tensor, float, float], Tensor] = stationary


def averaged_step(loss: Loss, moment: Tensor, problem: Regressions, eta: float, temperature: float) -> Tensor:
    """The second moment of W - W_beta after one step of SGD on the loss, averaged exactly: no sampling.

    A step is quadratic in the features and linear in error and label: so the error's second moment needs features
    exact to fourth order, which three Gauss-Hermite nodes in each direction are, and sigma points for the rest.
    """
    p = len(problem.features)
    nodes, chances = [0.0, math.sqrt(3), -math.sqrt(3)], [2 / 3, 1 / 6, 1 / 6]
    phi = torch.tensor(list(itertools.product(nodes, repeat=p)), dtype=torch.float64) @ square_root(problem.features)
    chance = torch.tensor(list(itertools.product(chances, repeat=p)), dtype=torch.float64).prod(1)
    errors = math.sqrt(p) * torch.linalg.cholesky(moment).mT
    errors = torch.cat([errors, -errors])
    signs = torch.tensor([SIGMA, -SIGMA], dtype=torch.float64)
    count = len(phi), len(errors), len(signs)
    target, pretrained = problem.target[0], problem.pretrained[0]  # one output
    optimum = blend(target, pretrained, temperature)
    states = phi[:, None, None].expand(*count, p).reshape(-1, p)
    weights = (optimum + errors)[None, :, None].expand(*count, p).reshape(-1, p).clone().requires_grad_()
    label = (states @ target).reshape(count) + signs
    drift = (weights * states).sum(1, keepdim=True)
    each = loss(drift, label.reshape(-1, 1), (states @ pretrained)[:, None], temperature)
    (gradient,) = torch.autograd.grad(each.sum(), weights)
    apart = weights.detach() - eta / 2 * gradient - optimum
    chances_of = chance[:, None, None].expand(count).flatten() / (count[1] * count[2])
    return (chances_of[:, None] * apart).mT @ apart


def _apart(found: Tensor, wanted: Tensor) -> float:
    return float((found - wanted).abs().max() / wanted.abs().max())


def _sgd_problems(generator: Generator) -> Iterator[tuple[Regressions, float]]:
    """Problems with a step at about a third of SGD's limit."""
    for p in (2, 3):
        problem = drawn_regressions(p, generator)
        yield problem, 0.7 / float(problem.features.trace() + 2 * torch.linalg.eigvalsh(problem.features)[-1])


LOSS_SLIPS = {
    "target and anchor swapped": slips.swapped,
    "beta for rho": slips.beta_for_rho,
    "penalty form": penalty_loss,
}
GAUSSIAN = "Linear model, Gaussian features, d = 2, 3, batches of 1; beta 0.01 to 30."


def _recursion() -> Claim:
    def measure(subject: Sgd, generator: Generator) -> float:
        generator = on_cpu(generator)
        worst = 0.0
        for problem, eta in _sgd_problems(generator):
            moment = eta * random_covariance(len(problem.features), generator)
            for beta in TEMPERATURES:
                found = averaged_step(subject.loss, moment, problem, eta, beta)
                worst = max(worst, _apart(found, subject.moment(moment, problem.features, eta, retention(beta))))
        return worst

    def without_trace(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
        return second_moment(moment, features, eta, rho) - eta**2 * (features @ moment).trace() * features

    def fixed_features(moment: Tensor, features: Tensor, eta: float, rho: float) -> Tensor:
        return without_trace(moment, features, eta, rho) - eta**2 * features @ moment @ features

    return Claim(
        "T14-sgd-recursion",
        "One step of SGD takes the error's second moment to V - eta (HV + VH) + eta^2 (2 HVH + tr(HV) H) + "
        "eta^2 (1 - rho)^2 sigma^2 H.",
        "theory, T14",
        Sgd(),
        measure,
        exact(),
        {
            **{name: Sgd(loss=loss) for name, loss in LOSS_SLIPS.items()},
            "tr(HV) H dropped": Sgd(moment=without_trace),
            "features taken as fixed": Sgd(moment=fixed_features),
            "1 - rho not squared": Sgd(moment=lambda v, h, eta, rho: second_moment(v, h, eta, 1 - math.sqrt(1 - rho))),
        },
        f"{GAUSSIAN} Averages over features, labels and errors are exact, by cubature.",
        seeds=1,
    )


def _stationary() -> Claim:
    def measure(subject: Sgd, generator: Generator) -> Measurement:
        generator = on_cpu(generator)
        worst, lines = 0.0, {}
        for problem, eta in _sgd_problems(generator):
            plain = stationary(problem.features, eta, 0.0)
            measured, theory = [], []
            for beta in TEMPERATURES:
                rest = subject.rest(problem.features, eta, retention(beta))
                found = averaged_step(subject.loss, rest, problem, eta, beta)
                wanted = (1 - retention(beta)) ** 2 * plain
                worst = max(worst, _apart(found, rest), _apart(found, wanted))
                measured.append(float(found.trace()))
                theory.append(float(wanted.trace()))
            lines = {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)}
        return Measurement(worst, lines)

    def first_order(features: Tensor, eta: float, rho: float) -> Tensor:
        return eta / 2 * (1 - rho) ** 2 * SIGMA**2 * torch.eye(len(features), dtype=torch.float64)

    return Claim(
        "T14-stationary-covariance",
        "At rest the error's covariance is (1 - rho)^2 that of plain fine-tuning, and in H's mode i "
        "eta (1 - rho)^2 sigma^2/(2 (1 - k)(1 - eta lambda_i)) with k = sum_i eta lambda_i/(2 - 2 eta lambda_i).",
        "theory, T14",
        Sgd(),
        measure,
        exact(),
        {
            **{name: Sgd(loss=loss) for name, loss in LOSS_SLIPS.items()},
            "first order in eta": Sgd(rest=first_order),
            "1 - rho not squared": Sgd(rest=lambda h, eta, rho: stationary(h, eta, 1 - math.sqrt(1 - rho))),
        },
        f"{GAUSSIAN} One exactly averaged step of SGD leaves it as it is.",
        seeds=1,
        axes=("temperature", "trace of the stationary covariance"),
    )


def _interpolation(registry: Registry) -> Claim:
    steps = 8

    def measure(make: Trial, generator: Generator) -> float:
        here = on_cpu(generator)
        problem, seed = drawn_regressions(3, here, replicas=2), seed_of(here)
        optimizer = {"name": "sgd", "momentum": 0.8}

        def moved(beta: float) -> Tensor:
            loop = problem.loop(make, registry, beta, seed, 0.02, steps, 4, optimizer, device=generator.device)
            found = []
            for step in range(steps):
                loop.step(step)
                found.append(weight_of(loop).cpu() - problem.pretrained)
            return torch.stack(found)

        plain = moved(0.0)
        return max(_apart(moved(beta), (1 - retention(beta)) * plain) for beta in TEMPERATURES)

    return Claim(
        "T14-sgd-interpolation",
        "From the pretrained weights, SGD at a constant temperature is plain fine-tuning's run interpolated towards "
        "them: W_k - W_pre = (1 - rho)(W_k at temperature 0 - W_pre) at every step, pair by pair.",
        "theory, T9b and T14",
        trial,
        measure,
        exact(),
        LOOP_SLIPS,
        "The shipped loop, linear model, d = 3, SGD with momentum 0.8, 8 steps, equal pairs; beta 0.01 to 30.",
        seeds=1,
    )


DIVERGED = 1e3
"""Error, in units of what is expected, of a run that diverged: far beyond chance."""


def _standardised(samples: Tensor) -> float:
    """The standardised error of samples (n, k) of mean 0; infinity where a run diverged, whose mean means nothing."""
    if not bool((samples.abs() < DIVERGED).all()):
        return math.inf
    return cross_fitted(evened(samples), torch.zeros(samples.shape[1]))


REPLICAS = 500
"""Independent runs of SGD, side by side in one run of the loop."""


def _sgd_trained(registry: Registry) -> Claim:
    steps = 60

    def measure(make: Trial, generator: Generator) -> Measurement:
        here = on_cpu(generator)
        problem = drawn_regressions(2, here, REPLICAS, SIGMA)
        eta = 0.5 / float(problem.features.trace() + 2 * torch.linalg.eigvalsh(problem.features)[-1])
        samples, measured, theory = [], [], []
        for beta in TEMPERATURES:
            loop = problem.loop(make, registry, beta, seed_of(here), eta, steps, device=generator.device)
            for step in range(steps):
                loop.step(step)
            rho = retention(beta)
            error = weight_of(loop).cpu() - blend(problem.target, problem.pretrained, beta)
            apart = (1 - rho) ** 2 * problem.gap[:, :, None] * problem.gap[:, None]  # of each output, at the start
            for _ in range(steps):
                apart = torch.stack([second_moment(each, problem.features, eta, rho) for each in apart])
            expected = float(apart.sum(0).trace())
            found = error.square().sum((1, 2))
            samples.append(found / expected)
            measured.append(float(found.mean()))
            theory.append(expected)
        return Measurement(
            _standardised(torch.stack(samples, 1) - 1),
            {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)},
        )

    return Claim(
        "T14-sgd-trained",
        "In the shipped loop with SGD at a constant temperature the weights' variance about W_beta is what T14's "
        "recursion gives.",
        "theory, T14",
        trial,
        measure,
        statistical(degrees=REPLICAS - REPLICAS // 2 - 1),
        LOOP_SLIPS,
        "Linear model, Gaussian features, d = 2, batches of 1, 60 steps, 500 independent runs; beta 0.01 to 30.",
        profile="full",
        seeds=1,
        axes=("temperature", "E|W - W_beta|^2"),
    )


# T15: the best final temperature.


@dataclass(frozen=True)
class Best:
    """How a fit at a temperature comes about, and what is predicted of its error."""

    blend: Callable[[Tensor, Tensor, float], Tensor] = blend
    error: Callable[[float, float, float], float] = error_with_noise
    best: Callable[[float, float], float] = best_temperature


def _mean(left: Tensor, right: Tensor) -> float:
    """E<left, right>."""
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
                flow = drawn_flow(d, generator, coupling)
                x0, x1 = flow.pairs(50, generator)
                t = torch.rand(50, generator=generator, dtype=torch.float64)
                x = paths.sample(path, t, x0, x1, None)
                zeta = torch.randn(50, d, generator=generator, dtype=torch.float64)
                yield flow.velocity(t, x), retargeted(flow, generator).velocity(t, x), zeta

    def orthogonal(subject: Best, generator: Generator) -> Measurement:
        worst, lines = 0.0, {}
        for target, anchor, zeta in populations(on_cpu(generator)):
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
        for target, anchor, zeta in populations(on_cpu(generator)):
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
        "T15-best-temperature",
        "E|b - b_tgt|^2 = rho^2 |Delta|^2 + (1 - rho)^2 F for b = b_beta + (1 - rho) zeta with F = E|zeta|^2 and "
        "E<zeta, Delta> = 0; it is least at beta* = F/|Delta|^2.",
        "theory, T15",
        Best(),
        orthogonal,
        exact(1e-8),
        {
            "target and anchor swapped": swapped,
            "beta for rho": unscaled,
            "noise not damped": Best(error=lambda rho, gap, noise: rho**2 * gap**2 + noise),
            "1 - rho not squared": Best(error=lambda rho, gap, noise: rho**2 * gap**2 + (1 - rho) * noise),
            "gap not squared": Best(best=lambda gap, noise: noise / gap),
            "rho for beta": Best(best=lambda gap, noise: noise / (noise + gap**2)),
        },
        population,
        axes=axes,
        seeds=1,
    )
    yield Claim(
        "T15-best-temperature-counterexample",
        "Where c = E<zeta, Delta> is not 0 the best temperature is (F - c)/(|Delta|^2 - c), and F/|Delta|^2 misses it.",
        "theory, T15",
        Best(),
        correlated,
        exact(1e-8),
        {
            "target and anchor swapped": swapped,
            "beta for rho": unscaled,
            "half the anchor's share": Best(
                blend=lambda target, anchor, beta: (target + blend(target, anchor, beta)) / 2
            ),
        },
        f"{population} zeta is noise plus 0.3 Delta: plain fine-tuning that stopped early.",
        axes=axes,
        seeds=1,
    )


@dataclass(frozen=True)
class HeldOut:
    """The held-out estimate: ``share`` gives numerator and denominator of rho* for each pair; and its prediction."""

    share: Callable[[Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]
    best: Callable[[float, float], float] = best_temperature


def held_out_share(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
    """T15: rho* = E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2: numerator and denominator of each pair."""
    return ((fitted - label) * (fitted - anchor)).sum(-1), (fitted - anchor).square().sum(-1)


PAIRS = 4000


def _held_out(registry: Registry) -> Claim:
    path = registry.create("path", "linear")

    def measure(subject: HeldOut, generator: Generator) -> float:
        generator = on_cpu(generator)
        columns = []
        for d in DIMENSIONS:
            for coupling in COUPLINGS:
                flow = drawn_flow(d, generator, coupling)
                other = retargeted(flow, generator)
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
        return _standardised(torch.stack(columns, 1))

    def in_sample(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        return held_out_share(fitted, label + (fitted - label) / 2, anchor)

    def sign(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        numerator, denominator = held_out_share(fitted, label, anchor)
        return -numerator, denominator

    def by_labels(fitted: Tensor, label: Tensor, anchor: Tensor) -> tuple[Tensor, Tensor]:
        return held_out_share(fitted, label, anchor)[0], (label - anchor).square().sum(-1)

    return Claim(
        "T15-held-out-estimate",
        "On held-out pairs rho* = E<b_hat - b_t, b_hat - b_pre>/E|b_hat - b_pre|^2 estimates the best retention of a "
        "fit b_hat = b_tgt + zeta: beta*/(1 + beta*), and in general (F - c)/(F + |Delta|^2 - 2c), c = E<zeta, Delta>.",
        "theory, T15",
        HeldOut(held_out_share),
        measure,
        statistical(degrees=PAIRS - PAIRS // 2 - 1),
        {
            "sign": HeldOut(sign),
            "pairs that were trained on": HeldOut(in_sample),
            "labels in the denominator": HeldOut(by_labels),
            "beta for rho": HeldOut(held_out_share, lambda gap, noise: noise / gap**2 / (1 + noise / gap**2)),
        },
        "Gaussian flows, d = 2, 3, 5, both couplings, 4000 pairs; zeta orthogonal to Delta, and with 0.3 Delta added.",
        seeds=1,
    )


def _turned(drift: AffineDrift, turn: Tensor) -> AffineDrift:
    """(1/2 + t) turn b(t, x)."""

    def turned(t: Tensor) -> Affine:
        slope, shift = drift(t)
        share = 0.5 + t[:, None]
        return share[:, :, None] * (turn @ slope), share * (shift @ turn.mT)

    return turned


RUNS, POINTS, FRESH = 200, 40, 100
"""Independent fits side by side, the samples of each, and the held-out ones."""

GAP = 0.8
"""|Delta| of those fits."""


def _best_temperature_trained(registry: Registry) -> Claim:
    steps, d = 40, 3

    def measure(make: Trial, generator: Generator) -> Measurement:
        here = on_cpu(generator)
        drawn = drawn_regressions(d, here, RUNS)
        gap = GAP * drawn.gap / drawn.gap.norm()
        problem = replace(drawn, features=torch.eye(d, dtype=torch.float64), pretrained=drawn.target + gap)
        noise = d * d / (POINTS - d - 1)  # E|zeta|^2 of least squares: d sigma^2 E tr (X^T X)^-1, inverse Wishart
        data = Finite(problem.draw(POINTS, here))
        best = best_temperature(GAP, noise)

        def fitted(beta: float) -> Tensor:
            loop = problem.loop(
                make, registry, beta, seed_of(here), 1.0, steps, POINTS, data=data, device=generator.device
            )
            for step in range(steps):
                loop.step(step)
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
        return Measurement(
            _standardised(torch.stack(columns, 1)),
            lines,
            f"rho* {rho:.3f} predicted, {estimate:.3f} by held-out pairs",
        )

    return Claim(
        "T15-best-temperature-trained",
        "Fits of the shipped loop to few samples err by rho^2 |Delta|^2 + (1 - rho)^2 F, least at beta* = F/|Delta|^2, "
        "which held-out pairs find.",
        "theory, T15",
        trial,
        measure,
        statistical(degrees=RUNS - RUNS // 2 - 1),
        LOOP_SLIPS,
        "Linear model, Gaussian features, d = 3, 40 samples, full batches to convergence, 200 independent fits, 100 "
        "held-out pairs each; F = d sigma^2 p/(n - p - 1) of least squares; beta 0.01 to 30.",
        profile="full",
        seeds=1,
        axes=("temperature", "E|b - b_tgt|^2"),
    )
