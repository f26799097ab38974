"""Search for the times of Euler steps: local errors along a fine trajectory, dynamic programming, and descent."""

import math
from collections.abc import Callable, Sequence

import torch
from torch import Tensor

from gftkit.geometry.tracing import Trajectory
from gftkit.kernel.errors import ConfigError

SWEEPS = 2
"""Sweeps over all times for each stride by which they are moved."""


def local_errors(trajectory: Trajectory) -> Tensor:
    """Root mean square error of one Euler step between any two times, over trajectories.

    From x_i at t_i the step ends in x_i + (t_j - t_i) v_i, and the flow in x_j: the difference is the integral of
    (t_j - s) a_s over the step, a the acceleration. It is read off the fine trajectory, without an evaluation.

    Returns:
        (times, times) of float64: [i, j] for the step from t_i to t_j > t_i, infinite elsewhere.

    Reference: theory, T11; Hairer, Norsett, Wanner (1993), Solving Ordinary Differential Equations I, section II.3.
    """
    times = torch.tensor(trajectory.times, dtype=torch.float64)
    x, v = trajectory.states.flatten(2), trajectory.velocities.flatten(2)
    errors = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i in range(len(times) - 1):
        step = (times[i + 1 :] - times[i])[:, None, None]
        off = x[i + 1 :] - x[i] - step * v[i]  # (later times, n, size)
        errors[i, i + 1 :] = off.square().sum(2).mean(1).sqrt()
    return errors


def best_indices(cost: Tensor, steps: int) -> list[int]:
    """The path 0 = k_0 < k_1 < ... < k_N = K of least total cost, by dynamic programming: O(N K^2).

    Args:
        cost: [i, j] of a step from i to j > i, (K + 1, K + 1).
        steps: N <= K.

    Raises:
        ConfigError: for another N.

    Reference: Watson, Ho, Norouzi, Chan (2021), Learning to Efficiently Sample from Diffusion Probabilistic Models,
        section 3, arXiv:2106.03802.

    Example:
        >>> best_indices(torch.tensor([[9.0, 1.0, 5.0], [9.0, 9.0, 1.0], [9.0, 9.0, 9.0]]), 2)
        [0, 1, 2]
    """
    last = len(cost) - 1
    if not 1 <= steps <= last:
        raise ConfigError(f"steps: wanted 1 to {last}, the number of fine steps, got {steps}.")
    upwards = torch.triu(torch.ones_like(cost, dtype=torch.bool), diagonal=1)
    cost = torch.where(upwards, cost, math.inf)
    least, before = cost[0], []  # of reaching each time in one step
    for _ in range(steps - 1):
        least, previous = (least[:, None] + cost).min(0)
        before.append(previous)
    path = [last]
    for previous in reversed(before):
        path.append(int(previous[path[-1]]))
    return [0, *reversed(path)]


def descend(indices: Sequence[int], last: int, error: Callable[[Sequence[int]], float]) -> list[int]:
    """Move single inner indices where that lowers an error: by large strides first, by 1 in the end, two sweeps each.

    Args:
        indices: 0 = k_0 < ... < k_N = last.
        last: K.
        error: of such indices.

    Returns:
        Indices whose error is not above that of the first ones.

    Example:
        >>> descend([0, 2, 32], 32, lambda indices: abs(indices[1] - 12))
        [0, 12, 32]
    """
    best, least = list(indices), error(indices)
    for stride in (last // 8, last // 16, last // 32, 1):
        for _ in range(SWEEPS if stride else 0):
            before = least
            for place in range(1, len(best) - 1):
                for moved in (best[place] - stride, best[place] + stride):
                    if best[place - 1] < moved < best[place + 1]:
                        tried = [*best[:place], moved, *best[place + 1 :]]
                        moved_error = error(tried)
                        if moved_error < least:
                            best, least = tried, moved_error
            if least == before:
                break
    return best
