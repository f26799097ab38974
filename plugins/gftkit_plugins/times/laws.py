"""Laws of flow time t: how often a run trains at each t. 0 is the source (noise), 1 the data.

Where a paper or library counts the noise instead, sigma = 1 - t on the linear path: each class says which it is.
"""

import itertools
import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

from gftkit.kernel import TimeLaw

FlowTime = Annotated[float, Field(ge=0, le=1)]
Positive = Annotated[float, Field(gt=0)]
Tokens = Annotated[int, Field(gt=0)]
STEEPEST = 2 / (math.pi - 2)
"""Scale of ``mode`` at which its density is infinite at t = 1/2."""
SD3_SHIFT = 3.0
"""The shift of Stable Diffusion 3."""
BISECTIONS = 60
"""Halvings of [0, 1] that invert ``mode``: to the last digit of float64."""


class Uniform:
    """Every flow time alike: density 1.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("time", "uniform").quantile(torch.tensor([0.0, 0.25]))
        tensor([0.0000, 0.2500])
    """

    def quantile(self, u: Tensor) -> Tensor:
        """u itself."""
        return u

    def density(self, t: Tensor) -> Tensor:
        """1, of t's shape."""
        return torch.ones_like(t)


class LogitNormal:
    """The logistic function of a normal variable: most of t where noise and data mix.

    The density is exp(-(logit(t) - mean)^2/(2 std^2))/(std sqrt(2 pi) t (1 - t)), logit(t) = log(t/(1 - t)).
    A positive mean is nearer to the data. Stable Diffusion 3 states the mean of the noise's logit, which is minus this
    one; the training scripts of diffusers draw the place in a list from noise to data, so their ``logit_mean`` is this
    one.

    Args:
        mean: of the logit of t.
        std: of the logit of t.

    Reference: Esser et al., arXiv:2403.03206, section 3.1.

    Example:
        >>> import gftkit, torch
        >>> law = gftkit.load().create("time", "logit-normal")
        >>> law.quantile(torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.5000])
    """

    def __init__(self, mean: float = 0.0, std: Positive = 1.0) -> None:
        self.mean, self.std = mean, std

    def quantile(self, u: Tensor) -> Tensor:
        """sigmoid(mean + std Phi^{-1}(u)), of u's shape."""
        return torch.sigmoid(self.mean + self.std * torch.special.ndtri(u))

    def density(self, t: Tensor) -> Tensor:
        """The density, of t's shape; 0 at the ends."""
        inside = (t > 0) & (t < 1)
        safe = torch.where(inside, t, 0.5)
        normal = (torch.logit(safe) - self.mean) / self.std
        # As one exponential: near the ends a tiny number would be divided by another one.
        exponent = -normal.square() / 2 - safe.log() - torch.log1p(-safe)
        return torch.where(inside, exponent.exp() / (self.std * math.sqrt(2 * math.pi)), 0.0)


class Mode:
    """Mode sampling with heavy tails: t = u - scale (sin^2(pi u/2) - u) of a uniform u.

    Symmetric about 1/2, so that it is the same law of the noise. Above 0 it prefers the middle, below 0 the ends; at 0
    it is uniform. The density is 1/(1 + scale - scale (pi/2) sin(pi u)) at the u of t. diffusers calls the scale
    ``mode_scale``.

    Args:
        scale: in (-1, 2/(pi - 2)).

    Reference: Esser et al., arXiv:2403.03206, section 3.1.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("time", "mode").quantile(torch.tensor([0.25, 0.5]))
        tensor([0.3836, 0.5000])
    """

    def __init__(self, scale: Annotated[float, Field(gt=-1, lt=STEEPEST)] = 1.29) -> None:
        self.scale = scale

    def quantile(self, u: Tensor) -> Tensor:
        """t at u, of u's shape."""
        t = u - self.scale * (torch.sin(math.pi / 2 * u).square() - u)
        return t.clamp(0, 1)

    def density(self, t: Tensor) -> Tensor:
        """The density, of t's shape."""
        low, high = torch.zeros_like(t), torch.ones_like(t)
        for _ in range(BISECTIONS):
            middle = (low + high) / 2
            below = self.quantile(middle) < t
            low, high = torch.where(below, middle, low), torch.where(below, high, middle)
        slope = 1 + self.scale - self.scale * math.pi / 2 * torch.sin(math.pi * (low + high) / 2)
        return 1 / slope


