"""Semidiscrete optimal transport: the map from the source to a finite data set, by averaged stochastic ascent."""

import math
from collections.abc import Callable, Mapping
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Generator, Tensor

from gftkit.kernel import ConfigError

Source = Callable[[int, Generator], Tensor]

BATCH = 512
"""The least source samples of an iteration; otherwise as many as there are points, or the noise would be too large."""
PART = 4096
"""Source samples that are drawn at once, and the most of a coarse iteration."""
COARSE, FINE = 48, 64
"""Iterations at each step size on the way down, and in the first round at the size of the gaps."""
LARGEST = 4.0
"""How far a potential falls at most in a coarse iteration, in steps: a point that takes the whole batch keeps its."""
PROBES = 512
"""Source samples on which a scale is measured."""
PRECISION = 10
"""The bound over the standard error of chi^2 at mass 1/N."""
SCORES = 2**24
"""Scores in memory at once: source samples times points."""


class Semidiscrete:
    """Semidiscrete optimal transport: each x0 goes to the sample that the optimal map from the source gives it.

    The map is x -> y_j with the least |x - y_j|^2/2 - g_j, whose potentials g maximise the concave

        F(g) = E min_j (|x - y_j|^2/2 - g_j) + mean(g),  dF/dg_j = 1/N - P(x goes to y_j).

    At the maximum each sample receives the mass 1/N, and the pairs cost W2^2 of the source and the data set: there is
    no bias of a minibatch, (t, x_t) determines the pair, and the exact flow is straight (theory, T22). The potentials
    are fitted by stochastic ascent with averaging before the first step. The fit ends when

        chi2 = N sum_j (P(x goes to y_j) - 1/N)^2

    is below its bound by two standard errors, measured without bias on fresh draws. About N/chi2 draws are needed in
    many dimensions, and many more on a line or in the plane; each draw costs N d operations, in the fit and in every
    step of training. Equal samples share one potential and are chosen among at random.

    With labels, each has a map of its own; other conditions are refused, and so are data that are a law or come with
    x0. The source may be any that can be drawn. The noise chooses the datum: an epoch isn't a permutation of the data.

    Args:
        chi2: bound on the masses' relative variance: 0.01 is 10 % of each mass, in the root mean square.
        draws: source samples that may be used before the fit is given up.
        memory: the most that the data may take, as float32, in GB.

    Raises:
        ConfigError: from the fit, where the bound isn't reached.

    Reference: Kitagawa, Merigot, Thibert (2019), Convergence of a Newton algorithm for semi-discrete optimal transport,
    sections 1 and 2, arXiv:1603.05579; Genevay et al. (2016), section 4, arXiv:1605.08527; for flow matching
    arXiv:2509.25519.

    Example:
        >>> import gftkit, torch
        >>> coupling = gftkit.load().create("coupling", "semidiscrete")
        >>> x1 = torch.tensor([[-3.0], [3.0]])
        >>> source = lambda n, generator: torch.randn(n, 1, generator=generator)
        >>> fitted = coupling.fit(x1, source, torch.Generator().manual_seed(0), lambda draws, text: None)
        >>> coupling.assign(torch.tensor([[-0.5], [0.5]]), x1, fitted, torch.Generator())
        tensor([0, 1])
    """

    def __init__(
        self,
        chi2: Annotated[float, Field(gt=0, le=1)] = 0.01,
        draws: Annotated[int, Field(gt=0)] = 50_000_000,
        memory: Annotated[float, Field(gt=0)] = 4.0,
    ) -> None:
        self.chi2, self.draws, self.memory = chi2, draws, memory

    def fit(
        self, x1: Tensor, source: Source, generator: Generator, show: Callable[[int, str], Any]
    ) -> Mapping[str, Tensor]:
        """The map: for each sample its ``offset`` g_j - |y_j|^2/2 and its copies, and the masses' chi^2."""
        copies = _copies(x1)
        ascent = _Ascent(x1, copies, source, generator)
        # One point has all the mass: nothing is to fit, or to measure.
        measured, error = (math.inf, 0.0) if len(ascent.points) > 1 else (0.0, 0.0)
        coarse, step, length = True, ascent.spread(), COARSE
        while measured + 2 * error > self.chi2:
            if ascent.drawn >= self.draws:
                raise ConfigError(
                    f"coupling 'semidiscrete': wanted masses with chi2 at most {self.chi2:g}, got {measured:.3g} ± "
                    f"{error:.1g} after {ascent.drawn:,} draws from the source. Raise coupling.chi2 or coupling.draws."
                )
            ascent.round(step, length, coarse=coarse)
            gap = ascent.gap()
            if coarse and step > gap:
                step /= 2
                show(ascent.drawn, "")
                continue
            # From here on rounds are twice as long each, at smaller steps: their means converge to the maximum.
            length, coarse = FINE if coarse else 2 * length, False
            step = gap * math.sqrt(FINE / length)
            measured, error = ascent.chi2(self.chi2 / PRECISION)
            show(ascent.drawn, f"chi2 {measured:.3g}")
        numbers = {"chi2": measured, "chi2_stderr": error, "draws": float(ascent.drawn)}
        shown = {name: torch.tensor(value, dtype=torch.float64) for name, value in numbers.items()}
        return {"offset": ascent.offset(len(x1)).cpu(), **copies, **shown}

    def assign(self, x0: Tensor, x1: Tensor, fitted: Mapping[str, Tensor], generator: Generator) -> Tensor:
        """The cell of each x0, and of equal samples a random one."""
        cell = _cells(x0.flatten(1), x1.flatten(1), fitted["offset"].to(x1.device))
        order, first, count = (fitted[name].to(x1.device) for name in ("order", "first", "count"))
        which = torch.rand(len(cell), generator=generator, dtype=torch.float64).to(x1.device) * count[cell]
        return order[first[cell] + which.long()]


