"""Conditional paths x_t = sigma(t) x0 + alpha(t) x1 + gamma(t) eps."""

import math
from typing import Annotated, Literal

import torch
from pydantic import Field
from torch import Tensor

import gftkit
from gftkit.theory import compile_formula, differentiate, expand, parse_formula, value_at

Coefficients = tuple[Tensor, Tensor, Tensor]
FinalStep = Literal["euler-maruyama", "mean"]


class Linear:
    """The linear path x_t = (1 - t) x0 + t x1, of drift x1 - x0.

    Deterministic: g = 0, and the drift is the velocity.

    Reference: Lipman et al. (2023), Flow Matching for Generative Modeling, arXiv:2210.02747; Liu et al. (2023),
    rectified flow, arXiv:2209.03003.

    Example:
        >>> import gftkit, torch
        >>> path = gftkit.load().create("path", "linear")
        >>> path.coefficients(torch.tensor([0.25]))
        (tensor([0.7500]), tensor([0.2500]), tensor([0.]))
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        """(sigma, alpha, gamma) at t."""
        return 1 - t, t, torch.zeros_like(t)

    def rates(self, t: Tensor) -> Coefficients:
        """The derivatives of the coefficients at t."""
        one = torch.ones_like(t)
        return -one, one, torch.zeros_like(t)


class Trigonometric:
    """The trigonometric path x_t = cos(pi t/2) x0 + sin(pi t/2) x1: it keeps the variance of independent pairs.

    Deterministic: g = 0, and the drift is (pi/2)(-sin(pi t/2) x0 + cos(pi t/2) x1).

    Reference: Albergo, Vanden-Eijnden (2023), Building Normalizing Flows with Stochastic Interpolants,
    arXiv:2209.15571.

    Example:
        >>> import gftkit, torch
        >>> path = gftkit.load().create("path", "trigonometric")
        >>> sigma, alpha, _ = path.coefficients(torch.tensor([0.3]))
        >>> float((sigma**2 + alpha**2).round(decimals=4))
        1.0
    """

    def coefficients(self, t: Tensor) -> Coefficients:
        """(sigma, alpha, gamma) at t."""
        angle = math.pi / 2 * t
        return torch.cos(angle), torch.sin(angle), torch.zeros_like(t)

    def rates(self, t: Tensor) -> Coefficients:
        """The derivatives of the coefficients at t."""
        angle = math.pi / 2 * t
        return -math.pi / 2 * torch.sin(angle), math.pi / 2 * torch.cos(angle), torch.zeros_like(t)


class Affine:
    """An affine path x_t = sigma(t) x0 + alpha(t) x1, with both coefficients written as formulas in t.

    Deterministic: g = 0, and the drift is sigma' x0 + alpha' x1, differentiated symbolically. Where a derivative is
    infinite at t = 1, as for sigma = sqrt(1 - t^2), times are drawn from [0, 1 - delta] and sampling takes one Euler
    step from there (theory, section 1).

    Args:
        alpha: the weight of the data; 0 at t = 0 and 1 at t = 1.
        sigma: the weight of the source; 1 at t = 0 and 0 at t = 1.
        delta: how far from 1 to stop where a derivative is infinite there; not used otherwise.

    Raises:
        ValueError: for a formula that can't be read, wrong values at the ends, values that are not finite between
            them, or a derivative that is infinite at t = 0.

    Reference: Albergo, Boffi, Vanden-Eijnden (2023), Stochastic Interpolants, arXiv:2303.08797, section 2.

    Example:
        >>> import gftkit, torch
        >>> path = gftkit.load().create("path", "affine", alpha="t**2", sigma="1 - t")
        >>> path.rates(torch.tensor([0.5]))
        (tensor([-1.]), tensor([1.]), tensor([0.]))
    """

    def __init__(
        self, alpha: str = "t", sigma: str = "1 - t", delta: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3
    ) -> None:
        formulas = {"sigma": parse_formula(sigma), "alpha": parse_formula(alpha)}
        for name, formula, ends in (("sigma", formulas["sigma"], (1, 0)), ("alpha", formulas["alpha"], (0, 1))):
            for t, wanted in zip((0, 1), ends, strict=True):
                value = value_at(formula, t)
                if not (value.is_finite and abs(complex(value) - wanted) < 1e-12):
                    raise ValueError(f"{name}({t}) must be {wanted}; '{formula}' gives {value}.")
        self._coefficients = tuple(compile_formula(formula) for formula in formulas.values())
        slopes = [differentiate(formula) for formula in formulas.values()]
        if not all(value_at(slope, 0).is_finite for slope in slopes):
            raise ValueError(
                f"a derivative of alpha = '{alpha}' or sigma = '{sigma}' is infinite at t = 0, where sampling starts. "
                f"Choose formulas with finite derivatives there."
            )
        self._rates = tuple(compile_formula(slope) for slope in slopes)
        # Sampling can stop short of an infinite derivative at 1, and can't start after one at 0.
        self.t_end = 1.0 if all(value_at(slope, 1).is_finite for slope in slopes) else 1 - delta
        inside = torch.linspace(0, self.t_end, 1001, dtype=torch.float64)
        if not all(torch.isfinite(values).all() for values in (*self.coefficients(inside), *self.rates(inside))):
            raise ValueError(f"alpha = '{alpha}' and sigma = '{sigma}' must be finite and smooth between 0 and 1.")

    def coefficients(self, t: Tensor) -> Coefficients:
        """(sigma, alpha, gamma) at t."""
        sigma, alpha = (function(t) for function in self._coefficients)
        return sigma, alpha, torch.zeros_like(t)

    def rates(self, t: Tensor) -> Coefficients:
        """The derivatives of the coefficients at t."""
        sigma, alpha = (function(t) for function in self._rates)
        return sigma, alpha, torch.zeros_like(t)


class BrownianBridge:
    """The Brownian bridge x_t = (1 - t) x0 + t x1 + scale sqrt(t(1 - t)) eps: a stochastic flow, g(t) = scale.

    Its drift is (x1 - x_t)/(1 - t), computed as x1 - x0 - scale sqrt(t/(1 - t)) eps. The squared drift is not
    integrable up to t = 1, so times are drawn from [0, 1 - delta]; sampling ends with one step from 1 - delta to 1.

    Args:
        scale: the noise scale g.
        delta: how far from t = 1 training stops.
        final_step: the last sampling step: "euler-maruyama" (W2 error of order delta^2 for smooth data), or "mean",
            x + delta b = E[x1|x_t], for data on points or a thin set. Neither is exact.

    Reference: Tong et al. (2024), Simulation-free Schrodinger bridges via score and flow matching,
    arXiv:2307.03672; Liu et al. (2023), I2SB, arXiv:2302.05872.

    Example:
        >>> import gftkit, torch
        >>> path = gftkit.load().create("path", "brownian-bridge", scale=0.5)
        >>> path.coefficients(torch.tensor([0.5])), path.diffusion(torch.tensor([0.5]))
        ((tensor([0.5000]), tensor([0.5000]), tensor([0.2500])), tensor([0.5000]))
    """

    def __init__(
        self,
        scale: Annotated[float, Field(gt=0)] = 1.0,
        delta: Annotated[float, Field(gt=0, lt=0.5)] = 1e-3,
        final_step: FinalStep = "euler-maruyama",
    ) -> None:
        self.scale = scale
        self.t_end = 1 - delta
        self.final_step = final_step

    def coefficients(self, t: Tensor) -> Coefficients:
        """(sigma, alpha, gamma) at t."""
        return 1 - t, t, self.scale * torch.sqrt(t * (1 - t))

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t) = scale."""
        return torch.full_like(t, self.scale)

    def drift(self, t: Tensor, x0: Tensor, x1: Tensor, noise: Tensor) -> Tensor:
        """(x1 - x_t)/(1 - t) at the sample of this noise; finite at t = 0, where rates and score are not."""
        # Not by (x1 - x_t)/(1 - t), which divides a difference of nearly equal numbers by 1 - t near t = 1.
        return x1 - x0 - expand(self.scale * torch.sqrt(t / (1 - t)), noise) * noise


@gftkit.hookimpl
def gftkit_paths() -> dict[str, type]:
    """The built-in paths."""
    return {"affine": Affine, "brownian-bridge": BrownianBridge, "linear": Linear, "trigonometric": Trigonometric}
