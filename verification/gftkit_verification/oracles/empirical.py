"""The exact optimum of flow matching on a finite set: the drift towards an empirical target, in chunks."""

from collections.abc import Iterator

import torch
from torch import Tensor

from gftkit.kernel.contracts import Path
from gftkit.theory import flow

CHUNK = 8_000_000
"""Numbers in a part of the data that is held in float64 at once: 64 MB."""


class EmpiricalFlow:
    """The target drift for q uniform on points y_i, x0 ~ N(0, I) and independent coupling: the memorising drift.

    Affine path: weights softmax_i(-|x - alpha y_i|^2/(2 sigma^2)) and v = sum_i weight_i (alpha' y_i + sigma' (x -
    alpha y_i)/sigma). Brownian bridge: softmax_i(-|x - t y_i|^2/(2 tau^2)) with tau^2 = (1-t)^2 + scale^2 t(1-t), and
    b = (sum_i weight_i y_i - x)/(1 - t). Both need the posterior mean of y only, so one pass over the data is made, in
    chunks, with running maxima: distances and sums are in float64, and memory doesn't grow with the set.

    Args:
        data: (n, *event), the points; kept as they are, on their device.
        path: an affine path, or a path with gamma = scale sqrt(t(1-t)) and a constant g = scale on sigma = 1 - t,
            alpha = t.

    Raises:
        ValueError: for an empty set or points that are not finite, or a path of another form.

    Reference: theory, section 4; the posterior mean is that of kernel regression (Nadaraya 1964, Watson 1964).
    """

    def __init__(self, data: Tensor, path: Path) -> None:
        if len(data) == 0 or not all(bool(torch.isfinite(part).all()) for part in chunks(data, CHUNK)):
            raise ValueError("data: wanted at least one point and finite values.")
        self.data, self.path = data, path
        self._noisy = flow.is_noisy(path)
        if self._noisy != flow.is_stochastic(path) or (self._noisy and not _is_bridge(path)):
            raise ValueError("path: wanted an affine path or the Brownian bridge, whose empirical drift is known.")

    def velocity(self, t: Tensor, x: Tensor) -> Tensor:
        """v = b - (g^2/2) grad log p_t, of x's shape and dtype; for an affine path the drift itself."""
        if not self._noisy:
            return self.drift(t, x)
        g = flow.expand(flow.diffusion(self.path, t.double()), x)
        return (self.drift(t, x).double() - g**2 / 2 * self.score(t, x).double()).to(x.dtype)

    def drift(self, t: Tensor, x: Tensor) -> Tensor:
        """b_tgt(t, x): (batch,), (batch, *event) -> (batch, *event), of x's dtype."""
        sigma, alpha, _ = self._coefficients(t, x)
        mean, at = self.posterior_mean(t, x).double(), x.double()
        if self._noisy:
            return ((mean - at) / sigma).to(x.dtype)
        sigma_rate, alpha_rate, _ = (flow.expand(value, x) for value in flow.rates(self.path, t.double()))
        return (alpha_rate * mean + sigma_rate * (at - alpha * mean) / sigma).to(x.dtype)

    def score(self, t: Tensor, x: Tensor) -> Tensor:
        """grad log p_t(x) = -(x - alpha E[y|x])/(sigma^2 + gamma^2), of x's shape and dtype."""
        sigma, alpha, gamma = self._coefficients(t, x)
        return ((alpha * self.posterior_mean(t, x).double() - x.double()) / (sigma**2 + gamma**2)).to(x.dtype)

    def posterior_mean(self, t: Tensor, x: Tensor) -> Tensor:
        """E[x1 | x_t = x], (batch, *event), of x's dtype.

        Raises:
            ValueError: for t outside [0, 1), or states of another shape than the data.
        """
        if ((t < 0) | (t >= 1)).any():
            raise ValueError(f"t: wanted values in [0, 1), got {float(t.min())} to {float(t.max())}.")
        if x.shape[1:] != self.data.shape[1:] or t.shape != x.shape[:1]:
            raise ValueError(
                f"wanted t (batch,) and x (batch, {', '.join(map(str, self.data.shape[1:]))}), got {tuple(t.shape)} "
                f"and {tuple(x.shape)}."
            )
        sigma, alpha, gamma = (value.flatten(1) for value in self._coefficients(t, x))
        variance, at = sigma**2 + gamma**2, x.flatten(1).double()
        largest = torch.full((len(x), 1), -torch.inf, dtype=torch.float64, device=x.device)
        total, summed = torch.zeros_like(largest), torch.zeros_like(at)
        for part in chunks(self.data, CHUNK, len(x)):
            points = part.flatten(1).double()
            # |x - alpha y|^2 as a sum of squares about the chunk's mean, which keeps the digits that matter near t = 1
            centre = points.mean(0)
            near, spread = at - alpha * centre, points - centre
            squares = near.square().sum(1, keepdim=True) - 2 * alpha * (near @ spread.T)
            squares = squares + alpha**2 * spread.square().sum(1)
            logs = -squares / (2 * variance)  # (batch, chunk)
            newest = torch.maximum(largest, logs.max(1, keepdim=True).values)
            weights, shrink = torch.exp(logs - newest), torch.exp(largest - newest)
            total = shrink * total + weights.sum(1, keepdim=True)
            summed = shrink * summed + weights @ points
            largest = newest
        return (summed / total).reshape(x.shape).to(x.dtype)

    def _coefficients(self, t: Tensor, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sigma, alpha, gamma) in float64, shaped to multiply x."""
        sigma, alpha, gamma = (flow.expand(value, x) for value in self.path.coefficients(t.double()))
        return sigma, alpha, gamma


def chunks(data: Tensor, numbers: int, batch: int = 1) -> Iterator[Tensor]:
    """Consecutive parts of ``data``, such that a part and its distances to a batch have at most ``numbers`` numbers."""
    rows = max(1, numbers // max(data[0].numel(), batch))
    for first in range(0, len(data), rows):
        yield data[first : first + rows]


def _is_bridge(path: Path) -> bool:
    """True for gamma^2 = g^2 t(1 - t) with constant g on the linear path."""
    t = torch.linspace(0.01, 0.99, 33, dtype=torch.float64)
    sigma, alpha, gamma = path.coefficients(t)
    g = flow.diffusion(path, t)
    of_bridge = (1 - t, t, g[:1] * torch.sqrt(t * (1 - t)))
    pairs = zip((sigma, alpha, gamma), of_bridge, strict=True)
    return bool(torch.allclose(g, g[:1])) and all(torch.allclose(one, other) for one, other in pairs)
