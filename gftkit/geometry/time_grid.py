"""Time grids fitted to a run: where N Euler steps lose least, found along its fine trajectories and tried."""

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gftkit.geometry.tracing import FINE_STEPS, Flow, Trajectory, flows_of, squared_distances
from gftkit.kernel.contracts import Estimate
from gftkit.kernel.errors import ConfigError
from gftkit.kernel.options import validate
from gftkit.runs.folder import RunFolder, Weights
from gftkit.sampling.noise import BLOCK
from gftkit.storage.documents import read_yaml, write_text
from gftkit.theory.gap import mean_estimate, root_estimate

Times = tuple[float, ...]
WORTH = 1e-3
"""Share of the distance that a fitted grid must gain, and two standard errors, to be kept."""
SWEEPS = 2
"""Over all times, for each length of the strides that they are moved by."""
HEAD = "# Time grids for `grid: {name: fitted, file: ...}`, written by `gft fit-grid`.\n"


@dataclass(frozen=True)
class Given:
    """A grid of known times, as the kernel asks for it."""

    at: Times

    def times(self, steps: int) -> Times:  # noqa: ARG002
        """The times."""
        return self.at


@dataclass(frozen=True)
class Fit:
    """The times for a number of Euler steps, and how far from the flow's ends they end.

    Attributes:
        steps: N.
        times: those that are kept, from 0 to 1.
        kept: "fitted" where it ends nearer, by two standard errors and a thousandth; else "uniform".
        found: the fitted times, kept or not.
        uniform: root mean square distance of uniform steps' ends from the fine trajectories'.
        fitted: that of the fitted times.
        gain: the first minus the second; its error is that of a difference over the same starts.
    """

    steps: int
    times: Times
    kept: str
    found: Times
    uniform: Estimate
    fitted: Estimate
    gain: Estimate

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)


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
    found = torch.full((len(times), len(times)), math.inf, dtype=torch.float64)
    for i in range(len(times) - 1):
        step = (times[i + 1 :] - times[i])[:, None, None]
        off = x[i + 1 :] - x[i] - step * v[i]  # (later times, n, size)
        found[i, i + 1 :] = off.square().sum(2).mean(1).sqrt()
    return found


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
        least, chosen = (least[:, None] + cost).min(0)
        before.append(chosen)
    found = [last]
    for chosen in reversed(before):
        found.append(int(chosen[found[-1]]))
    return [0, *reversed(found)]


