"""The noise of gradients, T9, where the shipped loop takes steps and trains networks."""

import copy
import itertools
from collections.abc import Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.theory.objective import retention
from gftkit.theory.predictions import label_noise
from gftkit.training.steps import Steps
from gftkit.verify.claims import Claim, Measurement, exact, statistical
from gftkit_verification.claims.objective.gradients import (
    AXES,
    LABEL_SLIPS,
    TEMPERATURES,
    LabelNoise,
    Weights,
    apart,
    compare_label_noise,
    problem,
    random_weight,
)
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds import slips
from gftkit_verification.testbeds.loops import LinearModel, build_loop, step_gradient
from gftkit_verification.testbeds.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.problems import COUPLINGS, GaussianData, draw_flow, retarget
from gftkit_verification.testbeds.side_by_side import Regressions, draw_regressions, weight_of
from gftkit_verification.testbeds.slips import LoopBuilder
from gftkit_verification.testbeds.statistics import cross_fitted_t

TRAINED = "Gaussian flow, d = 2, independent coupling; drift `mlp`, 2 x 32, trained by the loop; beta 0.01 to 30."

TRAINING = 150
"""Steps of a network's training."""

LEARNING = 40
"""Steps of SGD of a linear model."""

BATCHES = 6
"""Stochastic gradients whose variance is measured."""

REPLICAS = 400
"""Independent runs of a linear model."""

LOOP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor shares the weights": slips.sharing_anchor,
    "rho for beta": slips.rho_for_beta,
}


def claims(registry: Registry) -> Iterator[Claim]:
    """The claims of this part."""
    yield _first_step_of_loop(registry)
    yield from _trained(registry)


# The loop is float64 wherever its states are: the source draws float64.


@dataclass(frozen=True)
class Bench:
    """Fine-tunes by the shipped loop on a Gaussian problem, with equal randomness at every temperature.

    Attributes:
        registry: gives path and coupling.
        flow: the target.
        seed: of everything random.
        device: where the networks are.
    """

    registry: Registry
    flow: GaussianFlow
    seed: int
    device: torch.device

    def loop(self, make: LoopBuilder, drift: nn.Module, temperature: float, train: Train, **options: Any) -> Steps:
        """The loop from the weights of a drift, which stays as it is; with options of ``trial``."""
        return make(
            registry=self.registry,
            drift=copy.deepcopy(drift),
            data=GaussianData(self.flow),
            source=self.flow.starts,
            path=self.registry.create("path", "linear"),
            coupling=self.registry.create("coupling", "independent"),
            schedule=temperature,
            train=train,
            seed=self.seed,
            device=self.device,
            **options,
        )

    def trained(self, drift: nn.Module, temperature: float) -> nn.Module:
        """A drift, trained by the shipped loop."""
        loop = self.loop(build_loop, drift, temperature, Train(TRAINING, 64, 3e-3, ema=0.9))
        for step in range(TRAINING):
            loop.take(step)
        return loop.drift.requires_grad_(False).cpu()


class Double(nn.Module):
    """A drift in float64."""

    def __init__(self, drift: nn.Module) -> None:
        super().__init__()
        self.drift = drift.double()

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """The drift."""
        found: Tensor = self.drift(t.double(), x.double())
        return found


def _mlp(registry: Registry, d: int, generator: Generator) -> nn.Module:
    with torch.random.fork_rng(devices=[]):
        torch.default_generator.manual_seed(draw_seed(generator))
        return Double(registry.create("drift", "mlp", event_shape=[d], width=32, depth=2))


def _untrained_anchor(**options: Any) -> Steps:
    """The loop with an anchor whose weights were never loaded."""
    loop = build_loop(**options)
    loop.anchor = lambda t, x: torch.zeros_like(x)  # type: ignore[assignment]  # noqa: ARG005
    return loop


FIRST_STEP_SLIPS = {
    "penalty form": slips.penalty_form,
    "anchor not loaded": _untrained_anchor,
    "rho for beta": slips.rho_for_beta,
}


