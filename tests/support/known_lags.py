"""Exact drifts of Gaussian flows with a known lag behind their target, in place of a run's networks."""

import torch

from gftkit.kernel.contracts import Batch
from gftkit_verification.oracles.gaussian import GaussianFlow

ZERO, EYE = torch.zeros(2), torch.eye(2)
TARGET = GaussianFlow(ZERO, EYE, torch.tensor([1.5, 0.0]), 0.3 * EYE)
PRETRAINED = GaussianFlow(ZERO, EYE, torch.tensor([-1.5, 0.5]), 0.3 * EYE)


class Exact:
    """The target's velocity, and a share of the way back to the pretrained one."""

    conditions: tuple[str, ...] = ()
    hash = "0" * 64

    def __init__(self, lag):
        self.lag = lag

    def __call__(self, t, x):
        b = TARGET.velocity(t, x)
        return (b + self.lag * (PRETRAINED.velocity(t, x) - b)).to(x.dtype)


def points(count, seed):
    """Data of the target's law, in random order."""
    return Batch(TARGET.pairs(count, torch.Generator().manual_seed(seed))[1].float())
