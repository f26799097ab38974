"""Networks trained by the shipped loop between random normal laws, and comparisons of them with predictions."""

import copy
import functools
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np
import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Path, Schedule
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.runtime.devices import cuda_devices
from gftkit.runtime.randomness import stream
from gftkit.theory import flow
from gftkit.theory.objective import squared_norm
from gftkit.training.steps import Steps
from gftkit.verify.claims import Line, Measurement
from gftkit_verification.oracles.gaussian import CouplingName, GaussianFlow
from gftkit_verification.testbeds.loops.shipped import LoopBuilder, build_loop
from gftkit_verification.testbeds.problems.flows import GaussianData, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import draw_seed, rho_of

WIDTH, DEPTH, BATCH = 48, 2, 256
PRETRAINING = Train(steps=400, batch_size=BATCH, learning_rate=5e-3, decay="cosine", clip=None)
STEPS = 300
"""Of a fine-tune."""
FINETUNING = replace(PRETRAINING, steps=STEPS)

TEMPERATURES = (0.01, 0.03, 0.1, 0.3, 1.0, 5.0, 30.0)
FEW = (0.03, 0.3, 5.0)
"""For the mutants that train networks of their own."""

PROBLEMS: tuple[tuple[int, CouplingName], ...] = ((2, "independent"), (4, "optimal-transport"))
"""Dimension and coupling."""
STATES = 4000
"""Points (t, x) at which networks are compared."""
SHORT = 100
"""Steps of an inexact fine-tune."""

TRAINED = (
    f"mlp of {DEPTH} x {WIDTH} units, pretrained and then fine-tuned by the shipped loop with Adam, batches of "
    f"{BATCH}, between random normal laws"
)
CONSTANT = f"temperatures {', '.join(f'{beta:g}' for beta in TEMPERATURES)}"
TWO = "dimension 2 with independent and 4 with optimal coupling"
"""Parts of the conditions of claims."""


class Study:
    """Networks trained on random problems; the same ones are trained once.

    Args:
        registry: gives the components.
        path: the conditional path.
    """

    def __init__(self, registry: Registry, path: Path) -> None:
        self.registry, self.path = registry, path
        self.problem = functools.lru_cache(8)(self._problem)
        self.network = functools.lru_cache(64)(self._network)

    def _problem(self, d: int, coupling: CouplingName, seed: int, device: torch.device) -> "NetworkProblem":
        """A random target, and a network trained on another target of the same source at temperature 0."""
        generator = stream(seed, "problem", d, coupling)
        target = draw_flow(d, generator, coupling)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(generator))
            drift = self.registry.create("drift", "mlp", event_shape=[d], width=WIDTH, depth=DEPTH)
        before = NetworkProblem(retarget(target, generator), drift, draw_seed(generator), device)
        loop = self.loop(before, build_loop, 0.0, PRETRAINING)
        return replace(before, target=target, pretrained=_trained(loop), seed=draw_seed(generator))

    def _network(
        self, problem: "NetworkProblem", build: LoopBuilder, temperature: float, steps: int = STEPS
    ) -> nn.Module:
        """The pretrained network fine-tuned at a constant temperature."""
        return _trained(self.loop(problem, build, temperature, replace(FINETUNING, steps=steps)))

    def loop(self, problem: "NetworkProblem", build: LoopBuilder, schedule: Schedule | float, train: Train) -> Steps:
        """The fine-tune's loop; of equal random numbers for every schedule."""
        data, drift = GaussianData(problem.target), copy.deepcopy(problem.pretrained)
        coupling = self.registry.create("coupling", "independent")  # not used where the data bring optimal pairs
        return build(
            registry=self.registry,
            drift=drift,
            data=data,
            source=data.source,
            path=self.path,
            coupling=coupling,
            schedule=schedule,
            train=train,
            seed=problem.seed,
            device=problem.device.type,
        )


def take_steps(loop: Steps, steps: Iterable[int]) -> None:
    """Train by these steps, which seed torch's global generators."""
    with torch.enable_grad(), torch.random.fork_rng(devices=cuda_devices(loop.device)):
        for step in steps:
            loop.take(step)


def _trained(loop: Steps) -> nn.Module:
    """The drift after all steps."""
    take_steps(loop, range(loop.config.train.steps))
    return loop.drift.eval().requires_grad_(False)


@dataclass(frozen=True, eq=False)
class NetworkProblem:
    """A fine-tune of a network.

    Attributes:
        target: the target's flow.
        pretrained: b_pre.
        seed: of everything random in a fine-tune.
        device: of the networks.
    """

    target: GaussianFlow
    pretrained: nn.Module
    seed: int
    device: torch.device


@dataclass(frozen=True)
class States:
    """t uniform on [0, t_end], states and drifts of random pairs, in float32 on the networks' device."""

    t: Tensor
    x: Tensor
    label: Tensor
    """The conditional drift."""
    b_tgt: Tensor
    """The target flow's drift, from the oracle."""


def draw_states(problem: NetworkProblem, path: Path, n: int, generator: Generator) -> States:
    """n points of a target's linear path; the generator is on the CPU."""
    x0, x1 = problem.target.pairs(n, generator)
    t = flow.t_end(path) * torch.rand(n, generator=generator, dtype=torch.float64)
    x = flow.sample(path, t, x0, x1, None)
    values = t, x, flow.drift(path, t, x0, x1, None), problem.target.velocity(t, x)
    return States(*(value.float().to(problem.device) for value in values))


def norm(drift: Tensor) -> float:
    """|b|_w over states, (n, d)."""
    return float(squared_norm(drift).mean().sqrt())


def linear_study(registry: Registry) -> Study:
    """Networks on the linear path."""
    return Study(registry, registry.create("path", "linear"))


@dataclass(frozen=True)
class Prediction:
    """A prediction about fine-tuned networks, and the loop that trains them."""

    predicted: Callable[..., Any]
    build: LoopBuilder = build_loop

    @property
    def temperatures(self) -> tuple[float, ...]:
        """TEMPERATURES, and FEW for a mutant: it trains networks of its own."""
        return TEMPERATURES if self.build is build_loop else FEW


def compare_with_power(
    temperatures: Sequence[float], measured: Sequence[float], predicted: Sequence[float], power: float
) -> tuple[float, float]:
    """The distances of the slope of log measured on log rho from ``power``, and of the worst ratio from 1."""
    rhos = [rho_of(beta) for beta in temperatures]
    slope = float(np.polyfit(np.log(rhos), np.log(measured), 1)[0])
    return abs(slope - power), max(abs(one / other - 1) for one, other in zip(measured, predicted, strict=True))


def worst_comparison(distances: Sequence[tuple[float, float]], lines: Mapping[str, Line]) -> Measurement:
    """The largest distance of slopes and ratios over problems."""
    slope, ratio = (max(values) for values in zip(*distances, strict=True))
    return Measurement(max(slope, ratio), lines, f"slope off by {slope:.2g}, worst ratio by {ratio:.2g}")
