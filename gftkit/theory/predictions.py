"""Predictions of the theory for a fine-tune: a pure function for each statement of the theory page from T4 on.

Norms are ``|f|_w = (int w(t) E_{x ~ p_t} |f|^2 dt)^(1/2)`` along the target path; ``gap`` is |b_pre - b_tgt|_w.
Retentions rho are in (-inf, 1); where one depends on flow time (T19) there is one for each part of it, such as a bin.
"""

import itertools
import math
from collections.abc import Sequence

from torch import Tensor


def drift_error(retention: float, gap: float, floor: float = 0.0) -> float:
    """T4: |b_beta - b_tgt|_w = |rho| |Delta|_w; with a capacity floor |(I - Pi) Delta|_w, the root of the squares' sum.

    Args:
        retention: rho.
        gap: |Delta|_w, or |Pi Delta|_w of its projection on a linear model class through b_pre.
        floor: |(I - Pi) Delta|_w, what that class can't express.

    Example:
        >>> drift_error(0.5, 6.0), drift_error(0.5, 6.0, floor=4.0)
        (3.0, 5.0)
    """
    return math.hypot(retention * gap, floor)


def drift_error_by_time(retentions: Sequence[float], gaps: Sequence[float], floor: float = 0.0) -> float:
    """T19: |b_beta - b_tgt|_w = (int w rho(t)^2 E|Delta|^2 dt + floor^2)^(1/2), rho inside the norm.

    Args:
        retentions: rho in each part of flow time.
        gaps: |Delta|_w of each part, whose squares have the sum |Delta|_w^2.
        floor: as for ``drift_error``, of all parts together.

    Example:
        >>> drift_error_by_time([-0.5, 0.5], [6.0, 8.0])
        5.0
    """
    return math.hypot(*(rho * gap for rho, gap in zip(retentions, gaps, strict=True)), floor)


def path_kl(retention: float, pretrained: float) -> float:
    """T5: KL(P_tgt || P_beta) = rho^2 KL(P_tgt || P_pre), for the laws of SDEs with one g > 0 and one start law.

    By data processing it bounds KL(q || p_1^beta) too (T6).

    Example:
        >>> path_kl(0.5, 8.0)
        2.0
    """
    return retention**2 * pretrained


def path_kl_by_time(retentions: Sequence[float], pretrained: Sequence[float]) -> float:
    """T19: KL(P_tgt || P_beta) = 1/2 int rho(t)^2 E|Delta|^2/g^2 dt, as T5 at each time.

    Args:
        retentions: rho in each part of flow time.
        pretrained: what each part adds to KL(P_tgt || P_pre).

    Example:
        >>> path_kl_by_time([-0.5, 0.0], [8.0, 8.0])
        2.0
    """
    return sum(path_kl(rho, part) for rho, part in zip(retentions, pretrained, strict=True))


def wasserstein_bound(
    retention: float, times: Sequence[float], gaps: Sequence[float], lipschitz: Sequence[float]
) -> float:
    """T6: ``W2(q, p_1^beta) <= |rho| int exp(int_t^1 L) (E_{p_t} |Delta|^2)^(1/2) dt``, by the trapezoidal rule.

    Args:
        retention: rho.
        times: increasing, from 0 to 1.
        gaps: ``(E_{p_t} |Delta|^2)^(1/2)`` at each time.
        lipschitz: a one-sided Lipschitz constant L(t) of b_beta at each time; may be negative.

    Raises:
        ValueError: for sequences of different lengths or times that don't increase from 0 to 1.

    Example:
        >>> wasserstein_bound(0.5, [0.0, 0.5, 1.0], [2.0, 2.0, 2.0], [0.0, 0.0, 0.0])
        1.0
    """
    increasing = all(earlier < later for earlier, later in itertools.pairwise(times))
    if not len(times) == len(gaps) == len(lipschitz) >= 2 or not increasing or (times[0], times[-1]) != (0, 1):
        raise ValueError("wanted times that increase from 0 to 1, and one gap and one Lipschitz constant at each.")
    growth, bound = 0.0, 0.0  # growth: int_t^1 L, from the right
    for k in range(len(times) - 2, -1, -1):
        h = times[k + 1] - times[k]
        right = math.exp(growth) * gaps[k + 1]
        growth += h * (lipschitz[k] + lipschitz[k + 1]) / 2
        bound += h * (right + math.exp(growth) * gaps[k]) / 2
    return abs(retention) * bound