class Beta:
    """The beta law, of density proportional to t^(a - 1) (1 - t)^(b - 1).

    a < b is nearer to the noise, a > b to the data. A run evaluates the quantile on the CPU.

    Args:
        a: the exponent at t = 0, plus 1.
        b: the exponent at t = 1, plus 1.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("time", "beta", a=1.0, b=2.0).density(torch.tensor([0.0, 0.5]))
        tensor([2., 1.])
    """

    def __init__(self, a: Positive, b: Positive) -> None:
        self.a, self.b = a, b

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse of the regularised incomplete beta function, of u's shape."""
        from scipy import special

        values = special.betaincinv(self.a, self.b, u.double().cpu().numpy())
        return torch.as_tensor(values, device=u.device).to(u.dtype)

    def density(self, t: Tensor) -> Tensor:
        """The density, of t's shape."""
        constant = math.lgamma(self.a + self.b) - math.lgamma(self.a) - math.lgamma(self.b)
        exponent = torch.xlogy(torch.full_like(t, self.a - 1), t)
        exponent = exponent + torch.special.xlog1py(torch.full_like(t, self.b - 1), -t)
        return (constant + exponent).exp()


class Shifted:
    """Another law, moved towards the noise: sigma = 1 - t becomes shift sigma/(1 + (shift - 1) sigma).

    Larger events need more noise to lose as much. State the shift, or let it follow the number of tokens (or pixels):
    by ``sd3`` it is sqrt(tokens/base_tokens); by ``flux`` exp(mu), mu on the straight line through base_shift at
    base_tokens and max_shift at max_tokens. The new quantile is t/(t + shift (1 - t)) of the old t. Above 1 it is
    nearer to the noise, as ``shift`` of the schedulers of diffusers.

    Args:
        shift: the factor of sigma/(1 - sigma); null for that of ``tokens``, or without them for 3, which Stable
            Diffusion 3 has.
        tokens: of an event: m of the paper.
        rule: how the shift follows from the tokens.
        base_tokens: those at which ``sd3`` has no shift (n of the paper) and ``flux`` base_shift.
        max_tokens: those at which ``flux`` has max_shift.
        base_shift: mu of ``flux`` at base_tokens.
        max_shift: mu of ``flux`` at max_tokens.
        of: the law that is shifted; null for uniform.

    Raises:
        ValueError: for both shift and tokens, or for max_tokens that aren't above base_tokens.

    Reference: Esser et al., arXiv:2403.03206, section 5.3.2; ``calculate_shift`` of the FLUX pipelines of diffusers.

    Example:
        >>> import gftkit, torch
        >>> registry = gftkit.load()
        >>> registry.create("time", "shifted", shift=3.0).quantile(torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.2500])
        >>> registry.create("time", "shifted", tokens=4096, base_tokens=1024).shift
        2.0
    """

    def __init__(
        self,
        shift: Positive | None = None,
        tokens: Tokens | None = None,
        rule: Literal["sd3", "flux"] = "sd3",
        base_tokens: Tokens = 256,
        max_tokens: Tokens = 4096,
        base_shift: float = 0.5,
        max_shift: float = 1.15,
        of: TimeLaw | None = None,
    ) -> None:
        if shift is not None and tokens is not None:
            raise ValueError(f"wanted `shift` or `tokens`, got shift={shift} and tokens={tokens}. Leave one out.")
        if rule == "flux" and max_tokens <= base_tokens:
            raise ValueError(f"max_tokens: wanted more than base_tokens ({base_tokens}), got {max_tokens}.")
        if shift is None and tokens is None:
            shift = SD3_SHIFT
        elif tokens is not None:
            along = (tokens - base_tokens) / (max_tokens - base_tokens) if rule == "flux" else 0.0
            line = base_shift + (max_shift - base_shift) * along
            shift = math.exp(line) if rule == "flux" else math.sqrt(tokens / base_tokens)
        assert shift is not None
        self.shift, self.of = shift, Uniform() if of is None else of

    def quantile(self, u: Tensor) -> Tensor:
        """The shifted quantile, of u's shape."""
        t = self.of.quantile(u)
        return t / (t + self.shift * (1 - t))

    def density(self, t: Tensor) -> Tensor:
        """The other law's density at the time before the shift, times the derivative of that time."""
        scale = 1 + (self.shift - 1) * t
        return self.of.density(self.shift * t / scale) * self.shift / scale.square()


