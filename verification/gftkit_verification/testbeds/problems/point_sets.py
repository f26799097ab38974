"""Finite data sets as points, and transport maps that are fitted to them as a run fits them."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Generator, Tensor

from gftkit.data.samples import Samples, Source
from gftkit.data.transport import Transport
from gftkit.kernel.contracts import Batch, TransportMap


class Points:
    """A data set of these points, (n, *event), and perhaps labels, (n,)."""

    range: tuple[float, float] | None = None

    def __init__(self, x1: Tensor, labels: Tensor | None = None) -> None:
        self.x1, self.labels = x1, labels
        self.event_shape: tuple[int, ...] = tuple(x1.shape[1:])

    def __len__(self) -> int:
        return len(self.x1)

    def batch(self, indices: Tensor) -> Batch:
        """The points at these indices."""
        return Batch(self.x1[indices], None if self.labels is None else self.labels[indices])


def normal_source(event_shape: tuple[int, ...]) -> Source:
    """N(0, I)."""
    return lambda n, generator: torch.randn(n, *event_shape, generator=generator)


def fitted_transport(coupling: TransportMap, points: Points, seed: int) -> Transport:
    """The map of a coupling to these points from N(0, I), fitted as a run does; to each label by itself."""
    transport = Transport(
        coupling, Samples(points, "data"), normal_source(points.event_shape), seed, within_labels=True
    )
    transport.read()
    transport.load(transport.fit("cpu", lambda draws, text: None), "cpu")  # noqa: ARG005
    return transport


def clustered_points(n: int, d: int, generator: Generator) -> Tensor:
    """n points in d dimensions around two centres, far enough from the source's mean that its map moves them."""
    centre = 2.0 * torch.randint(2, (n, 1), generator=generator) - 1
    return centre + 0.5 * torch.randn(n, d, generator=generator) + 0.3


@dataclass
class Remapped:
    """A transport map with another rule: (x0, x1, g, generator) -> indices, of the potentials g that are fitted."""

    coupling: TransportMap
    rule: Callable[[Tensor, Tensor, Tensor, Generator], Tensor]
    memory: float = 1.0

    def fit(self, x1: Tensor, source: Source, generator: Generator, show: Callable[..., Any]) -> Mapping[str, Tensor]:
        """Of the coupling."""
        return self.coupling.fit(x1, source, generator, show)

    def assign(self, x0: Tensor, x1: Tensor, fitted: Mapping[str, Tensor], generator: Generator) -> Tensor:
        """By the rule."""
        return self.rule(x0.flatten(1), x1.flatten(1), potentials(fitted, x1), generator)


def potentials(fitted: Mapping[str, Tensor], x1: Tensor) -> Tensor:
    """g_j of a fitted map, float64; -inf for the copies of a point but the first."""
    return fitted["offset"] + x1.flatten(1).double().square().sum(1) / 2
