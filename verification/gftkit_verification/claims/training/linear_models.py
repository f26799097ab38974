"""The shipped training loop on models linear in their parameters, whose optimum is known: T1 and T3."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Path, Schedule, TimeLaw
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import AnchorShare, Train
from gftkit.theory import flow
from gftkit.theory.objective import Form, retention
from gftkit.training.steps import Steps
from gftkit.verify.claims import Measurement, exact, statistical
from gftkit.verify.declaration import REGISTRY, claim, claim_for_each, registered
from gftkit_verification.oracles.gaussian import CouplingName, GaussianFlow
from gftkit_verification.testbeds.components import each_registered
from gftkit_verification.testbeds.loops.shipped import LinearModel, LoopBuilder, Regression, build_loop, fit_regression
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.flows import COUPLINGS, GaussianData, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.slips.loops import (
    Backwards,
    Noiseless,
    SwappedEnds,
    Variance,
    VelocityForDrift,
    at_temperature,
    faster,
    on_path,
    shared_weights,
    smaller_of_two,
    tampered,
    upper_half,
)

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

EDGES = (*(0.1**k for k in range(12, 0, -1)), 0.3, 0.5, 0.7, *(1 - 0.1**k for k in range(1, 13)))
"""Probabilities at whose quantiles the integral over the law of t is divided."""

SCALE, DELTA = 0.8, 0.1
"""Of the bridge: g, and how far from t = 1 training stops."""

MODELS = (
    f"dimensions 2 and 3; independent and optimal coupling; features (1, x) and (1, t, x, t x), which can't express "
    f"the target flow, so that the optimum depends on the law of t; SGD, {STEPS} steps of {BATCH} pairs"
)
CONDITIONS = f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}; {MODELS}"
STATEMENT = (
    "A step of the shipped loop on W phi(t, x) leads to the optimum in the mean: E[W_k + (d/(2 lr)) "
    "(W_(k+1) - W_k) E[phi phi^T]^-1 | W_k] = W_beta = (1 - rho) W_tgt + rho W_pre"
)

ANY_PATH = {
    "anchor that shares the weights": tampered("anchor", shared_weights),
    "moving average for the anchor": tampered("anchor", lambda loop: loop.ema),
    "t from the upper half": tampered("times", upper_half),
    "1/(1 + beta) for beta/(1 + beta)": at_temperature(lambda beta: 1 / beta),
    "rho for beta": at_temperature(retention),
    "loss summed over the event": tampered("config", lambda loop: faster(loop, loop.experiment.facts.event_shape[0])),
}
LAWS = {
    name: ANY_PATH[name]
    for name in ("t from the upper half", "anchor that shares the weights", "1/(1 + beta) for beta/(1 + beta)")
} | {"the smaller of two times": tampered("times", smaller_of_two)}
LINEAR = {"x0 and x1 swapped in x_t": on_path(SwappedEnds), "x0 and x1 swapped": on_path(Backwards)}
BRIDGE = {
    "gamma^2 for gamma": on_path(Variance),
    "drift without noise": on_path(Noiseless),
    "velocity for drift": on_path(VelocityForDrift),
}
FORMS = {
    "rho for beta in the penalty": at_temperature(retention, "penalty"),
    "learning rate not divided": tampered("config", lambda loop: faster(loop, 1 + loop.temperature(0)), "penalty"),
    "anchor that shares the weights": tampered("anchor", shared_weights, "penalty"),
}


@dataclass(frozen=True)
class LinearProblem:
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
        temperature: Schedule | float,
        train: Train,
        seed: int,
        device: torch.device,
        form: Form = "blended",
        anchor_share: AnchorShare = 1.0,
        law: TimeLaw | None = None,
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
            anchor_share=anchor_share,
            law=law,
        )


def draw_problem(
    d: int,
    degree: int,
    coupling: CouplingName,
    path: Path,
    scale: float,
    generator: Generator,
    law: TimeLaw | None = None,
) -> LinearProblem:
    """A random one; the anchor is the fit of another target with the same source. Both have the law's weight."""
    target, model = draw_flow(d, generator, coupling), LinearModel(d, degree)
    end = flow.t_end(path)

    def fit(of: GaussianFlow) -> Regression:
        if law is None:
            return fit_regression(of, model, end, scale)
        # A density may have no bound at the ends, where quadrature in t alone would be inexact.
        edges = {end * t for t in law.quantile(torch.tensor(EDGES, dtype=torch.float64)).tolist() if 0 < t < 1}
        return fit_regression(of, model, end, scale, lambda t: law.density(t / end), sorted(edges))

    anchor = fit(retarget(target, generator)).weight
    return LinearProblem(target, fit(target), anchor, degree)


def iterates(loop: Steps, steps: int) -> Tensor:
    """W_0, ..., W_steps of a linear model, (steps + 1, d, p)."""
    (weight,) = loop.drift.parameters()
    weights = [weight.detach().cpu().clone()]
    for step in range(steps):
        loop.take(step)
        weights.append(weight.detach().cpu().clone())
    return torch.stack(weights)