def _first_step_of_loop(registry: Registry) -> Claim:
    optimisers: dict[str, dict[str, Any]] = {"adam": {"name": "adam", "eps": 1e-18}, "sgd": {"name": "sgd"}}

    def measure(make: LoopBuilder, generator: Generator) -> float:
        here = cpu_generator(generator)
        bench = Bench(registry, draw_flow(3, here), draw_seed(here), generator.device)
        start = random_weight(LinearModel(3), here)
        worst = 0.0
        for name, optimiser in optimisers.items():
            train = Train(10, 16, 1e-2, optimiser, clip=None, ema=0.9)
            moved = []
            for beta in (0.0, *TEMPERATURES):
                loop = bench.loop(make, LinearModel(3, weight=start), beta, train)
                loop.take(0)
                moved.append(weight_of(loop).cpu() - start)
            for beta, found in zip(TEMPERATURES, moved[1:], strict=True):
                share = 1 - retention(beta) if name == "sgd" else 1.0
                worst = max(worst, apart(found, share * moved[0]))
        return worst

    return Claim(
        name="T09b-first-step-loop",
        statement="From the pretrained weights the loop's first step under Adam is plain fine-tuning's, and under SGD "
        "(1 - rho) times it.",
        reference="theory, T9b",
        subject=build_loop,
        measure=measure,
        bound=exact(),
        mutants=FIRST_STEP_SLIPS,
        conditions="Gaussian flow, d = 3; a linear model in float64; Adam's eps 1e-18 (the statement holds up to it).",
        seeds=1,
    )


