"""Drifts that the shipped loop fits to a normal law, and the sampler's states under them."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Coupling, Path, Solver
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.sampling import integrate
from gftkit.theory import flow
from gftkit_verification.oracles import affine
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.loops.shipped import build_loop
from gftkit_verification.testbeds.problems.flows import GaussianData, draw_flow
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed

LINEAR = Train(steps=600, batch_size=128, learning_rate=0.15, decay="cosine", clip=None)
"""Of a model that is linear in its parameters."""
DEGREE = 4
"""Of its polynomials in t."""
SAMPLES = 8000
STEPS = {False: 6, True: 120}
"""Of the sampler, without and with noise."""


@dataclass(frozen=True)
class FlowFit:
    """Components by which a drift is trained and sampled.

    Attributes:
        registry: gives what else the loop needs.
        coupling: pairs x0 and x1.
        path: that is trained on and sampled.
        solver: takes the sampler's steps.
        loop_path: gives the path that the loop sees in the path's place.
    """

    registry: Registry
    coupling: Coupling
    path: Path
    solver: Solver
    loop_path: Callable[[Path], Path] = lambda path: path

    def trained_drift(self, drift: nn.Module, gaussian: GaussianFlow, train: Train, generator: Generator) -> nn.Module:
        """The drift, trained by the shipped loop at temperature 0, on the generator's device."""
        data = GaussianData(gaussian)
        loop = build_loop(
            registry=self.registry,
            drift=drift,
            data=data,
            source=data.source,
            path=self.loop_path(self.path),
            coupling=self.coupling,
            schedule=0.0,
            train=train,
            seed=draw_seed(generator),
            device=generator.device,
        )
        for step in range(train.steps):
            loop.take(step)
        return loop.drift.eval().requires_grad_(False)

    def states(self, drift: nn.Module, gaussian: GaussianFlow, generator: Generator) -> Tensor:
        """The sampler's states at all times, (times, n, d)."""
        x0 = gaussian.starts(SAMPLES, cpu_generator(generator)).float()
        return integrate.generate(
            drift,
            self.path,
            self.solver,
            STEPS[flow.is_stochastic(self.path)],
            x0,
            generator,
            batch_size=SAMPLES,
            whole=True,
        ).double()


def distant_normals(generator: Generator) -> GaussianFlow:
    """Two random normal laws in the plane whose means are 4 apart: a slip in time or in a step shows in the mean."""
    drawn = draw_flow(2, generator)
    shift = drawn.mean1 - drawn.mean0
    return GaussianFlow(drawn.mean0, drawn.cov0, drawn.mean0 + 4 * shift / shift.norm(), drawn.cov1)


def distance_to_target(states: Tensor, gaussian: GaussianFlow) -> float:
    """W2 of the samples' normal law from q, relative to q's spread."""
    last = states[-1]
    distance = affine.bures_wasserstein(last.mean(0), torch.cov(last.mT), gaussian.mean1, gaussian.cov1)
    return distance / float(gaussian.cov1.trace().sqrt())
