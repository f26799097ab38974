"""The shape of trajectories: length, energy, straightness, acceleration, turning; and the optimal transport cost.

Lengths, energies and straightness are those of the polygon through the states. Each is at most that of the curve
through them, and tends to it as the square of the step.
"""

from collections.abc import Sequence

import torch
from torch import Generator, Tensor

from gftkit.estimation.jackknife import jackknife_estimate
from gftkit.kernel.contracts import Estimate


def lengths(states: Tensor) -> Tensor:
    """Length of each polygon: sum_k |x_(k+1) - x_k|, Euclidean over the whole event.

    Args:
        states: (times, n, *event).

    Returns:
        (n,) of float64.

    Example:
        >>> lengths(torch.tensor([[[0.0, 0.0]], [[3.0, 4.0]], [[3.0, 5.0]]]))
        tensor([6.], dtype=torch.float64)
    """
    return _sides(states).norm(dim=2).sum(0)


def energies(states: Tensor, times: Sequence[float]) -> Tensor:
    """Kinetic energy of each polygon: sum_k |x_(k+1) - x_k|^2/(t_(k+1) - t_k), for int |v_t|^2 dt.

    At least |x_1 - x_0|^2, with equality for a straight polygon of constant speed.

    Args:
        states: (times, n, *event).
        times: increasing from 0 to 1.

    Returns:
        (n,) of float64.

    Reference: Benamou and Brenier (2000), Numerische Mathematik 84, Eq. 9.

    Example:
        >>> energies(torch.tensor([[[0.0]], [[1.0]], [[4.0]]]), [0.0, 0.5, 1.0])
        tensor([20.], dtype=torch.float64)
    """
    return (_sides(states).square().sum(2) / _steps(times)).sum(0)


def straightness(states: Tensor, times: Sequence[float]) -> Tensor:
    """S of each polygon: sum_k h_k |(x_1 - x_0) - (x_(k+1) - x_k)/h_k|^2, for int |(x_1 - x_0) - v_t|^2 dt.

    0 where it is straight and of constant speed. It equals energy - |x_1 - x_0|^2.

    Args:
        states: (times, n, *event).
        times: increasing from 0 to 1.

    Returns:
        (n,) of float64.

    Reference: Liu, Gong, Liu (2022), section 2.2, S(Z), arXiv:2209.03003.

    Example:
        >>> straightness(torch.tensor([[[0.0]], [[1.0]], [[4.0]]]), [0.0, 0.5, 1.0])
        tensor([4.], dtype=torch.float64)
    """
    sides, steps = _sides(states), _steps(times)
    apart = sides.sum(0) - sides / steps[..., None]
    return (steps * apart.square().sum(2)).sum(0)


def displacements(states: Tensor) -> Tensor:
    """|x_1 - x_0|^2 of each trajectory, (times, n, *event) -> (n,) of float64."""
    ends = states[[0, -1]].flatten(2).double()
    return (ends[1] - ends[0]).square().sum(1)


def accelerations(velocities: Tensor, times: Sequence[float]) -> Tensor:
    """a = d_t v + (grad v) v = dv(t, x_t)/dt, by second-order differences of v along each trajectory.

    Args:
        velocities: v(t_k, x_k) at the trajectory's states, (times, n, *event), of at least 3 times.
        times: increasing.

    Returns:
        (times, n, *event) of float64.

    Example:
        >>> v = torch.tensor([0.0, 1.0, 4.0, 9.0]).reshape(-1, 1, 1)  # t^2 at t = 0, 1, 2, 3
        >>> accelerations(v, [0.0, 1.0, 2.0, 3.0]).flatten()
        tensor([0., 2., 4., 6.], dtype=torch.float64)
    """
    at = (torch.tensor(times, dtype=torch.float64),)
    (acceleration,) = torch.gradient(velocities.double(), spacing=at, dim=0, edge_order=2)
    return acceleration


