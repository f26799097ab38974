"""Noise scales g(t) for stochastic sampling of a flow that was trained as a velocity."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

import gftkit

Scale = Annotated[float, Field(ge=0)]


class ConstantNoise:
    """g(t) = scale.

    Args:
        scale: g.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("diffusion", "constant", scale=0.5)(torch.tensor([0.0, 1.0]))
        tensor([0.5000, 0.5000])
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        self.scale = scale

    def __call__(self, t: Tensor) -> Tensor:
        """g at t, of t's shape."""
        return torch.full_like(t, self.scale)


class LinearNoise:
    """g(t) = scale (1 - t): most noise at the source, none at the data.

    Args:
        scale: g(0).

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("diffusion", "linear")(torch.tensor([0.0, 0.75]))
        tensor([1.0000, 0.2500])
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        self.scale = scale

    def __call__(self, t: Tensor) -> Tensor:
        """g at t, of t's shape."""
        return self.scale * (1 - t)


class SqrtLinear:
    """g(t) = scale sqrt(1 - t): a variance that falls linearly. The drift then stays finite up to t = 1.

    With scale sqrt(2) it is the choice g^2 = 2 sigma of the reference, on the linear path.

    Args:
        scale: g(0).

    Reference: Ma et al. (2024), SiT, section 2.3 and table 3, arXiv:2401.08740.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("diffusion", "sqrt-linear")(torch.tensor([0.0, 0.75]))
        tensor([1.0000, 0.5000])
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        self.scale = scale

    def __call__(self, t: Tensor) -> Tensor:
        """g at t, of t's shape."""
        return self.scale * torch.sqrt((1 - t).clamp(min=0))  # a t above 1 by round-off would give nan


class Sine:
    """g(t) = scale sin(pi t): none at both ends.

    Args:
        scale: g(1/2).

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("diffusion", "sine")(torch.tensor([0.0, 0.5]))
        tensor([0., 1.])
    """

    def __init__(self, scale: Scale = 1.0) -> None:
        self.scale = scale

    def __call__(self, t: Tensor) -> Tensor:
        """g at t, of t's shape."""
        return self.scale * torch.sin(math.pi * t).clamp(min=0)


@gftkit.hookimpl
def gftkit_diffusions() -> dict[str, type]:
    """The built-in noise scales."""
    return {"constant": ConstantNoise, "linear": LinearNoise, "sine": Sine, "sqrt-linear": SqrtLinear}
