"""The shipped training loop on models linear in their parameters, whose optimum is known: T1 and T3."""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Config, Train
from gftkit.theory import flow
from gftkit.theory.objective import Form, retention
from gftkit.training.steps import Steps
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.oracles.gaussian import CouplingName, GaussianFlow
from gftkit_verification.testbeds.loops import LinearModel, LoopBuilder, Regression, build_loop, fit_regression
from gftkit_verification.testbeds.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems import COUPLINGS, GaussianData, draw_flow, retarget
from gftkit_verification.testbeds.statistics import cross_fitted_t

TEMPERATURES = (0.01, 0.1, 0.3, 1.0, 5.0, 30.0)
BATCH, STEPS = 512, 60
BURN = 12
"""Steps left out: their noise is larger, as the iterate is still far from the optimum."""
TESTED = STEPS - BURN - (STEPS - BURN) // 2
"""Steps along which ``cross_fitted`` tests."""
DIVERGED = 3.0
"""So many drift gaps from the optimum: the loop diverges."""

FORM_STEPS, FORM_BATCH = 6, 32

DEGREES = (1, 0, 0, 1, 0, 1)
"""Of the features in t at each temperature. Degree 0 alone can't tell t from 1 - t."""

SCALE, DELTA = 0.8, 0.1
"""Of the bridge: g, and how far from t = 1 training stops."""


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    linear = registry.create("path", "linear")
    bridge = registry.create("path", "brownian-bridge", scale=SCALE, delta=DELTA)
    conditions = (
        f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}; dimensions 2 and 3; independent and optimal "
        f"coupling; features (1, x) and (1, t, x, t x), which can't express the target flow, so that the optimum "
        f"depends on the law of t; SGD, {STEPS} steps of {BATCH} pairs"
    )
    statement = (
        "A step of the shipped loop on W phi(t, x) leads to the optimum in the mean: E[W_k + (d/(2 lr)) "
        "(W_(k+1) - W_k) E[phi phi^T]^-1 | W_k] = W_beta = (1 - rho) W_tgt + rho W_pre"
    )
    yield Claim(
        name="T01-training-loop",
        statement=f"{statement}. So E[W_k] tends to W_beta.",
        reference="theory, T1, T4 and T18",
        subject=build_loop,
        measure=lambda build, generator: _landing(registry, linear, 0.0, build, generator),
        bound=statistical(degrees=TESTED - 1),
        mutants={**ANY_PATH, **LINEAR},
        conditions=f"linear path; {conditions}",
        seeds=1,
        axes=("temperature", "share of the drift gap that is kept"),
    )
    yield Claim(
        name="T01-training-loop-bridge",
        statement=f"{statement}, on a path with noise.",
        reference="theory, T1, T4 and T18",
        subject=build_loop,
        measure=lambda build, generator: _landing(registry, bridge, SCALE, build, generator),
        bound=statistical(degrees=TESTED - 1),
        mutants={name: ANY_PATH[name] for name in ("t from the upper half", "anchor that shares the weights")} | BRIDGE,
        conditions=f"Brownian bridge of scale {SCALE}, t up to {1 - DELTA}; {conditions}",
        seeds=1,
        axes=("temperature", "share of the drift gap that is kept"),
    )
    yield Claim(
        name="T03-training-loop-forms",
        statement=(
            "The shipped loop makes the same SGD iterates by the penalty form with learning rate lr/(1 + beta) as by "
            "the blended form with lr."
        ),
        reference="theory, T3",
        subject=build_loop,
        measure=lambda build, generator: _forms(registry, linear, build, generator),
        bound=exact(),
        mutants=FORMS,
        conditions=f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}; SGD, {FORM_STEPS} steps; weights "
        f"of float64",
    )


@dataclass(frozen=True)
class Problem:
    """A fine-tune of a linear model.

    Attributes:
        target: the target's flow.
        fit: the optimum of plain flow matching in the class, and the features' second moments.
        anchor: W_pre.
        degree: of the features in t.
    """

    target: GaussianFlow
    fit: Regression
    anchor: Tensor
    degree: int

    @property
    def rate(self) -> float:
        """One over the largest curvature of the loss, which is divided by the dimension."""
        return len(self.anchor) / (2 * float(torch.linalg.eigvalsh(self.fit.gram)[-1]))

    def loop(
        self,
        build: LoopBuilder,
        registry: Registry,
        *,
        path: Path,
        temperature: float,
        train: Train,
        seed: int,
        device: torch.device,
        form: Form = "blended",
    ) -> Steps:
        """A loop that starts with W_pre, in float64."""
        data = GaussianData(self.target)
        drift = LinearModel(len(self.anchor), self.degree, self.anchor)
        coupling = registry.create("coupling", "independent")  # not asked where the data bring optimal pairs
        return build(
            registry=registry,
            drift=drift,
            data=data,
            source=data.source,
            path=path,
            coupling=coupling,
            schedule=temperature,
            train=train,
            seed=seed,
            device=device,
            form=form,
        )


