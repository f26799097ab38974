"""Smooth random fields to draw: many values of few degrees of freedom, with moments in closed form."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.kernel import Batch


class RandomFields:
    """Stationary random fields on a periodic square grid: events (1, size, size), no range, no labels.

    z is a Gaussian field of mean 0 and variance 1 whose spectrum is proportional to exp(-(2 pi l |k|/size)^2/2), k the
    whole wave numbers: its correlation is nearly exp(-|r|^2/(2 l^2)) at r pixels, where l is far below ``size``.

    - **gaussian**: mean + std z.
    - **lognormal**: mean + std (exp(z) - e^(1/2))/(e^2 - e)^(1/2): of the same mean and standard deviation, with
      peaks. The correlation c of z becomes (e^c - 1)/(e - 1).

    Known to oracles: ``correlation``, (size, size) of float64, that of z between pixel (0, 0) and every other.

    Args:
        law: one of the two.
        size: side in pixels.
        length: l, the correlation length in pixels.
        mean: of every value.
        std: standard deviation of every value.

    Reference: Lang and Potthoff (2011), Fast simulation of Gaussian random fields, Monte Carlo Methods and
    Applications 17(3): white noise filtered by the root of the spectrum.

    Example:
        >>> import gftkit, torch
        >>> data = gftkit.load().create("dataset", "random-fields", law="lognormal", length=2.0)
        >>> data.draw(3, torch.Generator().manual_seed(0)).x1.shape
        torch.Size([3, 1, 16, 16])
    """

    range: tuple[float, float] | None = None

    def __init__(
        self,
        law: Literal["gaussian", "lognormal"] = "gaussian",
        size: Annotated[int, Field(ge=4)] = 16,
        length: Annotated[float, Field(gt=0)] = 3.0,
        mean: float = 0.0,
        std: Annotated[float, Field(gt=0)] = 1.0,
    ) -> None:
        self.law, self.mean, self.std = law, mean, std
        self.event_shape = (1, size, size)
        wave = torch.fft.fftfreq(size, dtype=torch.float64)  # k/size
        squares = wave[:, None].square() + wave.square()
        spectrum = (-((2 * math.pi * length) ** 2) * squares / 2).exp()
        spectrum = spectrum * (spectrum.numel() / spectrum.sum())  # variance 1: the spectrum's mean is 1
        self.correlation = torch.fft.ifft2(spectrum).real
        self._filter = spectrum.sqrt()

    def draw(self, n: int, generator: Generator) -> Batch:
        """n fields, (n, 1, size, size)."""
        # The transform refuses n = 0.
        white = torch.randn(max(n, 1), *self.event_shape[1:], generator=generator, dtype=torch.float32)
        z: Tensor = torch.fft.ifft2(torch.fft.fft2(white.double()) * self._filter).real
        if self.law == "lognormal":
            z = (z.exp() - math.exp(0.5)) / math.sqrt(math.exp(2) - math.e)
        return Batch((self.mean + self.std * z).float()[:n, None])