def drift_error_range(retention: float, gap: float, excess: float) -> tuple[float, float]:
    """T7: ``||rho| |Delta| - sqrt(eps)| <= |b - b_tgt|_w <= |rho| |Delta| + sqrt(eps)``, eps the excess risk of B.

    In the penalty form eps is the excess divided by 1 + beta.

    Example:
        >>> drift_error_range(0.5, 6.0, 4.0)
        (1.0, 5.0)
    """
    inexact, distance = math.sqrt(excess), abs(retention) * gap
    return abs(distance - inexact), distance + inexact


def step_between_optima(before: float, after: float, gap: float) -> float:
    """T8: the optima at two retentions are |rho_1 - rho_2| |Delta|_w apart, on one straight segment.

    Before the first step the retention counts as 1: the drift is b_pre.

    Example:
        >>> step_between_optima(1.0, 0.75, 8.0)
        2.0
    """
    return abs(after - before) * gap


def label_noise(retention: float, plain: float) -> float:
    """T9a: the blended form's label noise given (t, x) is (1 - rho)^2 that of plain flow matching, for every drift.

    Args:
        retention: rho.
        plain: trace of the covariance of a per-sample gradient, given (t, x), in plain flow matching.

    Example:
        >>> label_noise(0.5, 4.0)
        1.0
    """
    return (1 - retention) ** 2 * plain


def sharing_noise(strength: float, count: int, batch_size: int, spread: float) -> float:
    """Anchor sharing: s^2 (1/k - 1/n) times a variance, added to that of a batch's gradient by the choice of k of n.

    With k = rho n the blended form's is rho (1 - rho)/n times the variance.

    Args:
        strength: s, which is beta in the penalty form and rho in the blended one.
        count: k, the samples at which the anchor is evaluated.
        batch_size: n.
        spread: trace of the covariance of w grad |b - b_pre|^2 over the batch, divided by n - 1; or one of its entries.

    Raises:
        ValueError: for k outside 1 to n.

    Reference: sampling without replacement, Cochran (1977), Sampling Techniques, theorem 2.2.

    Example:
        >>> sharing_noise(0.5, 4, 8, 16.0), sharing_noise(0.5, 8, 8, 16.0)
        (0.5, 0.0)
    """
    if not 1 <= count <= batch_size:
        raise ValueError(f"wanted 1 to {batch_size} samples of {batch_size}, got {count}.")
    return strength**2 * (1 / count - 1 / batch_size) * spread


def blend_acceleration(target: Tensor, anchor: Tensor, gap_along_gap: Tensor, retention: float) -> Tensor:
    """T11: a_beta = (1 - rho) a_tgt + rho a_pre - rho (1 - rho) (grad Delta) Delta, with a = d_t v + (grad v) v.

    So a blend of two straight flows is not straight. Euler's error with step h is (h/2) int Phi(1, t) a_t dt + O(h^2).

    Args:
        target: a_tgt, (batch, *event).
        anchor: a_pre, (batch, *event).
        gap_along_gap: (grad Delta) Delta with Delta = v_pre - v_tgt, (batch, *event).
        retention: rho.
    """
    return (1 - retention) * target + retention * anchor - retention * (1 - retention) * gap_along_gap


def stochastic_drift(velocity: Tensor, score: Tensor, diffusion: Tensor) -> Tensor:
    """T12: b = v + (g^2/2) grad log p_t: the SDE dX = b dt + g dW has the marginals of the ODE dX = v dt.

    That is so for the target flow; at beta > 0 the two blends end in different laws.

    Args:
        velocity: v, (batch, *event).
        score: grad log p_t, (batch, *event).
        diffusion: g, broadcast against the velocity.
    """
    return velocity + diffusion**2 / 2 * score


