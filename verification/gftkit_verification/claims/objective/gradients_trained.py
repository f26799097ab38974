"""The noise of gradients where the shipped loop takes steps and trains networks: T9a, T9b and T9c."""

import itertools
from dataclasses import replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Path
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.theory.objective import retention
from gftkit.theory.predictions import label_noise
from gftkit.training.steps import Steps
from gftkit.verify import REGISTRY, Measurement, claim, exact, registered, statistical
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.loops.fine_tunes import FineTunes
from gftkit_verification.testbeds.loops.shipped import LinearModel, LoopBuilder, build_loop, step_gradient
from gftkit_verification.testbeds.loops.side_by_side import Regressions, draw_regressions, weight_of
from gftkit_verification.testbeds.measuring.differences import relative_difference, relative_error
from gftkit_verification.testbeds.measuring.gradients import (
    AXES,
    LABEL_SLIPS,
    TEMPERATURES,
    LabelNoise,
    Weights,
    compare_label_noise,
    draw_problem,
    draw_weight,
)
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t
from gftkit_verification.testbeds.problems.flows import COUPLINGS, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.slips import losses as slips

TRAINED = "Gaussian flow, d = 2, independent coupling; drift `mlp`, 2 x 32, trained by the loop; beta 0.01 to 30."

TRAINING = Train(150, 64, 3e-3, ema=0.9)
"""Of a network."""
LEARNING = 40
"""Steps of SGD of a linear model."""
BATCHES = 6
"""Stochastic gradients whose variance is measured."""
REPLICAS = 400
"""Independent runs of a linear model."""
OPTIMIZERS: dict[str, dict[str, Any]] = {"adam": {"name": "adam", "eps": 1e-18}, "sgd": {"name": "sgd"}}


def untrained_anchor(**options: Any) -> Steps:
    """The loop with an anchor whose weights were never loaded."""
    loop = build_loop(**options)
    loop.anchor = lambda t, x: torch.zeros_like(x)  # type: ignore[assignment]  # noqa: ARG005
    return loop


LOOP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor shares the weights": slips.sharing_anchor,
    "rho for beta": slips.rho_for_beta,
}
FIRST_STEP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor not loaded": untrained_anchor,
    "rho for beta": slips.rho_for_beta,
}


