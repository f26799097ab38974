"""Fine-tunes by the shipped loop on a Gaussian problem, with equal randomness at every temperature."""

import copy
from dataclasses import dataclass
from typing import Any

import torch
from torch import nn

from gftkit.kernel.contracts import Schedule
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.training.steps import Steps
from gftkit_verification.oracles.gaussian import GaussianFlow
from gftkit_verification.testbeds.loops.shipped import LoopBuilder
from gftkit_verification.testbeds.problems.flows import GaussianData


@dataclass(frozen=True)
class FineTunes:
    """The loop on one Gaussian problem, from any weights and at any temperature.

    The loop is float64 wherever its states are: the source draws float64.

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

    def loop(
        self, make: LoopBuilder, drift: nn.Module, temperature: Schedule | float, train: Train, **options: Any
    ) -> Steps:
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
