"""The law of flow time t: how a run draws t, and what a law must fulfil before a run draws by it.

An objective integrates over flow time with the weight w(t) p(t), p the density of the law: norms and monitors draw by
the same law.
"""

import numpy as np
import torch
from torch import Tensor

from gftkit.kernel.contracts import TimeLaw
from gftkit.kernel.errors import ConfigError

PARTS = 256
"""Equal parts of (0, 1), between whose quantiles the density is integrated."""
HALVINGS = 40
"""Times that the outermost parts are halved towards 0 and 1, where a density may be infinite."""
NODES = 16
"""Nodes of Gauss-Legendre quadrature between two quantiles."""
TOLERANCE = 1e-3
"""Largest error of the distribution function that passes before a run: in probability, without a unit."""


def scaled_times(law: TimeLaw, t_end: float, u: Tensor) -> Tensor:
    """Flow times of a law, scaled onto [0, t_end], from uniform numbers.

    Args:
        law: on [0, 1].
        t_end: the largest time that is trained on, in (0, 1].
        u: uniform in [0, 1), (n,).

    Example:
        >>> import gftkit
        >>> scaled_times(gftkit.load().create("time", "uniform"), 0.5, torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.2500])
    """
    return t_end * law.quantile(u)


def levels() -> Tensor:
    """Probabilities at which a law is checked, (n,), increasing from 0 to below 1: denser towards both ends."""
    inner = torch.arange(1, PARTS, dtype=torch.float64) / PARTS
    low = 0.5 ** torch.arange(HALVINGS, 0, -1, dtype=torch.float64) / PARTS
    return torch.cat([torch.zeros(1, dtype=torch.float64), low, inner, 1 - low.flip(0)])


def distribution_error(law: TimeLaw) -> float:
    """The largest |F(quantile(u)) - u|, F the integral of the density; at u = 1 that is how far it is from 1.

    Between two quantiles the density is integrated by Gauss-Legendre quadrature, so the nodes lie where the law's mass
    is. It is round-off for a smooth density, and up to about 1e-4 where a density has corners or no bound.

    Example:
        >>> import gftkit
        >>> distribution_error(gftkit.load().create("time", "logit-normal", mean=0.5)) < 1e-9
        True
    """
    u = levels()
    ends = torch.tensor([0.0, 1.0], dtype=torch.float64)
    edges = torch.cat([ends[:1], law.quantile(u), ends[1:]])
    nodes, weights = (torch.from_numpy(values) for values in np.polynomial.legendre.leggauss(NODES))
    width = edges.diff()
    t = edges[:-1, None] + (nodes + 1) / 2 * width[:, None]
    # Where two quantiles agree to the last digit there is no room for a node inside (0, 1).
    inside = (t > 0) & (t < 1)
    values = torch.zeros_like(t)
    values[inside] = law.density(t[inside])
    mass = (values @ weights) * width / 2
    return float((mass.cumsum(0) - torch.cat([u, ends[1:]])).abs().max())


def check_time_law(law: TimeLaw, where: str) -> None:
    """Refuse a law that doesn't stay in [0, 1], or whose density isn't that of its quantiles.

    Raises:
        ConfigError: for quantiles that aren't finite, aren't in [0, 1], fall, or aren't of the shape and type of their
            probabilities; for a density that is negative or not finite inside (0, 1); for one that isn't normalised,
            or is another law's.
    """
    u = levels()
    for dtype in (torch.float32, torch.float64):
        # In float32 a probability may round up to 1, which torch.rand never gives.
        _check_quantiles(law, u.to(dtype).clamp(max=1 - torch.finfo(dtype).eps / 2), where)
    t = (torch.arange(PARTS, dtype=torch.float64) + 0.5) / PARTS
    density = law.density(t)
    _check_shape(density, t, f"{where}: density")
    bad = ~(torch.isfinite(density) & (density >= 0))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ConfigError(
            f"{where}: wanted a finite density >= 0 inside (0, 1), got {float(density[first]):.4g} at flow time "
            f"{float(t[first]):.3f}. Choose another law of t, or other options of it."
        )
    error = distribution_error(law)
    if not error <= TOLERANCE:
        raise ConfigError(
            f"{where}: wanted a density with integral 1 whose quantiles are those of the law; its distribution "
            f"function is off by {error:.2g}, and at most {TOLERANCE:g} passes. Correct `density` or `quantile`, or "
            f"choose options that put less of the law at the ends."
        )


def _check_quantiles(law: TimeLaw, u: Tensor, where: str) -> None:
    """Refuse quantiles that aren't those of a law on [0, 1]."""
    t = law.quantile(u)
    _check_shape(t, u, f"{where}: quantile")
    bad = ~(torch.isfinite(t) & (t >= 0) & (t <= 1))
    if bad.any():
        first = int(bad.nonzero()[0])
        raise ConfigError(
            f"{where}: wanted flow times in [0, 1], got {float(t[first]):.4g} at probability {float(u[first]):.3g}. "
            f"Choose another law of t, or other options of it."
        )
    # The levels at both ends are dense: (0, 1) may be left by rounding, with little of the law.
    for end, share in ((0.0, u[t > 0].min() if (t > 0).any() else u.max()), (1.0, 1 - u[t < 1].max())):
        if float(share) > TOLERANCE:
            raise ConfigError(
                f"{where}: wanted flow times inside (0, 1), and {100 * float(share):.2g} % of the law are {end:g} in "
                f"{str(u.dtype).removeprefix('torch.')}. Choose options that put less of the law at this end."
            )
    # Neighbours may be swapped by rounding.
    falls = t.diff() < -4 * torch.finfo(t.dtype).eps
    if falls.any():
        first = int(falls.nonzero()[0])
        raise ConfigError(
            f"{where}: wanted quantiles that don't fall, got {float(t[first]):.4g} at probability "
            f"{float(u[first]):.3g} and {float(t[first + 1]):.4g} at {float(u[first + 1]):.3g}. `quantile` is the "
            f"inverse of the distribution function: reverse it."
        )


def _check_shape(values: object, wanted: Tensor, where: str) -> None:
    """Refuse what isn't one number of the right type for each."""
    if not isinstance(values, Tensor) or values.shape != wanted.shape or values.dtype != wanted.dtype:
        received = f"{tuple(values.shape)} of {values.dtype}" if isinstance(values, Tensor) else type(values).__name__
        raise ConfigError(f"{where}: wanted {tuple(wanted.shape)} of {wanted.dtype}, got {received}.")
