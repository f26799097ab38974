"""Networks trained by the shipped loop between random normal laws, and the points at which they are compared."""

import copy
import functools
from collections.abc import Iterable
from dataclasses import dataclass, replace

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
from gftkit_verification.oracles.gaussian import CouplingName, GaussianFlow
from gftkit_verification.testbeds.loops import LoopBuilder, build_loop
from gftkit_verification.testbeds.moments import draw_seed
from gftkit_verification.testbeds.problems import GaussianData, draw_flow, retarget

WIDTH, DEPTH, BATCH = 48, 2, 256
PRETRAINING = Train(steps=400, batch_size=BATCH, learning_rate=5e-3, decay="cosine", clip=None)
STEPS = 300
"""Of a fine-tune."""
FINETUNING = replace(PRETRAINING, steps=STEPS)


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

    def _problem(self, d: int, coupling: CouplingName, seed: int, device: torch.device) -> "Problem":
        """A random target, and a network trained on another target of the same source at temperature 0."""
        generator = stream(seed, "problem", d, coupling)
        target = draw_flow(d, generator, coupling)
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(draw_seed(generator))
            drift = self.registry.create("drift", "mlp", event_shape=[d], width=WIDTH, depth=DEPTH)
        before = Problem(retarget(target, generator), drift, draw_seed(generator), device)
        loop = self.loop(before, build_loop, 0.0, PRETRAINING)
        return replace(before, target=target, pretrained=_trained(loop), seed=draw_seed(generator))

    def _network(self, problem: "Problem", build: LoopBuilder, temperature: float, steps: int = STEPS) -> nn.Module:
        """The pretrained network fine-tuned at a constant temperature."""
        return _trained(self.loop(problem, build, temperature, replace(FINETUNING, steps=steps)))

    def loop(self, problem: "Problem", build: LoopBuilder, schedule: Schedule | float, train: Train) -> Steps:
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
class Problem:
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


def draw_states(problem: Problem, path: Path, n: int, generator: Generator) -> States:
    """n points of a target's linear path; the generator is on the CPU."""
    x0, x1 = problem.target.pairs(n, generator)
    t = flow.t_end(path) * torch.rand(n, generator=generator, dtype=torch.float64)
    x = flow.sample(path, t, x0, x1, None)
    values = t, x, flow.drift(path, t, x0, x1, None), problem.target.velocity(t, x)
    return States(*(value.float().to(problem.device) for value in values))


def norm(drift: Tensor) -> float:
    """|b|_w over states, (n, d)."""
    return float(squared_norm(drift).mean().sqrt())
