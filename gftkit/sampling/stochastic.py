"""Sampling a velocity's flow by an SDE of the same marginals (theory, sections 1 and 2, T12)."""

import torch
from torch import Tensor

from gftkit.data.conditions import condition_names, condition_nulls
from gftkit.kernel.contracts import Coupling, Drift, NoiseScale, Path
from gftkit.kernel.errors import ConfigError
from gftkit.theory import flow
from gftkit.theory.predictions import stochastic_drift

DELTA = 1e-3
"""How far from t = 1 an SDE stops, where the score is 0/0; one Euler-Maruyama step is left."""


class StochasticPath:
    """A path as a sampler needs it: another path, with a noise scale of the user's choice.

    Args:
        path: the path that the velocity was trained on.
        scale: g(t).
    """

    final_step = "euler-maruyama"

    def __init__(self, path: Path, scale: NoiseScale) -> None:
        self._path, self._scale = path, scale
        self.t_end = min(flow.t_end(path), 1 - DELTA)

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Those of the path."""
        return self._path.coefficients(t)

    def diffusion(self, t: Tensor) -> Tensor:
        """g(t)."""
        return self._scale(t)


class StochasticDrift:
    """b = v + (g^2/2) grad log p_t, with the score that the velocity tells.

    Args:
        drift: the velocity v, of a source N(0, I) that is independent of the data.
        path: the path that it was trained on.
        scale: g(t).
    """

    def __init__(self, drift: Drift, path: Path, scale: NoiseScale) -> None:
        self._drift, self._path, self._scale = drift, path, scale
        self.conditions, self.null = condition_names(drift), condition_nulls(drift)

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        velocity = self._drift(t, x, **conditions)
        score = flow.affine_score(self._path, t, x, velocity)
        return stochastic_drift(velocity, score, flow.expand(self._scale(t), x))


def check_unpaired(scale: NoiseScale | None, *, paired: bool) -> None:
    """Refuse noise of one's choice for a flow that was trained on pairs: what coupled them is not known.

    Raises:
        ConfigError: with the reason.
    """
    if scale is not None and paired:
        raise ConfigError(
            "diffusion: the velocity gives the score only if x0 is independent of x1, and this run's data have fixed "
            "partners, as in reflow. Use an ODE solver."
        )


def check_known_score(path: Path, coupling: Coupling, *, normal: bool, guidance: float = 1.0) -> None:
    """Refuse to sample a flow by a noise scale of one's choice where its score isn't known.

    Args:
        path: the path that the velocity was trained on.
        coupling: what paired x0 with x1.
        normal: whether x0 ~ N(0, I).
        guidance: scale of classifier-free guidance.

    Raises:
        ConfigError: with the reason.
    """
    flow.check_affine(path, coupling)
    if not normal:
        raise ConfigError(
            "diffusion: the velocity gives the score only for the source N(0, I), and this run has another source. "
            "Use an ODE solver."
        )
    if guidance != 1:
        raise ConfigError(
            f"diffusion: a guided velocity (guidance {guidance:g}) has no known score. Use an ODE solver, or guidance "
            f"1."
        )
    # The determinant by which ``affine_score`` divides: for the linear path it is -1 at all times.
    sigma, alpha, _ = path.coefficients(torch.zeros(1, dtype=torch.float64))
    sigma_rate, alpha_rate, _ = flow.rates(path, torch.zeros(1, dtype=torch.float64))
    if not bool(((alpha * sigma_rate - alpha_rate * sigma).abs() > 1e-9).all()):
        raise ConfigError(
            "diffusion: on this path alpha'(0) = 0, so the velocity at t = 0 doesn't give the score. Use an ODE solver."
        )