def along(weight: Tensor, gap: Tensor, gram: Tensor) -> float:
    """``<W phi, Delta>_w/|Delta|_w^2``."""
    return float((weight @ gram * gap).sum() / (gap @ gram * gap).sum())


@claim(
    "T01-training-loop",
    statement=f"{STATEMENT}. So E[W_k] tends to W_beta.",
    reference="theory, T1, T4 and T18",
    subject=build_loop,
    bound=statistical(degrees=TESTED - 1),
    mutants={**ANY_PATH, **LINEAR},
    conditions=f"linear path; {CONDITIONS}",
    seeds=1,
    axes=("temperature", "share of the drift gap that is kept"),
    uses={"registry": REGISTRY, "path": registered("path", "linear"), "scale": 0.0},
)
@claim(
    "T01-training-loop-bridge",
    statement=f"{STATEMENT}, on a path with noise.",
    reference="theory, T1, T4 and T18",
    subject=build_loop,
    bound=statistical(degrees=TESTED - 1),
    mutants={name: ANY_PATH[name] for name in ("t from the upper half", "anchor that shares the weights")} | BRIDGE,
    conditions=f"Brownian bridge of scale {SCALE}, t up to {1 - DELTA}; {CONDITIONS}",
    seeds=1,
    axes=("temperature", "share of the drift gap that is kept"),
    uses={
        "registry": REGISTRY,
        "path": registered("path", "brownian-bridge", scale=SCALE, delta=DELTA),
        "scale": SCALE,
    },
)
@claim_for_each(
    each_registered("time"),
    "T01-training-loop-time-{name}",
    statement=f"{STATEMENT}, the expectations over t by the law {{name}}, of its density.",
    reference="theory, T1, T4 and section 0",
    subject=lambda law: build_loop,  # noqa: ARG005
    bound=statistical(degrees=TESTED - 1),
    mutants=LAWS,
    conditions=(
        f"linear path; temperatures {TEMPERATURES[2]:g} and {TEMPERATURES[3]:g}; {MODELS}. Required options of the law "
        f"filled with values of their types."
    ),
    component="time:{name}",
    seeds=1,
    axes=("temperature", "share of the drift gap that is kept"),
    uses={
        "registry": REGISTRY,
        "path": registered("path", "linear"),
        "scale": 0.0,
        "temperatures": TEMPERATURES[2:4],
    },
    item_as="law",
)
def expected_step(
    build: LoopBuilder,
    generator: Generator,
    *,
    registry: Registry,
    path: Path,
    scale: float,
    law: TimeLaw | None = None,
    temperatures: Sequence[float] = TEMPERATURES,
) -> Measurement:
    """The mean landing of a step, less the optimum; the same step of every temperature's run makes one sample.

    Given W_k a step is -(2 lr/d) (W_k E[phi phi^T] - E[y_beta phi^T]) in the mean, so these are martingale
    differences, of constant variance near the optimum. W_k - W_pre scales with 1 - rho, and so does their noise.
    """
    samples, shares = [], []
    for k, beta in enumerate(temperatures):
        coupling = COUPLINGS[k // 2 % 2]
        problem = draw_problem(2 + k % 2, DEGREES[k], coupling, path, scale, cpu_generator(generator), law)
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
            law=law,
        )
        weights = iterates(loop, STEPS)
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
        shares.append(along(landing.mean(0) - fit.weight, gap, gram))
    together = torch.cat(samples, 1)
    lines = {
        "measured": (temperatures, shares),
        "beta/(1 + beta)": (temperatures, [beta / (1 + beta) for beta in temperatures]),
    }
    return Measurement(cross_fitted_t(together, torch.zeros(together.shape[1])), lines)


@claim(
    "T03-training-loop-forms",
    statement="The shipped loop makes the same SGD iterates by the penalty form with learning rate lr/(1 + beta) as by "
    "the blended form with lr.",
    reference="theory, T3",
    subject=build_loop,
    bound=exact(),
    mutants=FORMS,
    conditions=f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}; SGD, {FORM_STEPS} steps; weights "
    f"of float64",
    uses={"registry": REGISTRY, "path": registered("path", "linear")},
)
def distance_of_forms(build: LoopBuilder, generator: Generator, *, registry: Registry, path: Path) -> float:
    """The largest distance of two runs' iterates, in units of the way from the start."""
    worst = 0.0
    for k, beta in enumerate(TEMPERATURES):
        problem = draw_problem(2 + k % 2, 1, COUPLINGS[k // 2 % 2], path, 0.0, cpu_generator(generator))
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
            runs.append(iterates(loop, FORM_STEPS))
        distance = (runs[0] - runs[1]).flatten(1).norm(dim=1).max()
        worst = max(worst, float(distance / (runs[0] - runs[0][0]).flatten(1).norm(dim=1).max()))
    return worst
