"""Evaluations made of given tensors or of a drift, and what metrics measure of them."""

from dataclasses import dataclass

import torch

import gftkit
from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Batch
from gftkit.sampling.scheme import Scheme

REGISTRY = gftkit.load()


def draw(*shape, seed):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


@dataclass
class Made:
    """What a metric sees of an evaluation, from given tensors."""

    x: torch.Tensor
    y: torch.Tensor
    old: torch.Tensor | None = None
    held_out: bool = True
    inherited: object = None
    seed: int = 0

    def samples(self, steps=None):
        self.steps_asked = steps
        return self.x

    @property
    def count(self):
        return len(self.x)

    @property
    def reference(self):
        return Batch(self.y)

    @property
    def training(self):
        return None if self.old is None else Batch(self.old)


def measures(name, evaluation, seed=0, **options):
    return REGISTRY.create("metric", name, **options).measure(evaluation, torch.Generator().manual_seed(seed))


def measure(name, evaluation, seed=0, **options):
    (made,) = measures(name, evaluation, seed, **options).values()
    return made


class Straight:
    """x_t = (1 - t) x0 + t x1."""

    def coefficients(self, t):
        return 1 - t, t, torch.zeros_like(t)


class Constant(torch.nn.Module):
    """The drift v everywhere: straight lines of length |v|."""

    def __init__(self, v):
        super().__init__()
        self.v = v

    def forward(self, t, x):
        return self.v.expand_as(x)


def evaluation_of(drift, count=30, event=(1, 2, 2), steps=7):
    def source(n, generator):
        return torch.randn(n, *event, generator=generator, dtype=torch.float64)

    scheme = Scheme(REGISTRY.create("solver", "euler"), steps)
    reference = Batch(draw(40, *event, seed=5))
    return Evaluation(drift, Straight(), scheme, source=source, reference=reference, count=count, seed=0, batch_size=8)