def _problem(d: int, degree: int, coupling: CouplingName, path: Path, scale: float, generator: Generator) -> Problem:
    """A random one; the anchor is the fit of another target with the same source."""
    target, model = draw_flow(d, generator, coupling), LinearModel(d, degree)
    end = flow.t_end(path)
    anchor = fit_regression(retarget(target, generator), model, end, scale).weight
    return Problem(target, fit_regression(target, model, end, scale), anchor, degree)


def _iterates(loop: Steps, steps: int) -> Tensor:
    """W_0, ..., W_steps of a linear model, (steps + 1, d, p)."""
    (weight,) = loop.drift.parameters()
    weights = [weight.detach().cpu().clone()]
    for step in range(steps):
        loop.take(step)
        weights.append(weight.detach().cpu().clone())
    return torch.stack(weights)


def _landing(registry: Registry, path: Path, scale: float, build: LoopBuilder, generator: Generator) -> Measurement:
    """Where the steps lead, against the optimum; the same step of every temperature's run makes one sample.

    Given W_k a step is -(2 lr/d) (W_k E[phi phi^T] - E[y_beta phi^T]) in the mean, so these are martingale
    differences, of constant variance near the optimum. W_k - W_pre scales with 1 - rho, and so does their noise.
    """
    samples, shares = [], []
    for k, beta in enumerate(TEMPERATURES):
        problem = _problem(2 + k % 2, DEGREES[k], COUPLINGS[k // 2 % 2], path, scale, cpu_generator(generator))
        rate, fit, gram = problem.rate, problem.fit, problem.fit.gram
        train = Train(steps=STEPS, batch_size=BATCH, learning_rate=rate, optimizer="sgd", clip=None, ema=0.9)
        loop = problem.loop(
            build,
            registry,
            path=path,
            temperature=beta,
            train=train,
            seed=draw_seed(generator),
            device=generator.device,
        )
        weights = _iterates(loop, STEPS)
        rho, root = beta / (1 + beta), torch.linalg.cholesky(gram)
        optimum = fit.optimum(problem.anchor, rho)
        away = ((weights - optimum) @ root).flatten(1).norm(dim=1)
        if not bool((away < DIVERGED * away[0] / (1 - rho)).all()):  # its steps' noise would hide everything
            return Measurement(math.inf, note=f"the loop diverges at temperature {beta:g}")
        weights = weights[BURN:]
        newton = len(problem.anchor) / (2 * rate) * torch.linalg.inv(gram)
        landing = weights[:-1] + (weights[1:] - weights[:-1]) @ newton
        samples.append(((landing - optimum) @ root).flatten(1) / (1 - rho))
        gap = problem.anchor - fit.weight
        shares.append(_along(landing.mean(0) - fit.weight, gap, gram))
    together = torch.cat(samples, 1)
    lines = {
        "measured": (TEMPERATURES, shares),
        "beta/(1 + beta)": (TEMPERATURES, [beta / (1 + beta) for beta in TEMPERATURES]),
    }
    return Measurement(cross_fitted_t(together, torch.zeros(together.shape[1])), lines)


def _along(weight: Tensor, gap: Tensor, gram: Tensor) -> float:
    """``<W phi, Delta>_w/|Delta|_w^2``."""
    return float((weight @ gram * gap).sum() / (gap @ gram * gap).sum())


def _forms(registry: Registry, path: Path, build: LoopBuilder, generator: Generator) -> float:
    """The largest distance of two runs' iterates, in units of the way from the start."""
    worst = 0.0
    for k, beta in enumerate(TEMPERATURES):
        problem = _problem(2 + k % 2, 1, COUPLINGS[k // 2 % 2], path, 0.0, cpu_generator(generator))
        seed = draw_seed(generator)
        runs = []
        forms: Sequence[tuple[Form, float]] = (("blended", 1.0), ("penalty", 1 + beta))
        for form, divisor in forms:
            rate = problem.rate / divisor
            train = Train(steps=FORM_STEPS, batch_size=FORM_BATCH, learning_rate=rate, optimizer="sgd", clip=None)
            loop = problem.loop(
                build,
                registry,
                path=path,
                temperature=beta,
                train=train,
                seed=seed,
                device=generator.device,
                form=form,
            )
            runs.append(_iterates(loop, FORM_STEPS))
        apart = (runs[0] - runs[1]).flatten(1).norm(dim=1).max()
        worst = max(worst, float(apart / (runs[0] - runs[0][0]).flatten(1).norm(dim=1).max()))
    return worst


def tampered(name: str, value: Callable[[Steps], Any], form: Form | None = None) -> LoopBuilder:
    """``trial``, with one attribute of the loop it makes replaced; of loops of one form only where it is given."""

    def build(**options: Any) -> Steps:
        loop = build_loop(**options)
        if form is None or form == loop.config.objective.form:
            setattr(loop, name, value(loop))
        return loop

    return build


def _on_path(change: type["Tampered"]) -> LoopBuilder:
    def changed(loop: Steps) -> Any:
        matching = loop.experiment.matching
        return replace(loop.experiment, matching=replace(matching, path=change(matching.path)))

    return tampered("experiment", changed)


def at_temperature(change: Callable[[float], float], form: Form | None = None) -> LoopBuilder:
    """``trial``, with a loop that takes the schedule's temperature for another one."""

    def value(loop: Steps) -> Callable[[int], float]:
        temperature = loop.temperature
        return lambda step: change(temperature(step))

    return tampered("temperature", value, form)


class Tampered:
    """A path with something wrong: what a subclass doesn't define is the path's own."""

    def __init__(self, path: Any) -> None:
        self.path = path

    def __getattr__(self, name: str) -> Any:
        return getattr(self.path, name)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """The path's own."""
        return self.path.coefficients(t)


class _SwappedEnds(Tampered):
    """x0 and x1 swapped in x_t, but not in the drift."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma, alpha, gamma = self.path.coefficients(t)
        return alpha, sigma, gamma


class _Backwards(_SwappedEnds):
    """x0 and x1 swapped in both."""

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma, alpha, gamma = flow.rates(self.path, t)
        return alpha, sigma, gamma


class _Variance(Tampered):
    """gamma^2 for gamma."""

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        sigma, alpha, gamma = self.path.coefficients(t)
        return sigma, alpha, gamma**2


class _Noiseless(Tampered):
    """The drift without its noise."""

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor) -> Tensor:
        return self.path.drift(t, x0, x1, 0 * noise)


class _Velocity(Tampered):
    """The velocity for the drift."""

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor | None) -> Tensor:
        return flow.velocity(self.path, t, x0, x1, noise)


def _upper_half(loop: Steps) -> Callable[[int, Generator], Tensor]:
    times, end = loop.times, flow.t_end(loop.experiment.matching.path)
    return lambda count, generator: (end + times(count, generator)) / 2


def _faster(loop: Steps, factor: float) -> Config:
    train = loop.config.train
    return replace(loop.config, train=replace(train, learning_rate=factor * train.learning_rate))


def shared_weights(loop: Steps) -> Callable[[Tensor, Tensor], Tensor]:
    """An anchor of the weights that are trained."""
    return lambda t, x: loop.drift(t, x).detach()


ANY_PATH = {
    "anchor that shares the weights": tampered("anchor", shared_weights),
    "moving average for the anchor": tampered("anchor", lambda loop: loop.ema),
    "t from the upper half": tampered("times", _upper_half),
    "1/(1 + beta) for beta/(1 + beta)": at_temperature(lambda beta: 1 / beta),
    "rho for beta": at_temperature(retention),
    "loss summed over the event": tampered("config", lambda loop: _faster(loop, loop.experiment.facts.event_shape[0])),
}
LINEAR = {"x0 and x1 swapped in x_t": _on_path(_SwappedEnds), "x0 and x1 swapped": _on_path(_Backwards)}
BRIDGE = {
    "gamma^2 for gamma": _on_path(_Variance),
    "drift without noise": _on_path(_Noiseless),
    "velocity for drift": _on_path(_Velocity),
}
FORMS = {
    "rho for beta in the penalty": at_temperature(retention, "penalty"),
    "learning rate not divided": tampered("config", lambda loop: _faster(loop, 1 + loop.temperature(0)), "penalty"),
    "anchor that shares the weights": tampered("anchor", shared_weights, "penalty"),
}