class _Ascent:
    """Potentials of different points, moved by stochastic steps; rounds of steps end in their mean.

    Args:
        x1: data, (n, *event).
        copies: which of them are equal; see ``_copies``.
        source: draws x0.
        generator: for it.
    """

    def __init__(self, x1: Tensor, copies: Mapping[str, Tensor], source: Source, generator: Generator) -> None:
        first = copies["first"][copies["order"]] == torch.arange(len(x1))
        self._rows = copies["order"][first].sort().values.to(x1.device)  # of each different point, the first copy
        y = x1.flatten(1)
        self.points = y if len(self._rows) == len(y) else y[self._rows]
        self._mass = copies["count"].to(x1.device)[self._rows].double() / len(x1)
        self._source, self._generator = source, generator
        # The nearest point takes each x0 at first. What is the same for all, as |mean|^2, is left out for its digits.
        self._offset = -(self.points - self.points.mean(0)).double().square().sum(1) / 2
        self._batch = max(BATCH, len(self.points))
        self.drawn = 0

    def round(self, step: float, length: int, *, coarse: bool) -> None:
        """So many steps of this size from where the last round ended, to the mean of the last two thirds."""
        offset, mean = self._offset, torch.zeros_like(self._offset)
        batch = min(self._batch, PART) if coarse else self._batch
        most = LARGEST * max(1.0, len(self.points) / batch)
        for k in range(length):
            # dF/dg_j in units of the mass that the point shall have: 1 where it receives nothing.
            ascent = 1 - self._counts(batch) / (batch * self._mass)
            offset = offset + step * (ascent.clamp(min=-most) if coarse else ascent)
            self._offset = offset
            if k >= length // 3:
                mean += offset
        self._offset = mean / (length - length // 3)
        self._offset -= self._offset.mean()

    def spread(self) -> float:
        """The mean over x0 of the standard deviation of x0.y_j over the points: the scale of first steps."""
        scores = self._draw(PROBES) @ self.points.T
        return float(scores.std(1, correction=0).mean())

    def gap(self) -> float:
        """The mean lead of a point over the next.

        1 over the density of the lead at 0, if that is exponential, and so the step of a Newton method that neglects
        what the points have to do with each other.
        """
        rows = max(1, SCORES // len(self.points))
        leads = [
            torch.addmm(self._offset.float(), part, self.points.T).topk(2, dim=1).values
            for part in torch.split(self._draw(PROBES), rows)
        ]
        return float(torch.cat([lead[:, 0] - lead[:, 1] for lead in leads]).double().mean())

    def chi2(self, error: float) -> tuple[float, float]:
        """N sum_j (p_j - 1/N)^2 over the data, without bias, and its standard error: the one given, where it is 0.

        C_j of M draws go to a point: E C_j (C_j - 1) = M (M - 1) p_j^2.
        """
        m = max(10_000, math.ceil(math.sqrt(2 * len(self.points)) / error))
        counts = self._counts(m)
        value = float((counts * (counts - 1) / self._mass).sum() / (m * (m - 1.0))) - 1
        return value, math.sqrt(2 * len(self.points) / m**2 + 4 * max(value, 0.0) / m)

    def offset(self, n: int) -> Tensor:
        """Of each of n samples; -inf for all copies of a point but its first, which stands for them."""
        return torch.full((n,), -math.inf, dtype=torch.float64, device=self._offset.device).index_copy(
            0, self._rows, self._offset
        )

    def _counts(self, n: int) -> Tensor:
        """How many of n draws go to each point, float64."""
        counts = torch.zeros(len(self.points), dtype=torch.int64, device=self.points.device)
        for first in range(0, n, PART):
            cells = _cells(self._draw(min(PART, n - first)), self.points, self._offset)
            counts += torch.bincount(cells, minlength=len(counts))
        return counts.double()

    def _draw(self, n: int) -> Tensor:
        self.drawn += n
        return self._source(n, self._generator).flatten(1).to(self.points.device)


def _cells(x: Tensor, y: Tensor, offset: Tensor) -> Tensor:
    """The y_j with the largest x.y_j + offset_j, for each x: the least |x - y_j|^2/2 - g_j, (n, d), (N, d) -> (n,)."""
    rows, offset = max(1, SCORES // len(y)), offset.float()
    parts = [torch.addmm(offset, part, y.T).argmax(1) for part in torch.split(x, rows)]
    return torch.cat(parts) if parts else torch.empty(0, dtype=torch.int64, device=x.device)


def _copies(x1: Tensor) -> dict[str, Tensor]:
    """Equal samples: an ``order`` of all in which they are neighbours; of each their ``first`` place and ``count``."""
    _, cell, count = torch.unique(x1.flatten(1).cpu(), dim=0, return_inverse=True, return_counts=True)
    return {"order": cell.argsort(stable=True), "first": (count.cumsum(0) - count)[cell], "count": count[cell]}
