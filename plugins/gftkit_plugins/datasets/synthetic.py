"""Laws to draw from, with known moments."""

import math
from typing import Annotated

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.kernel import Batch

Positive = Annotated[float, Field(gt=0)]
Numbers = Annotated[list[float], Field(min_length=1)]
EventShape = Annotated[tuple[Annotated[int, Field(gt=0)], ...], Field(min_length=1)]

_SYMMETRY = 1e-9
"""Largest |C - C^T| of a covariance, relative to its largest entry: rounding in a written-out matrix."""


class Gaussian:
    """A normal law N(mean, std^2 I) or N(mean, covariance): any event shape, no range, no labels.

    Known to oracles: ``mean``, (d,), and ``covariance``, (d, d) or None for ``std^2 I``, both float64, where d is the
    number of values of an event and events are flattened row by row.

    Args:
        event_shape: shape of one sample; as a source, that of the data.
        mean: of every value, or d numbers.
        std: standard deviation of every value, 1 by default; not together with ``covariance``.
        covariance: d rows of d numbers, symmetric and positive definite.

    Raises:
        ValueError: for a mean or covariance of another size, a covariance that isn't symmetric and positive definite,
            or ``std`` beside ``covariance``.

    Example:
        >>> import gftkit, torch
        >>> law = gftkit.load().create("dataset", "gaussian", event_shape=(2,), covariance=[[2.0, 1.0], [1.0, 2.0]])
        >>> law.draw(3, torch.Generator().manual_seed(0)).x1.shape
        torch.Size([3, 2])
    """

    range: tuple[float, float] | None = None

    def __init__(
        self,
        event_shape: EventShape,
        mean: float | list[float] = 0.0,
        std: Positive | None = None,
        covariance: list[list[float]] | None = None,
    ) -> None:
        self.event_shape = tuple(event_shape)
        size = math.prod(self.event_shape)
        if isinstance(mean, list) and len(mean) != size:
            raise ValueError(
                f"mean: wanted one number, or {size} for event_shape {list(self.event_shape)}, got {len(mean)}."
            )
        if std is not None and covariance is not None:
            raise ValueError("std and covariance both set the spread. Give one of them.")
        self.mean = torch.tensor(mean, dtype=torch.float64).expand(size)
        self.std = 1.0 if std is None else std
        self.covariance = None if covariance is None else _covariance(covariance, size)
        self._root = None if self.covariance is None else torch.linalg.cholesky(self.covariance)

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples, (n, *event)."""
        # float32 whatever torch's default type is: one seed gives the same samples.
        noise = torch.randn(n, self.mean.numel(), generator=generator, dtype=torch.float32)  # (n, d)
        spread = noise * self.std if self._root is None else noise @ self._root.T.to(torch.float32)
        return Batch((self.mean.to(torch.float32) + spread).reshape(n, *self.event_shape))

    def log_density(self, x: Tensor) -> Tensor:
        """log of the density at each event, (n, *event) -> (n,) of float64."""
        apart = x.flatten(1).double() - self.mean.to(x.device)
        if self._root is None:
            return _log_normal(apart, self.std)
        root = self._root.to(x.device)
        whitened = torch.linalg.solve_triangular(root, apart.mT, upper=False).mT
        return _log_normal(whitened, 1.0) - root.diagonal().log().sum()


class GaussianMixture:
    """A mixture of normal laws N(means[k], std^2 I) with probabilities weights[k]; labels are the components.

    By default eight on a circle: means[k] = radius (cos(2 pi k/8), sin(2 pi k/8)). Events are (d,), without a range.
    Known to oracles: ``means``, (components, d), ``weights``, (components,), both float64, and ``std``.

    Args:
        means: one list of d numbers for each component.
        std: standard deviation of every value inside a component.
        weights: one positive number for each component, scaled to sum to 1; equal by default.
        radius: of the default circle, 2 by default; not together with ``means``.

    Raises:
        ValueError: for means of different lengths, another number of weights than of means, or ``radius`` beside
            ``means``.

    Example:
        >>> import gftkit, torch
        >>> law = gftkit.load().create("dataset", "gaussian-mixture", means=[[-1.0], [1.0]], weights=[1, 3])
        >>> law.draw(4, torch.Generator().manual_seed(0)).x1.shape, law.classes, law.weights.tolist()
        (torch.Size([4, 1]), 2, [0.25, 0.75])
    """

    range: tuple[float, float] | None = None

    def __init__(
        self,
        means: Annotated[list[Numbers], Field(min_length=1)] | None = None,
        std: Positive = 0.2,
        weights: Annotated[list[Positive], Field(min_length=1)] | None = None,
        radius: Positive | None = None,
    ) -> None:
        if means is not None and radius is not None:
            raise ValueError("radius is an option of the default circle. Give radius or means, not both.")
        if means is None:
            angles = torch.arange(8, dtype=torch.float64) * (2 * math.pi / 8)
            self.means = (2.0 if radius is None else radius) * torch.stack([angles.cos(), angles.sin()], 1)
        else:
            if len({len(row) for row in means}) > 1:
                raise ValueError(f"means: wanted rows of one length, got lengths {[len(row) for row in means]}.")
            self.means = torch.tensor(means, dtype=torch.float64)
        self.classes, size = self.means.shape
        if weights is not None and len(weights) != self.classes:
            raise ValueError(f"weights: wanted {self.classes}, one for each mean, got {len(weights)}.")
        self.weights = torch.tensor(weights or [1.0] * self.classes, dtype=torch.float64)
        self.weights = self.weights / self.weights.sum()
        self.std = std
        self.event_shape = (size,)

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples, (n, d), with their components as labels."""
        # multinomial refuses n = 0
        label = torch.multinomial(self.weights, max(n, 1), replacement=True, generator=generator)[:n]
        noise = torch.randn(n, *self.event_shape, generator=generator, dtype=torch.float32)
        return Batch(self.means[label].to(torch.float32) + self.std * noise, label)

    def log_density(self, x: Tensor) -> Tensor:
        """log of the density at each event, (n, d) -> (n,) of float64."""
        apart = x.double()[:, None] - self.means.to(x.device)
        return torch.logsumexp(_log_normal(apart, self.std) + self.weights.to(x.device).log(), dim=1)


