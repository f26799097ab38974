"""Evaluations made of given tensors, and what metrics measure of them."""

from dataclasses import dataclass

import torch

import gftkit
from gftkit.kernel.contracts import Batch

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
