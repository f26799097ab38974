"""One-dimensional signals to draw: many values, few degrees of freedom, and laws far from each other."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.kernel import Batch

BEAT = ((-0.20, 0.030, 0.15), (-0.04, 0.010, -0.15), (0.0, 0.014, 1.0), (0.04, 0.010, -0.25), (0.25, 0.050, 0.30))
"""The waves P, Q, R, S and T of a heart beat: (place, width, height), in periods, of Gaussian bumps."""


class Signals:
    """Signals on times s in [0, 1): events (1, length), no range, no labels.

    - **sines**: x(s) = sum over k = 1 to 4 of sin(2 pi k s + phase_k)/k, phases uniform. Mean 0, covariance
      sum_k cos(2 pi k (s - s'))/(2 k^2); the law lives on a torus of four dimensions.
    - **chirps**: sin(2 pi (f s + (g - f) s^2/2) + phase) times exp(-(s - c)^2/(2 w^2)), with f in [1, 3], g in [5, 9],
      c in [0.3, 0.7], w in [0.15, 0.3] and the phase uniform. Mean 0.
    - **pulses**: heart beats of height h in [1.5, 2.5] every p of [0.3, 0.5], their place uniform; a beat has the five
      waves of an electrocardiogram, and the narrowest are 0.01 p wide: on 64 values they are spikes. Every value has
      the same mean.

    Signals are multiplied by ``amplitude``; then independent noise N(0, noise^2) is added to each value.

    Args:
        law: one of the three.
        length: values of a signal, at times k/length.
        amplitude: what signals are multiplied by.
        noise: standard deviation of the noise.

    Reference: McSharry, Clifford, Tarassenko and Smith (2003), A dynamical model for generating synthetic
    electrocardiogram signals, IEEE Transactions on Biomedical Engineering 50(3), for a beat's waves, roughly.

    Example:
        >>> import gftkit, torch
        >>> data = gftkit.load().create("dataset", "signals", law="pulses")
        >>> data.draw(3, torch.Generator().manual_seed(0)).x1.shape
        torch.Size([3, 1, 64])
    """

    range: tuple[float, float] | None = None

    def __init__(
        self,
        law: Literal["sines", "chirps", "pulses"] = "sines",
        length: Annotated[int, Field(ge=8)] = 64,
        amplitude: Annotated[float, Field(gt=0)] = 1.0,
        noise: Annotated[float, Field(ge=0)] = 0.02,
    ) -> None:
        self.law, self.amplitude, self.noise = law, amplitude, noise
        self.event_shape = (1, length)
        self._times = torch.arange(length, dtype=torch.float32) / length
        self._clean = {"sines": self._sines, "chirps": self._chirps, "pulses": self._pulses}[law]

    def draw(self, n: int, generator: Generator) -> Batch:
        """n signals, (n, 1, length)."""
        clean = self.amplitude * self._clean(n, generator)
        noise = torch.randn(clean.shape, generator=generator, dtype=torch.float32)
        return Batch((clean + self.noise * noise)[:, None])

    def _sines(self, n: int, generator: Generator) -> Tensor:
        orders = torch.arange(1, 5, dtype=torch.float32)
        phases = _uniform(n, 0.0, 2 * math.pi, generator, 4)
        waves = (2 * math.pi * orders[:, None] * self._times + phases[..., None]).sin()  # (n, 4, length)
        return (waves / orders[:, None]).sum(1)

    def _chirps(self, n: int, generator: Generator) -> Tensor:
        ranges = ((1.0, 3.0), (5.0, 9.0), (0.0, 2 * math.pi), (0.3, 0.7), (0.15, 0.3))
        first, last, phase, centre, width = (_uniform(n, low, high, generator) for low, high in ranges)
        s = self._times
        turns = first * s + (last - first) * s.square() / 2
        return (2 * math.pi * turns + phase).sin() * (-((s - centre) ** 2) / (2 * width**2)).exp()

    def _pulses(self, n: int, generator: Generator) -> Tensor:
        period, shift, height = (
            _uniform(n, low, high, generator) for low, high in ((0.3, 0.5), (0.0, 1.0), (1.5, 2.5))
        )
        turns = self._times / period - shift  # (n, length), in periods
        clean = torch.zeros_like(turns)
        for place, width, tall in BEAT:
            apart = torch.remainder(turns - place + 0.5, 1) - 0.5  # from the nearest beat
            clean = clean + tall * (-(apart**2) / (2 * width**2)).exp()
        return height * clean


def _uniform(n: int, low: float, high: float, generator: Generator, width: int = 1) -> Tensor:
    """(n, width) of the uniform law on [low, high)."""
    return low + (high - low) * torch.rand(n, width, generator=generator, dtype=torch.float32)