def turning_rates(velocities: Tensor, acceleration: Tensor) -> Tensor:
    """Turning rate of each trajectory in radians for a unit of time: |a_perp|/|v|, its curvature times its speed.

    a_perp is the part of a at right angles to v. The curvature itself, |a_perp|/|v|^2, has no mean in the plane where
    v vanishes somewhere; the rate has one. 0 where v is 0.

    Args:
        velocities: (times, n, *event).
        acceleration: a, of the same shape.

    Returns:
        (times, n) of float64.

    Example:
        >>> v, a = torch.tensor([[[0.0, 2.0]]]), torch.tensor([[[-6.0, 1.0]]])
        >>> turning_rates(v, a)
        tensor([[3.]], dtype=torch.float64)
    """
    v, a = velocities.flatten(2).double(), acceleration.flatten(2).double()
    speed = v.norm(dim=2, keepdim=True)
    along = torch.where(speed > 0, v / speed, 0.0)
    across = a - (a * along).sum(2, keepdim=True) * along
    return torch.where(speed[..., 0] > 0, across.norm(dim=2) / speed[..., 0], 0.0)


def over_time(values: Tensor, times: Sequence[float]) -> Tensor:
    """int values dt by the trapezoid rule, (times, n) -> (n,)."""
    return torch.trapezoid(values, torch.tensor(times, dtype=values.dtype), dim=0)


def transport_cost(x0: Tensor, x1: Tensor, generator: Generator) -> Estimate:
    """W2^2 between two samples of equal size: the least mean |x0 - x1|^2 over all ways to pair them, exactly.

    As an estimate of W2^2 between the laws it errs upwards (W2^2 is jointly convex), slowly falling with n, in d
    dimensions about as n^(-2/d): compare equal n only. An energy along trajectories from x0 to x1 is never below it.

    Args:
        x0: (n, *event), at least 20.
        x1: (n, *event).
        generator: assigns the groups of the jackknife; on the CPU. Starts are left out together with their ends.

    Raises:
        ValueError: for fewer than 20 pairs.

    Reference: Peyre and Cuturi (2019), Computational Optimal Transport, sections 2.2 and 8.4, arXiv:1803.00567.

    Example:
        >>> x = torch.arange(20.0)[:, None]
        >>> transport_cost(x, 3 + x.flip(0), torch.Generator()).value
        9.0
    """
    cost = _costs(x0, x1)
    return jackknife_estimate(lambda kept: _least(cost, kept), [torch.arange(len(x0))], generator)


def energy_over_transport(energy: Tensor, x0: Tensor, x1: Tensor, generator: Generator) -> Estimate:
    """Mean energy along trajectories over the ``transport_cost`` of their own starts and ends: at least 1.

    1 for optimal transport only. It errs downwards, as the transport cost errs upwards: compare equal n only.

    Args:
        energy: (n,).
        x0: starts, (n, *event).
        x1: ends, (n, *event).
        generator: assigns the groups of the jackknife; on the CPU.

    Raises:
        ValueError: for fewer than 20 trajectories.

    Example:
        >>> x = torch.arange(20.0)[:, None]
        >>> energy_over_transport(torch.full((20,), 18.0), x, x + 3, torch.Generator()).value
        2.0
    """
    cost = _costs(x0, x1)

    def above(kept: Tensor) -> float:
        return float(energy[kept].mean()) / _least(cost, kept)

    return jackknife_estimate(above, [torch.arange(len(x0))], generator)


def _costs(x0: Tensor, x1: Tensor) -> Tensor:
    """|x0_i - x1_j|^2, (n, n)."""
    # By differences: the faster matrix product loses the digits of points that are near each other.
    apart = torch.cdist(x0.flatten(1).double(), x1.flatten(1).double(), compute_mode="donot_use_mm_for_euclid_dist")
    return apart.square()


def _least(cost: Tensor, kept: Tensor) -> float:
    """The least mean cost of pairing the kept rows with the kept columns."""
    from scipy.optimize import linear_sum_assignment

    among = cost[kept][:, kept].numpy()
    rows, columns = linear_sum_assignment(among)
    return float(among[rows, columns].mean())


def _sides(states: Tensor) -> Tensor:
    """(times, n, *event) -> (times - 1, n, size) of float64."""
    return states.flatten(2).double().diff(dim=0)


def _steps(times: Sequence[float]) -> Tensor:
    """(times - 1, 1): the lengths of the steps."""
    return torch.tensor(times, dtype=torch.float64).diff()[:, None]