def _trained(registry: Registry) -> Iterator[Claim]:
    path = registry.create("path", "linear")

    def noise(subject: LabelNoise, generator: Generator) -> Measurement:
        here = cpu_generator(generator)
        return _worst([noise_of(subject, d, here, generator.device) for d in (2, 4)])

    def noise_of(subject: LabelNoise, d: int, here: Generator, device: torch.device) -> Measurement:
        bench = Bench(registry, draw_flow(d, here), draw_seed(here), device)
        drift = bench.trained(_mlp(registry, d, here), 1.0)
        weights = dict(drift.named_parameters())

        def model(values: Weights, t: Tensor, x: Tensor) -> Tensor:
            named = dict(zip(weights, values, strict=True))
            return torch.func.functional_call(drift, named, (t[None], x[None]))[0]

        return compare_label_noise(subject, model, tuple(weights.values()), problem(path, bench.flow, 12, here))

    def first_steps(make: LoopBuilder, generator: Generator) -> Measurement:
        here = cpu_generator(generator)
        flows = [draw_flow(d, here, coupling) for d, coupling in zip((2, 4), COUPLINGS, strict=True)]
        return _worst([first_steps_of(make, flow, here, generator.device) for flow in flows])

    def first_steps_of(make: LoopBuilder, flow: GaussianFlow, here: Generator, device: torch.device) -> Measurement:
        bench, drift = Bench(registry, flow, draw_seed(here), device), _mlp(registry, len(flow.mean0), here)
        pretrained = replace(bench, flow=retarget(flow, here)).trained(drift, 0.0)
        resting = Train(BATCHES, 16, 1e-30, {"name": "sgd"}, clip=None, ema=0.9)  # below round-off of any weight
        found = []
        for beta in (0.0, *TEMPERATURES):
            loop = bench.loop(make, pretrained, beta, resting)
            found.append(torch.stack([step_gradient(loop, step) for step in range(BATCHES)]))
        flow_matching, *blended = found
        shares = [1 - retention(beta) for beta in TEMPERATURES]
        worst = max(apart(each, share * flow_matching) for each, share in zip(blended, shares, strict=True))
        signal = max(abs(_signal(each) / _signal(flow_matching) - 1) for each in blended)
        lines = {"measured": [_variance(each) for each in blended]}
        lines["theory"] = [label_noise(retention(beta), _variance(flow_matching)) for beta in TEMPERATURES]
        return Measurement(max(worst, signal), {name: (TEMPERATURES, line) for name, line in lines.items()})

    def at_trained(make: LoopBuilder, generator: Generator) -> Measurement:
        here = cpu_generator(generator)
        problems = [draw_regressions(d, here, replicas=REPLICAS, sigma=0.3) for d in (2, 3)]

        def variances(bed: Regressions, beta: float) -> Tensor:
            """Trace of the gradient's covariance at each replica's weights after training, (replicas,)."""
            loop = bed.loop(
                make,
                registry,
                schedule=beta,
                seed=draw_seed(here),
                rate=0.05,
                steps=LEARNING + BATCHES,
                device=generator.device,
            )
            for step in range(LEARNING):
                loop.take(step)
            learned = weight_of(loop).clone()
            found = []
            for step in range(LEARNING, LEARNING + BATCHES):
                found.append(step_gradient(loop, step).reshape(bed.replicas, -1).cpu())
                weight_of(loop).copy_(learned)
            return torch.stack(found).double().var(0).sum(1)

        samples, measured, theory = [], [], []
        for beta, bed in zip(TEMPERATURES, itertools.cycle(problems), strict=False):
            blended, plain = variances(bed, beta), variances(bed, 0.0)
            wanted = label_noise(retention(beta), 1.0) * plain
            samples.append((blended - wanted) / (blended + wanted))  # of equal laws: symmetric about 0
            measured.append(float(blended.mean()))
            theory.append(float(wanted.mean()))
        lines = {"measured": (TEMPERATURES, measured), "theory": (TEMPERATURES, theory)}
        return Measurement(cross_fitted_t(torch.stack(samples, 1), torch.zeros(len(samples))), lines)

    yield Claim(
        name="T09a-label-noise-trained",
        statement=(
            "At a trained network the label noise of the blended form is (1 - rho)^2 that of plain flow matching."
        ),
        reference="theory, T9a",
        subject=LabelNoise(),
        measure=noise,
        bound=exact(),
        mutants={name: slip for name, slip in LABEL_SLIPS.items() if name not in ("beta for rho", "no anchor")},
        conditions=f"{TRAINED} Dimensions 2 and 4, independent coupling: under the optimal one (t, x) leaves no noise.",
        profile="full",
        seeds=1,
        axes=AXES,
    )
    yield Claim(
        name="T09b-first-step-trained",
        statement=(
            "At a pretrained network every stochastic gradient of the loop is (1 - rho) times plain fine-tuning's: its "
            "signal-to-noise is the same."
        ),
        reference="theory, T9b",
        subject=build_loop,
        measure=first_steps,
        bound=exact(),
        mutants=FIRST_STEP_SLIPS,
        conditions=f"{TRAINED} Dimension 2 with independent and 4 with optimal coupling.",
        profile="full",
        seeds=1,
        axes=AXES,
    )
    yield Claim(
        name="T09c-optimum-noise-trained",
        statement=(
            "After training by SGD at a temperature, the stochastic gradient's variance is (1 - rho)^2 that of plain "
            "fine-tuning after as many steps, for models linear in their parameters."
        ),
        reference="theory, T9c",
        subject=build_loop,
        measure=at_trained,
        bound=statistical(degrees=REPLICAS // 2 - 1),
        mutants=LOOP_SLIPS,
        conditions=(
            "Linear model with Gaussian features, d = 2 and 3 in turn, batches of 1, 400 independent replicas; beta "
            "0.01 to 30."
        ),
        profile="full",
        seeds=1,
        axes=AXES,
    )


def _worst(found: list[Measurement]) -> Measurement:
    """The largest value, with the lines of the first."""
    return Measurement(max(one.value for one in found), found[0].lines)


def _variance(gradients: Tensor) -> float:
    """The trace of the covariance of batch gradients, (batches, parameters)."""
    return float(gradients.var(0).sum())


def _signal(gradients: Tensor) -> float:
    """Signal-to-noise: the mean's squared norm over the covariance's trace."""
    return float(gradients.mean(0).square().sum()) / _variance(gradients)