def error_with_noise(retention: float, gap: float, noise: float, lag: float = 0.0) -> float:
    """T15, T20: E|b - b_tgt|_w^2 = (c + rho (1 - c))^2 |Delta|_w^2 + (1 - rho)^2 F.

    It is the error of b_hat + rho (b_pre - b_hat) for b_hat = b_tgt + c Delta + zeta, plain fine-tuning that lags by c
    and has the noise zeta, F = E|zeta|_w^2, by its gradients or by its finitely many samples. In a model linear in its
    parameters and without a lag a fit at that temperature is such a blend (T15). Needs ``E<zeta, Delta> = 0``.

    Args:
        retention: rho.
        gap: |Delta|_w.
        noise: F, a mean square.
        lag: c below 1, the share of the gap that is left; negative where the drift is beyond its target.

    Example:
        >>> error_with_noise(0.0, 2.0, 4.0), error_with_noise(0.5, 2.0, 4.0), error_with_noise(-0.25, 2.0, 0.0, lag=0.2)
        (4.0, 2.0, 0.0)
    """
    return (lag + retention * (1 - lag)) ** 2 * gap**2 + (1 - retention) ** 2 * noise


def best_retention(gap: float, noise: float, lag: float = 0.0) -> float:
    """T20: r* = (F - c (1 - c) |Delta|^2)/((1 - c)^2 |Delta|^2 + F), at which ``error_with_noise`` is least.

    Without a lag it is F/(F + |Delta|^2), T15. Without noise it is -c/(1 - c), below 0: going on past the end of the
    run undoes its lag, and the error is 0.

    Args:
        gap: |Delta|_w.
        noise: F >= 0, a mean square.
        lag: c, below 1.

    Raises:
        ValueError: where gap and noise are both 0, or for a lag of 1 or more: the drift hasn't left its anchor.

    Example:
        >>> best_retention(2.0, 4.0), best_retention(2.0, 0.0, lag=0.2)
        (0.5, -0.25)
    """
    moved = (1 - lag) ** 2 * gap**2 + noise
    if lag >= 1 or not moved > 0:
        raise ValueError(f"wanted a lag below 1, and a gap or noise above 0, got {lag}, {gap} and {noise}.")
    return (noise - lag * (1 - lag) * gap**2) / moved


def lag_of(retention: float) -> float:
    """T20: c = -r/(1 - r), the lag that the retention r* of training targets shows where the drift has no noise.

    With noise it is c - F/((1 - c) |Delta|_w^2): noise hides a lag.

    Example:
        >>> round(lag_of(-0.25), 12)
        0.2
    """
    return -retention / (1 - retention)


def profile_gain(best: Sequence[float], weights: Sequence[float], retention: Sequence[float] | None = None) -> float:
    """T21: int w (r*(t) - r(t))^2 E|b_hat - b_pre|^2 dt, by which r* has a lower drift error^2 than r.

    Args:
        best: r* in each part of flow time.
        weights: w E|b_hat - b_pre|^2 of each part.
        retention: r of each part; by default the best constant, the mean of r* with these weights.

    Example:
        >>> profile_gain([-0.5, 0.5], [1.0, 3.0])
        0.75
    """
    if retention is None:
        mean = sum(rho * weight for rho, weight in zip(best, weights, strict=True)) / sum(weights)
        retention = [mean] * len(best)
    pairs = zip(best, weights, retention, strict=True)
    return sum((rho - other) ** 2 * weight for rho, weight, other in pairs)


def best_temperature(gap: float, noise: float) -> float:
    """T15: beta* = F/|Delta|_w^2, at which ``error_with_noise`` is least: F |Delta|^2/(F + |Delta|^2), below either.

    Args:
        gap: |Delta|_w > 0.
        noise: F >= 0, a mean square.

    Raises:
        ValueError: for a gap of 0, where the pretrained drift is the best and no temperature reaches it.

    Example:
        >>> best_temperature(2.0, 4.0)
        1.0
    """
    if gap <= 0:
        raise ValueError(f"gap: wanted |Delta| > 0, got {gap}. Without a gap the pretrained drift is the optimum.")
    return noise / gap**2
