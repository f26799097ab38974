"""T13 in the shipped loop: the mean drift of runs of SGD, mode by mode, behind its moving optimum."""

from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.theory.objective import retention
from gftkit.verify.claims import Line, Measurement, statistical
from gftkit.verify.declaration import REGISTRY, claim, registered
from gftkit_verification.claims.training.tracking import AXES, LINEAR
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.loops.shipped import LinearModel, LoopBuilder, Regression, build_loop, fit_regression
from gftkit_verification.testbeds.loops.side_by_side import weight_of
from gftkit_verification.testbeds.measuring.statistics import cross_fitted_t, equalise_columns
from gftkit_verification.testbeds.problems.flows import COUPLINGS, GaussianData, draw_flow, retarget
from gftkit_verification.testbeds.problems.moments import cpu_generator, draw_seed
from gftkit_verification.testbeds.slips import losses as slips

REPLICAS, LEARNING = 32, 40
"""Runs of the loop, and their steps."""


@dataclass(frozen=True)
class Bed:
    """A fine-tune of a linear model between Gaussian flows.

    Attributes:
        flow: the target's flow.
        fit: the optimum of plain flow matching in the class, and the features' second moments.
        pretrained: W_pre, (d, p).
    """

    flow: GaussianFlow
    fit: Regression
    pretrained: Tensor

    @property
    def gap(self) -> Tensor:
        """Delta = W_pre - W_tgt."""
        return self.pretrained - self.fit.weight

    @property
    def rate(self) -> float:
        """The step of gradient descent: half of what the largest curvature allows."""
        return 0.5 / float(torch.linalg.eigh(self.fit.gram).eigenvalues[-1])

    def shares_left(self, distance: Tensor) -> Tensor:
        """c_i of each mode, and last ``<W - W_tgt, Delta> / |Delta|^2``: (..., d, p) -> (..., p + 1)."""
        modes = torch.linalg.eigh(self.fit.gram).eigenvectors
        products, squares = ((distance @ modes) * (self.gap @ modes)).sum(-2), (self.gap @ modes).square().sum(0)
        whole = products.sum(-1, keepdim=True) / squares.sum()
        return torch.cat([products / squares, whole], -1)

    def predicted(self, schedule: Schedule) -> Tensor:
        """The shares that are left after each step, by the mean of a step of SGD: (LEARNING, p + 1)."""
        distance, shares = self.gap, []
        for step in range(LEARNING):
            rho = retention(schedule.temperature(step / LEARNING))
            distance = distance - self.rate * (distance - rho * self.gap) @ self.fit.gram
            shares.append(self.shares_left(distance))
        return torch.stack(shares)

    def measured(
        self, make: LoopBuilder, registry: Registry, schedule: Schedule, seed: int, device: torch.device
    ) -> Tensor:
        """The shares that are left after each step of one run: (LEARNING, p + 1)."""
        d = len(self.flow.mean0)
        # The learning rate takes out the 2 of the square and the loss's mean over d.
        train = Train(LEARNING, 256, self.rate * d / 2, {"name": "sgd"}, clip=None, ema=0.9)
        loop = make(
            registry=registry,
            drift=LinearModel(d, weight=self.pretrained),
            data=GaussianData(self.flow),
            source=self.flow.starts,
            path=registry.create("path", "linear"),
            coupling=registry.create("coupling", "independent"),
            schedule=schedule,
            train=train,
            seed=seed,
            device=device,
        )
        distances = []
        for step in range(LEARNING):
            loop.take(step)
            distances.append(weight_of(loop).cpu() - self.fit.weight)
        return self.shares_left(torch.stack(distances))


def _draw_bed(flow: GaussianFlow, generator: Generator) -> Bed:
    model = LinearModel(len(flow.mean0))
    fit = fit_regression(flow, model)
    return Bed(flow, fit, fit_regression(retarget(flow, generator), model).weight)


@claim(
    "T13-tracking-trained",
    statement="In the shipped loop with SGD the mean of b - b_tgt, mode by mode of the features' covariance, follows "
    "c' = -lambda (c - rho(s)), step for step.",
    reference="theory, T13",
    subject=build_loop,
    bound=statistical(degrees=REPLICAS - REPLICAS // 2 - 1),
    mutants={
        "penalty form": slips.penalty_form,
        "temperature never falls": slips.never_cooling,
        "anchor shares the weights": slips.sharing_anchor,
    },
    conditions="Gaussian flows, dimension 2 with independent and 3 with optimal coupling; linear path; linear model; "
    "schedule `exponential`, temperatures from 4 to 0.02, then 0; 32 runs of 40 steps, batches of 256.",
    component="schedule:exponential",
    profile="full",
    seeds=1,
    axes=AXES,
    scales=LINEAR,
    uses={"registry": REGISTRY, "schedule": registered("schedule", "exponential")},
)
def mean_tracking_error(
    make: LoopBuilder, generator: Generator, *, registry: Registry, schedule: Schedule
) -> Measurement:
    """The standardised error of the mean shares over runs, of all modes and both flows together."""
    here = cpu_generator(generator)
    flows = [draw_flow(d, here, coupling) for d, coupling in zip((2, 3), COUPLINGS, strict=True)]
    errors, lines = [], dict[str, Line]()
    for flow in flows:
        bed = _draw_bed(flow, here)
        expected = bed.predicted(schedule)
        runs = [bed.measured(make, registry, schedule, draw_seed(here), generator.device) for _ in range(REPLICAS)]
        shares = torch.stack(runs)
        every_fifth = slice(LEARNING // 5 - 1, None, LEARNING // 5)
        errors.append((shares - expected)[:, every_fifth].flatten(1))
        lines = lines or _lines(shares, expected, schedule)
    evened = equalise_columns(torch.cat(errors, 1))
    return Measurement(cross_fitted_t(evened, torch.zeros(evened.shape[1])), lines)


def _lines(shares: Tensor, expected: Tensor, schedule: Schedule) -> dict[str, Line]:
    """The whole share that is left, in the mean over runs, with its prediction and the retention."""
    progress = [(step + 1) / LEARNING for step in range(LEARNING)]
    return {
        "measured": (progress, shares[:, :, -1].mean(0).tolist()),
        "theory": (progress, expected[:, -1].tolist()),
        "rho": (progress, [retention(schedule.temperature(s)) for s in progress]),
    }