class Double(nn.Module):
    """A drift in float64."""

    def __init__(self, drift: nn.Module) -> None:
        super().__init__()
        self.drift = drift.double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The drift."""
        velocity: Tensor = self.drift(t.double(), x.double())
        return velocity


def new_network(registry: Registry, d: int, generator: Generator) -> nn.Module:
    """A small network in float64, with random weights."""
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw_seed(generator))
        return Double(registry.create("drift", "mlp", event_shape=[d], width=32, depth=2))


def train_network(fine_tunes: FineTunes, drift: nn.Module, temperature: float) -> nn.Module:
    """A drift, trained by the shipped loop."""
    loop = fine_tunes.loop(build_loop, drift, temperature, TRAINING)
    for step in range(TRAINING.steps):
        loop.take(step)
    return loop.drift.requires_grad_(False).cpu()


def worst_of(measurements: list[Measurement]) -> Measurement:
    """The largest value, with the lines of the first."""
    return Measurement(max(each.value for each in measurements), measurements[0].lines)


@claim(
    "T09b-first-step-loop",
    statement=(
        "From the pretrained weights the loop's first step under Adam is plain fine-tuning's, and under SGD "
        "(1 - rho) times it."
    ),
    reference="theory, T9b",
    subject=build_loop,
    bound=exact(),
    mutants=FIRST_STEP_SLIPS,
    conditions="Gaussian flow, d = 3; a linear model in float64; Adam's eps 1e-18 (the statement holds up to it).",
    seeds=1,
    uses={"registry": REGISTRY},
)
def first_step_difference(make: LoopBuilder, generator: Generator, *, registry: Registry) -> float:
    """The largest relative difference of the first step from its prediction, over optimizers and temperatures."""
    cpu = cpu_generator(generator)
    fine_tunes = FineTunes(registry, draw_flow(3, cpu), draw_seed(cpu), generator.device)
    start = draw_weight(LinearModel(3), cpu)
    worst = 0.0
    for name, optimizer in OPTIMIZERS.items():
        train = Train(10, 16, 1e-2, optimizer, clip=None, ema=0.9)
        first_steps = []
        for beta in (0.0, *TEMPERATURES):
            loop = fine_tunes.loop(make, LinearModel(3, weight=start), beta, train)
            loop.take(0)
            first_steps.append(weight_of(loop).cpu() - start)
        for beta, first_step in zip(TEMPERATURES, first_steps[1:], strict=True):
            share = 1 - retention(beta) if name == "sgd" else 1.0
            worst = max(worst, relative_difference(first_step, share * first_steps[0]))
    return worst


@claim(
    "T09a-label-noise-trained",
    statement="At a trained network the label noise of the blended form is (1 - rho)^2 that of plain flow matching.",
    reference="theory, T9a",
    subject=LabelNoise(),
    bound=exact(),
    mutants={name: slip for name, slip in LABEL_SLIPS.items() if name not in ("beta for rho", "no anchor")},
    conditions=f"{TRAINED} Dimensions 2 and 4, independent coupling: under the optimal one (t, x) leaves no noise.",
    profile="full",
    seeds=1,
    axes=AXES,
    uses={"registry": REGISTRY, "path": registered("path", "linear")},
)
def trained_label_noise(subject: LabelNoise, generator: Generator, *, registry: Registry, path: Path) -> Measurement:
    """The largest relative difference of the label noise from its prediction, at a network of each dimension."""
    cpu = cpu_generator(generator)

    def at_network(d: int) -> Measurement:
        fine_tunes = FineTunes(registry, draw_flow(d, cpu), draw_seed(cpu), generator.device)
        drift = train_network(fine_tunes, new_network(registry, d, cpu), 1.0)
        parameters = dict(drift.named_parameters())

        def model(values: Weights, t: Tensor, x: Tensor) -> Tensor:
            named = dict(zip(parameters, values, strict=True))
            return torch.func.functional_call(drift, named, (t[None], x[None]))[0]

        problem = draw_problem(path, fine_tunes.flow, 12, cpu)
        return compare_label_noise(subject, model, tuple(parameters.values()), problem)

    return worst_of([at_network(d) for d in (2, 4)])


@claim(
    "T09b-first-step-trained",
    statement=(
        "At a pretrained network every stochastic gradient of the loop is (1 - rho) times plain fine-tuning's: its "
        "signal-to-noise is the same."
    ),
    reference="theory, T9b",
    subject=build_loop,
    bound=exact(),
    mutants=FIRST_STEP_SLIPS,
    conditions=f"{TRAINED} Dimension 2 with independent and 4 with optimal coupling.",
    profile="full",
    seeds=1,
    axes=AXES,
    uses={"registry": REGISTRY},
)
def pretrained_gradients(make: LoopBuilder, generator: Generator, *, registry: Registry) -> Measurement:
    """The largest relative difference of gradients and of signal-to-noise, at a network of each flow."""
    cpu = cpu_generator(generator)
    resting = Train(BATCHES, 16, 1e-30, {"name": "sgd"}, clip=None, ema=0.9)  # below round-off of any weight

    def at_network(flow: GaussianFlow) -> Measurement:
        fine_tunes = FineTunes(registry, flow, draw_seed(cpu), generator.device)
        drift = new_network(registry, len(flow.mean0), cpu)
        pretrained = train_network(replace(fine_tunes, flow=retarget(flow, cpu)), drift, 0.0)
        gradients = []
        for beta in (0.0, *TEMPERATURES):
            loop = fine_tunes.loop(make, pretrained, beta, resting)
            gradients.append(torch.stack([step_gradient(loop, step) for step in range(BATCHES)]))
        flow_matching, *blended = gradients
        shares = [1 - retention(beta) for beta in TEMPERATURES]
        difference = max(
            relative_difference(gradient, share * flow_matching)
            for gradient, share in zip(blended, shares, strict=True)
        )
        of_signal = max(relative_error(signal_to_noise(each), signal_to_noise(flow_matching)) for each in blended)
        lines = {"measured": [batch_variance(gradient) for gradient in blended]}
        lines["theory"] = [label_noise(retention(beta), batch_variance(flow_matching)) for beta in TEMPERATURES]
        return Measurement(max(difference, of_signal), {name: (TEMPERATURES, line) for name, line in lines.items()})

    flows = [draw_flow(d, cpu, coupling) for d, coupling in zip((2, 4), COUPLINGS, strict=True)]
    return worst_of([at_network(flow) for flow in flows])


def batch_variance(gradients: Tensor) -> float:
    """The trace of the covariance of batch gradients, (batches, parameters)."""
    return float(gradients.var(0).sum())


def signal_to_noise(gradients: Tensor) -> float:
    """The mean's squared norm over the covariance's trace."""
    return float(gradients.mean(0).square().sum()) / batch_variance(gradients)


@claim(
    "T09c-optimum-noise-trained",
    statement=(
        "After training by SGD at a temperature, the stochastic gradient's variance is (1 - rho)^2 that of plain "
        "fine-tuning after as many steps, for models linear in their parameters."
    ),
    reference="theory, T9c",
    subject=build_loop,
    bound=statistical(degrees=REPLICAS // 2 - 1),
    mutants=LOOP_SLIPS,
    conditions=(
        "Linear model with Gaussian features, d = 2 and 3 in turn, batches of 1, 400 independent replicas; beta "
        "0.01 to 30."
    ),
    profile="full",
    seeds=1,
    axes=AXES,
    uses={"registry": REGISTRY},
)
def trained_noise(make: LoopBuilder, generator: Generator, *, registry: Registry) -> Measurement:
    """Standard errors of the gradients' variance after training, against its prediction."""
    cpu = cpu_generator(generator)
    problems = [draw_regressions(d, cpu, replicas=REPLICAS, sigma=0.3) for d in (2, 3)]

    def variances(problem: Regressions, beta: float) -> Tensor:
        """Trace of the gradient's covariance at each replica's weights after training, (replicas,)."""
        loop = problem.loop(
            make,
            registry,
            schedule=beta,
            seed=draw_seed(cpu),
            rate=0.05,
            steps=LEARNING + BATCHES,
            device=generator.device,
        )
        for step in range(LEARNING):
            loop.take(step)
        learned = weight_of(loop).clone()
        gradients = []
        for step in range(LEARNING, LEARNING + BATCHES):
            gradients.append(step_gradient(loop, step).reshape(problem.replicas, -1).cpu())
            weight_of(loop).copy_(learned)
        return torch.stack(gradients).double().var(0).sum(1)

    samples, measured, theory = [], [], []
    for beta, problem in zip(TEMPERATURES, itertools.cycle(problems), strict=False):
        blended, plain = variances(problem, beta), variances(problem, 0.0)
        expected = label_noise(retention(beta), 1.0) * plain
        samples.append((blended - expected) / (blended + expected))  # of equal laws: symmetric about 0
        measured.append(float(blended.mean()))
        theory.append(float(expected.mean()))
    lines = {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)}
    return Measurement(cross_fitted_t(torch.stack(samples, 1), torch.zeros(len(samples))), lines)