def descended(indices: Sequence[int], last: int, error: Callable[[Sequence[int]], float]) -> list[int]:
    """Move single inner indices where that lowers an error: by large strides first, by 1 in the end, two sweeps each.

    Args:
        indices: 0 = k_0 < ... < k_N = last.
        last: K.
        error: of such indices.

    Returns:
        Indices whose error is not above that of the given ones.

    Example:
        >>> descended([0, 2, 32], 32, lambda indices: abs(indices[1] - 12))
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
                        found = error(tried)
                        if found < least:
                            best, least = tried, found
            if least == before:
                break
    return best


def fitted_times(fitting: Flow, trajectory: Trajectory, steps: int, errors: Tensor) -> Times:
    """The times, among a fine trajectory's, that lose least in N Euler steps.

    First those that minimise the sum of the root mean square local errors, by dynamic programming: a bound of the error
    at t = 1 to first order, were local errors carried on without growth. But the flow's Jacobian Phi(1, t) carries them
    on (theory, T11), and shrinks early ones where the flow contracts. So from the better of these and equal steps on,
    single times are moved where that lowers the measured error at t = 1.

    Args:
        fitting: the flow, of the starts to fit on.
        trajectory: of it, fine.
        steps: N.
        errors: ``local_errors`` of the trajectory.
    """
    last = len(trajectory.times) - 1
    euler = fitting.registry.create("solver", "euler")

    def times(indices: Sequence[int]) -> Times:
        return tuple(trajectory.times[k] for k in indices)

    def error(indices: Sequence[int]) -> float:
        ends = fitting.ends(euler, steps, Given(times(indices)))
        return float(squared_distances(ends, trajectory.states[-1]).mean())

    equal = [round(last * k / steps) for k in range(steps + 1)]
    start = min(best_indices(errors, steps), equal, key=error)
    return times(descended(start, last, error))


def fit(
    fitting: Flow,
    fresh: Flow,
    numbers: Sequence[int],
    fine_steps: int = FINE_STEPS,
    stage: Callable[[str], None] = lambda _: None,
) -> list[Fit]:
    """Fit grids along some trajectories, and keep each only where it beats equal steps on others.

    Args:
        fitting: starts that grids are fitted on.
        fresh: other starts, on which uniform and fitted steps are compared by their ends.
        numbers: N of each grid.
        fine_steps: of the trajectories; the times are among theirs.
        stage: told what is done next.

    Raises:
        ConfigError: for an N that isn't at least 1 and below ``fine_steps``.
        DivergenceError: where a state is not finite.
    """
    for number in numbers:
        if not 1 <= number < fine_steps:
            raise ConfigError(f"steps: wanted 1 to {fine_steps - 1}, below the fine steps, got {number}.")
    stage("fine trajectories")
    trajectory = fitting.trajectory(fine_steps)
    errors = local_errors(trajectory)
    euler, rk4 = (fresh.registry.create("solver", name) for name in ("euler", "rk4"))
    ends = fresh.ends(rk4, fine_steps)
    found = []
    for steps in sorted(set(numbers)):
        stage(f"{steps} steps")
        times, equal = fitted_times(fitting, trajectory, steps, errors), tuple(k / steps for k in range(steps + 1))
        uniform, fitted = (squared_distances(fresh.ends(euler, steps, Given(at)), ends) for at in (equal, times))
        gain = _difference_of_roots(uniform, fitted)
        better = gain.value > max(2 * gain.stderr, WORTH * float(uniform.mean().sqrt()))
        kept, name = (times, "fitted") if better else (equal, "uniform")
        found.append(
            Fit(
                steps,
                kept,
                name,
                times,
                root_estimate(mean_estimate(uniform)),
                root_estimate(mean_estimate(fitted)),
                gain,
            )
        )
    return found


def _difference_of_roots(one: Tensor, other: Tensor) -> Estimate:
    """sqrt(E one) - sqrt(E other) over the same samples; the error is to first order."""
    roots = [float(values.mean().sqrt()) for values in (one, other)]
    if min(roots) == 0:
        return Estimate(roots[0] - roots[1], 0.0)
    return Estimate(roots[0] - roots[1], mean_estimate(one / (2 * roots[0]) - other / (2 * roots[1])).stderr)


def fit_run(
    run: RunFolder,
    numbers: Sequence[int],
    count: int = 256,
    fine_steps: int = FINE_STEPS,
    seed: int = 0,
    weights: Weights = "ema",
    device: torch.device | str = "cpu",
    stage: Callable[[str], None] = lambda _: None,
) -> tuple[list[Fit], dict[str, Any]]:
    """Time grids of a finished run, and what they were fitted on.

    Args:
        run: the run.
        numbers: N of each grid.
        count: starts to fit on, and as many fresh ones to compare on.
        fine_steps: of the trajectories.
        seed: of the starts, those of ``gft sample``.
        weights: "ema" or "raw".
        device: where to evaluate the drift.
        stage: told what is done next.

    Raises:
        GftkitError: for a flow with noise, an N out of range, or fewer than 2 starts.
    """
    if count < 2:
        raise ConfigError(f"count: wanted at least 2, for a standard error, got {count}.")
    first = -(-count // BLOCK) * BLOCK
    fitting, fresh = flows_of(run, [0, first], count, seed, weights, device)
    fits = fit(fitting, fresh, numbers, fine_steps, stage)
    notes = {"run": str(run.folder), "weights": weights, "hash": fitting.weights, "solver": "euler"}
    return fits, {**notes, "count": count, "fine_steps": fine_steps, "seed": seed}


def write_grids(path: Path, fits: Sequence[Fit], notes: dict[str, Any]) -> None:
    """Write the times of each N as YAML, with what they were fitted on and how far they end from the flow."""
    measured = {
        fit.steps: {
            "kept": fit.kept,
            **{
                name: {"rms": getattr(fit, name).value, "stderr": getattr(fit, name).stderr}
                for name in ("uniform", "fitted")
            },
        }
        for fit in fits
    }
    content = {"times": {fit.steps: list(fit.times) for fit in fits}, "fitted_on": notes, "distance": measured}
    write_text(path, HEAD + yaml.safe_dump(content, sort_keys=False, default_flow_style=None, width=120))


def read_grids(path: Path) -> dict[int, list[float]]:
    """N -> times, of a file that ``write_grids`` wrote, or one like it.

    Raises:
        ConfigError: where it is missing, damaged, or something else.
    """
    found = read_yaml(path).get("times")
    if not isinstance(found, dict) or not found:
        raise ConfigError(
            f"{path}: wanted time grids, `times: {{4: [0, ..., 1]}}`, as `gft fit-grid` writes them, and `times` is "
            f"missing."
        )
    grids = {}
    for steps, times in found.items():
        if type(steps) is not int or steps < 1:
            raise ConfigError(f"{path}: wanted a number of steps as key in `times`, got {steps!r}.")
        grids[steps] = validate(list[float], times, f"{path}: times.{steps}")
    return grids
