"""Wrong transport maps, for claims to reject."""

import math
from collections.abc import Mapping

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import TransportMap
from gftkit_verification.testbeds.problems.point_sets import Remapped
from gftkit_verification.testbeds.slips.couplings import least_assignment

BATCH = 32
"""Pairs of a minibatch."""


def _half_squares(x0: Tensor, x1: Tensor) -> Tensor:
    return torch.cdist(x0.double(), x1.double()).square() / 2


def _nearest(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return _half_squares(x0, x1).argmin(1)


def _wrong_sign(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return (_half_squares(x0, x1) + torch.where(g > -math.inf, g - g[g > -math.inf].mean(), math.inf)).argmin(1)


def _no_half(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return (2 * _half_squares(x0, x1) - g).argmin(1)


def _distance(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return (_half_squares(x0, x1).mul(2).sqrt() - g).argmin(1)


def _random(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    return torch.randint(len(x1), (len(x0),), generator=generator)


def _minibatch(x0: Tensor, x1: Tensor, g: Tensor, generator: Generator) -> Tensor:  # noqa: ARG001
    """Minibatch optimal transport to data that are drawn at random."""
    parts = []
    for part in torch.split(x0, BATCH):
        drawn = torch.randint(len(x1), (len(part),), generator=generator)
        parts.append(drawn[least_assignment(_half_squares(part, x1[drawn]))])
    return torch.cat(parts)


def maps_without_potentials(coupling: TransportMap) -> Mapping[str, TransportMap]:
    """Maps whose pairs aren't those of any potentials."""
    rules = {"random assignment": _random, "minibatch optimal transport": _minibatch}
    return {name: Remapped(coupling, rule) for name, rule in rules.items()}


def wrong_maps(coupling: TransportMap) -> Mapping[str, TransportMap]:
    """Maps by wrong potentials, by another cost, and by none."""
    rules = {
        "sign of the potentials": _wrong_sign,
        "no factor 1/2": _no_half,
        "distance for half its square": _distance,
        "nearest point": _nearest,
    }
    return {name: Remapped(coupling, rule) for name, rule in rules.items()} | dict(maps_without_potentials(coupling))