class CosineMap:
    """The law by which the linear path trains as often at each signal-to-noise ratio as the cosine schedule.

    The density is 2/(pi (1 - 2t + 2t^2)). Symmetric about 1/2, so that it is the same law of the noise: CosMap of the
    paper.

    Reference: Esser et al., arXiv:2403.03206, section 3.1.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("time", "cosine-map").quantile(torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.5000])
    """

    def quantile(self, u: Tensor) -> Tensor:
        """sin/(sin + cos) of pi u/2, of u's shape."""
        angle = math.pi / 2 * u
        sine = torch.sin(angle)
        return sine / (sine + torch.cos(angle))

    def density(self, t: Tensor) -> Tensor:
        """The density, of t's shape."""
        return 2 / (math.pi * (1 - 2 * t + 2 * t.square()))


class UShaped:
    """More at both ends, for a rectified flow trained on pairs of its own: density as exp(a t) + exp(a (1 - t)).

    Symmetric about 1/2, so that it is the same law of the noise. It is a cosh(a (t - 1/2))/(2 sinh(a/2)).

    Args:
        a: 0 would be uniform.

    Reference: Lee et al., arXiv:2405.20320, section 4.1.

    Example:
        >>> import gftkit, torch
        >>> gftkit.load().create("time", "u-shaped").quantile(torch.tensor([0.0, 0.5]))
        tensor([0.0000, 0.5000])
    """

    def __init__(self, a: Annotated[float, Field(gt=0, le=100)] = 4.0) -> None:
        self.a = a

    def quantile(self, u: Tensor) -> Tensor:
        """1/2 + arsinh((2u - 1) sinh(a/2))/a, of u's shape."""
        t = 0.5 + torch.asinh((2 * u - 1) * math.sinh(self.a / 2)) / self.a
        return t.clamp(0, 1)

    def density(self, t: Tensor) -> Tensor:
        """The density, of t's shape."""
        return self.a * torch.cosh(self.a * (t - 0.5)) / (2 * math.sinh(self.a / 2))


class Table:
    """A density of straight lines between the values that the user gives; the outermost ones hold beyond them.

    It is normalised: the values count relative to each other.

    Args:
        times: flow times, increasing.
        densities: at each.

    Raises:
        ValueError: for times that don't increase, another number of densities, or densities that are all 0.

    Example:
        >>> import gftkit, torch
        >>> law = gftkit.load().create("time", "table", times=[0.0, 1.0], densities=[0.0, 3.0])
        >>> law.density(torch.tensor([0.0, 0.5])), law.quantile(torch.tensor([0.0, 0.25]))
        (tensor([0., 1.]), tensor([0.0000, 0.5000]))
    """

    def __init__(
        self,
        times: Annotated[list[FlowTime], Field(min_length=1)],
        densities: Annotated[list[Annotated[float, Field(ge=0)]], Field(min_length=1)],
    ) -> None:
        if len(times) != len(densities):
            raise ValueError(f"wanted a density for each time, got {len(times)} times and {len(densities)} densities.")
        if any(later <= earlier for earlier, later in itertools.pairwise(times)):
            raise ValueError(f"times: wanted flow times that increase, got {times}. Sort them, each once.")
        points = list(zip(times, densities, strict=True))
        points = ([(0.0, densities[0])] if times[0] > 0 else []) + points
        points += [(1.0, densities[-1])] if times[-1] < 1 else []
        edges, values = (torch.tensor(column, dtype=torch.float64) for column in zip(*points, strict=True))
        below = torch.cat([values.new_zeros(1), torch.cumsum((values[1:] + values[:-1]) / 2 * edges.diff(), 0)])
        if not below[-1] > 0:
            raise ValueError(f"densities: wanted some above 0, got {densities}.")
        self._edges, self._values, self._below = edges, values / below[-1], below / below[-1]

    def quantile(self, u: Tensor) -> Tensor:
        """The root of the parabola between two times, of u's shape."""
        edges, values, below = (column.to(u) for column in (self._edges, self._values, self._below))
        part = (torch.searchsorted(below, u.contiguous(), right=True) - 1).clamp(0, len(edges) - 2)
        width, left, rest = edges[part + 1] - edges[part], values[part], (u - below[part]).clamp(min=0)
        slope = (values[part + 1] - left) / width
        # The form of the root that doesn't cancel.
        root = left + (left.square() + 2 * slope * rest).clamp(min=0).sqrt()
        along = torch.where(root > 0, 2 * rest / root.clamp(min=torch.finfo(u.dtype).tiny), 0.0)
        return edges[part] + torch.minimum(along, width)

    def density(self, t: Tensor) -> Tensor:
        """The interpolated density, of t's shape."""
        edges, values = self._edges.to(t), self._values.to(t)
        part = (torch.searchsorted(edges, t.contiguous(), right=True) - 1).clamp(0, len(edges) - 2)
        share = (t - edges[part]) / (edges[part + 1] - edges[part])
        return values[part] + share * (values[part + 1] - values[part])