def _log_normal(apart: Tensor, std: float) -> Tensor:
    """log N(apart; 0, std^2 I), over the last dimension."""
    return -((apart / std) ** 2 / 2 + math.log(std) + math.log(2 * math.pi) / 2).sum(-1)


class TwoMoons:
    """Two interleaving half circles in the plane, labels 0 and 1 with probability 1/2 each: events (2,), no range.

    With a uniform on [0, pi] and e ~ N(0, I): x = (cos a, sin a) + noise e for label 0, and x = (1 - cos a,
    1/2 - sin a) + noise e for label 1. Mean (1/2, 1/4); variances 3/4 + noise^2 and 9/16 - 1/pi + noise^2, covariance
    1/8 - 1/pi. The half circles have radius 1 and nothing is centred or scaled.

    Args:
        noise: standard deviation of the noise on each coordinate.

    Reference: ``make_moons`` of scikit-learn, which spaces the angles evenly where this draws them.

    Example:
        >>> import gftkit, torch
        >>> law = gftkit.load().create("dataset", "two-moons", noise=0.0)
        >>> batch = law.draw(100, torch.Generator().manual_seed(0))
        >>> bool(torch.allclose(batch.x1[batch.label == 0].norm(dim=1), torch.tensor(1.0)))
        True
    """

    event_shape: tuple[int, ...] = (2,)
    range: tuple[float, float] | None = None
    classes = 2

    def __init__(self, noise: Annotated[float, Field(ge=0)] = 0.05) -> None:
        self.noise = noise

    def draw(self, n: int, generator: Generator) -> Batch:
        """n samples, (n, 2), with labels."""
        label = torch.randint(2, (n,), generator=generator)
        angle = math.pi * torch.rand(n, generator=generator, dtype=torch.float32)
        upper = torch.stack([angle.cos(), angle.sin()], 1)  # (n, 2)
        lower = torch.tensor([1.0, 0.5], dtype=torch.float32) - upper
        clean = torch.where(label[:, None] == 0, upper, lower)
        return Batch(clean + self.noise * torch.randn(n, 2, generator=generator, dtype=torch.float32), label)


def _covariance(rows: list[list[float]], size: int) -> Tensor:
    """(size, size) of float64, checked."""
    lengths = {len(row) for row in rows}
    if len(rows) != size or lengths != {size}:
        raise ValueError(
            f"covariance: wanted {size} rows of {size} numbers, one for each value of an event, got {len(rows)} rows "
            f"of {' and '.join(map(str, sorted(lengths))) or 0}."
        )
    matrix = torch.tensor(rows, dtype=torch.float64)
    gap = (matrix - matrix.T).abs()
    if gap.max() > _SYMMETRY * matrix.abs().max():
        i, j = divmod(int(gap.argmax()), size)
        raise ValueError(
            f"covariance: wanted a symmetric matrix, got {matrix[i, j]:g} in row {i}, column {j} and {matrix[j, i]:g} "
            f"in row {j}, column {i}. Make them equal."
        )
    matrix = (matrix + matrix.T) / 2
    if torch.linalg.cholesky_ex(matrix).info > 0:
        low = float(torch.linalg.eigvalsh(matrix).min())
        raise ValueError(
            f"covariance: wanted a positive definite matrix, got one with smallest eigenvalue {low:.3g}. Add a little "
            f"to its diagonal."
        )
    return matrix
