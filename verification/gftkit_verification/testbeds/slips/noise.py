"""Flows sampled with noise of one's choice, likely slips of it, and noise of unit vectors."""

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Generator, Tensor

from gftkit.kernel.contracts import Drift, NoiseScale, Path
from gftkit.sampling.scheme import Scheme
from gftkit.sampling.stochastic import StochasticPath
from gftkit.theory import flow

Equation = tuple[Drift, Path]
"""What is integrated: a drift, and a path of its noise scale."""


@dataclass(frozen=True)
class Sampling:
    """A scheme with a noise scale, and the equation that it makes of a velocity.

    Attributes:
        scheme: the scheme.
        change: (velocity, path, scheme's drift, scheme's path, g) -> what is integrated.
    """

    scheme: Scheme
    change: Callable[[Drift, Path, Drift, Path, NoiseScale], Equation] = lambda v, path, b, noisy, g: (b, noisy)  # noqa: ARG005

    def equation(self, velocity: Drift, path: Path) -> Equation:
        """The drift and the path that are integrated."""
        assert self.scheme.diffusion is not None
        return self.change(velocity, path, *self.scheme.equation(velocity, path), self.scheme.diffusion)


def _mixed(weights: Callable[[Tensor, Tensor, Tensor], Tensor]) -> Callable[..., Equation]:
    """The drift made otherwise of velocity, the SDE's drift and g."""

    def change(v: Drift, path: Path, b: Drift, noisy: Path, g: NoiseScale) -> Equation:  # noqa: ARG001
        def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
            return weights(v(t, x, **conditions), b(t, x, **conditions), flow.expand(g(t), x))

        return drift, noisy

    return change


def _late(v: Drift, path: Path, b: Drift, noisy: Path, g: NoiseScale) -> Equation:  # noqa: ARG001
    """The score of the time 0.9 t."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        velocity = v(t, x, **conditions)
        return velocity + flow.expand(g(t) ** 2 / 2, x) * flow.affine_score(path, 0.9 * t, x, velocity)

    return drift, noisy


class CutPath(StochasticPath):
    """The sampler's path, as if t_end were the end."""

    final_step = "mean"


def without_closing_step(v: Drift, path: Path, b: Drift, noisy: Path, g: NoiseScale) -> Equation:  # noqa: ARG001
    """Nothing moves in the closing step."""

    def drift(t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        return b(t, x, **conditions) * (t < flow.t_end(noisy) - 1e-9)[:, None]

    return drift, CutPath(path, g)


def no_noise(t: Tensor) -> Tensor:
    """No noise."""
    return torch.zeros_like(t)


SLIPS: dict[str, Callable[..., Equation]] = {
    "sign of the score": _mixed(lambda v, b, g: 2 * v - b),  # noqa: ARG005
    "factor 1/2 forgotten": _mixed(lambda v, b, g: 2 * b - v),  # noqa: ARG005
    "g for g^2": _mixed(lambda v, b, g: v + (b - v) / g.clamp(min=1e-6)),
    "velocity in place of the drift": lambda v, path, b, noisy, g: (v, noisy),  # noqa: ARG005
    "noise left out": lambda v, path, b, noisy, g: (b, StochasticPath(path, no_noise)),  # noqa: ARG005
    "score of another time": _late,
}


class UnitNoise:
    """Noise that gives unit vectors: the states are affine in it, and one run gives all coefficients.

    Args:
        before: rows without noise.
        d: dimension.
    """

    device = torch.device("cpu")

    def __init__(self, before: int, d: int) -> None:
        self._before, self._d, self._taken = before, d, 0

    def begin(self, first: int, count: int) -> None:  # noqa: ARG002
        """Start at the first step."""
        self._taken = 0

    def normal(self, x: Tensor) -> Tensor:
        """The next step's, of x's shape."""
        noise = torch.zeros_like(x)
        at = self._before + self._taken * self._d
        noise[at : at + self._d] = torch.eye(self._d, dtype=x.dtype)
        self._taken += 1
        return noise

    def generator(self) -> Generator:
        """Not used."""
        raise NotImplementedError
