"""Many independent regressions side by side in one run of the shipped loop: its statistics at the price of one run."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor, nn

from gftkit.kernel.contracts import Batch, Dataset, Sampler, Schedule
from gftkit.kernel.registry import Registry
from gftkit.runs.schema import Train
from gftkit.training.steps import Steps
from gftkit_verification.oracles.gaussian import square_root
from gftkit_verification.testbeds.loops.shipped import LoopBuilder
from gftkit_verification.testbeds.problems.flows import random_covariance


class RegressionPath:
    """The state is x0 and the conditional drift x1: the loop then regresses x1 on x0.

    The theory of stochastic gradients (T9, T13 to T15) needs nothing else of a path.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(1, 0, 0)."""
        return torch.ones_like(t), torch.zeros_like(t), torch.zeros_like(t)

    def rates(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(0, 1, 0): not the derivatives of the coefficients, so that the label is free."""
        return torch.zeros_like(t), torch.ones_like(t), torch.zeros_like(t)


class SideBySide(nn.Module):
    """b(x)_r = W_r x_r for each replica r: events are (replicas, d).

    The loop's loss is the mean over replicas and coordinates, so that each replica is trained by itself.

    Args:
        weight: the start of every replica, (d, d).
        replicas: how many.
    """

    def __init__(self, weight: Tensor, replicas: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.expand(replicas, -1, -1).clone())

    def forward(self, t: Tensor, x: Tensor) -> Tensor:  # noqa: ARG002
        """(batch,), (batch, replicas, d) -> (batch, replicas, d)."""
        return torch.einsum("rij,brj->bri", self.weight, x.to(self.weight.dtype))


@dataclass(frozen=True)
class Regressions:
    """y = W_tgt phi + sigma eps with phi ~ N(0, H), for ``replicas`` independent runs.

    Attributes:
        features: H, (d, d).
        target: W_tgt, (d, d).
        pretrained: W_pre, (d, d).
        sigma: standard deviation of a label's coordinate.
        replicas: how many.
    """

    features: Tensor
    target: Tensor
    pretrained: Tensor
    sigma: float = 1.0
    replicas: int = 1

    range = None

    @property
    def event_shape(self) -> tuple[int, ...]:
        """(replicas, d)."""
        return self.replicas, len(self.features)

    @property
    def gap(self) -> Tensor:
        """Delta = W_pre - W_tgt."""
        return self.pretrained - self.target

    def draw(self, n: int, generator: Generator) -> Batch:
        """n fresh samples of every replica."""
        shape = n, *self.event_shape
        phi = torch.randn(shape, generator=generator, dtype=torch.float64) @ square_root(self.features)
        noise = torch.randn(shape, generator=generator, dtype=torch.float64)
        return Batch(phi @ self.target.mT + self.sigma * noise, None, phi)

    def norm(self, weight: Tensor) -> Tensor:
        """E|W phi|^2 = tr(W H W^T): (..., d, d) -> (...)."""
        return ((weight @ self.features) * weight).sum((-1, -2))

    def loop(
        self,
        make: LoopBuilder,
        registry: Registry,
        *,
        schedule: Schedule | float,
        seed: int,
        rate: float,
        steps: int,
        batch_size: int = 1,
        optimizer: Mapping[str, Any] | None = None,
        data: Dataset | Sampler | None = None,
        device: torch.device | str = "cpu",
    ) -> Steps:
        """The shipped loop from the pretrained weights: each row of each replica takes steps eta = ``rate``.

        That is, W <- W - eta (W phi - y) phi^T, averaged over the batch: the loss's mean over replicas and
        coordinates, and the 2 of the square, are taken out of the learning rate.
        """
        count = self.replicas * len(self.features)
        options = dict(optimizer or {"name": "sgd"})
        return make(
            registry=registry,
            drift=SideBySide(self.pretrained, self.replicas),
            data=data or self,
            source=lambda n, generator: torch.zeros(n, *self.event_shape),  # noqa: ARG005 - the data bring x0
            path=RegressionPath(),
            coupling=registry.create("coupling", "independent"),
            schedule=schedule,
            train=Train(steps, batch_size, rate * count / 2, options, clip=None, ema=0.9),
            seed=seed,
            device=device,
        )


class Finite:
    """A finite training set for every replica: each its own.

    Args:
        batch: features x0 and labels x1, (n, replicas, d) each.
    """

    range: tuple[float, float] | None = None

    def __init__(self, batch: Batch) -> None:
        self._batch = batch
        self.event_shape: tuple[int, ...] = tuple(batch.x1.shape[1:])

    def __len__(self) -> int:
        return len(self._batch)

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices."""
        return self._batch[indices]


def draw_regressions(d: int, generator: Generator, replicas: int = 1, sigma: float = 1.0) -> Regressions:
    """A random problem whose features have variance 1 on average."""
    features = random_covariance(d, generator)
    target, pretrained = torch.randn(2, d, d, generator=generator, dtype=torch.float64)
    return Regressions(features * d / features.trace(), target, pretrained, sigma, replicas)


def weight_of(loop: Steps) -> Tensor:
    """The weight that a linear model is trained in: a view, not a copy."""
    return next(loop.drift.parameters()).detach()
