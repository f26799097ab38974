"""Time grids fitted to a run: the times of N Euler steps with the least error, along its fine trajectories."""

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import yaml
from torch import Tensor

from gftkit.generation.requested_retention import RetentionRequest
from gftkit.geometry.grid_search import best_indices, descend, local_errors
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
"""Share of the distance by which a fitted grid must be better to be kept; it must also be by two standard errors."""
HEAD = "# Time grids for `grid: {name: fitted, file: ...}`, written by `gft fit-grid`.\n"


@dataclass(frozen=True)
class KnownTimes:
    """A grid of known times, as a component."""

    at: Times

    def times(self, steps: int) -> Times:  # noqa: ARG002
        """The times."""
        return self.at


@dataclass(frozen=True)
class Fit:
    """The times for a number of Euler steps, and how far from the flow's ends they end.

    Attributes:
        steps: N.
        times: the kept ones, from 0 to 1.
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
        ends = fitting.ends(euler, steps, KnownTimes(times(indices)))
        return float(squared_distances(ends, trajectory.states[-1]).mean())

    equal = [round(last * k / steps) for k in range(steps + 1)]
    start = min(best_indices(errors, steps), equal, key=error)
    return times(descend(start, last, error))


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
        stage: called with the name of each stage.

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
    fits = []
    for steps in sorted(set(numbers)):
        stage(f"{steps} steps")
        times, equal = fitted_times(fitting, trajectory, steps, errors), tuple(k / steps for k in range(steps + 1))
        uniform, fitted = (squared_distances(fresh.ends(euler, steps, KnownTimes(at)), ends) for at in (equal, times))
        gain = _difference_of_roots(uniform, fitted)
        better = gain.value > max(2 * gain.stderr, WORTH * float(uniform.mean().sqrt()))
        kept, name = (times, "fitted") if better else (equal, "uniform")
        fits.append(
            Fit(
                steps=steps,
                times=kept,
                kept=name,
                found=times,
                uniform=root_estimate(mean_estimate(uniform)),
                fitted=root_estimate(mean_estimate(fitted)),
                gain=gain,
            )
        )
    return fits


def _difference_of_roots(one: Tensor, other: Tensor) -> Estimate:
    """sqrt(E one) - sqrt(E other) over the same samples; the error is to first order."""
    roots = [float(values.mean().sqrt()) for values in (one, other)]
    if min(roots) == 0:
        return Estimate(roots[0] - roots[1], 0.0)
    return Estimate(roots[0] - roots[1], mean_estimate(one / (2 * roots[0]) - other / (2 * roots[1])).stderr)


def fit_run(
    run: RunFolder,
    numbers: Sequence[int],
    *,
    count: int = 256,
    fine_steps: int = FINE_STEPS,
    seed: int = 0,
    weights: Weights = "ema",
    retention: RetentionRequest | None = None,
    device: torch.device | str = "cpu",
    stage: Callable[[str], None] = lambda _: None,
) -> tuple[list[Fit], dict[str, Any]]:
    """Fit time grids to a finished run; returns them with notes on the fit.

    Args:
        run: the run.
        numbers: N of each grid.
        count: starts to fit on, and as many fresh ones to compare with.
        fine_steps: of the trajectories.
        seed: of the starts, those of ``gft sample``.
        weights: "ema" or "raw".
        retention: of a blend with the anchor, to whose flow the grids are fitted; see ``gftkit.Run.samples``.
        device: where to evaluate the drift.
        stage: called with the name of each stage.

    Raises:
        GftkitError: for a flow with noise, an N out of range, or fewer than 2 starts.
    """
    if count < 2:
        raise ConfigError(f"count: wanted at least 2, for a standard error, got {count}.")
    first = -(-count // BLOCK) * BLOCK  # the fresh starts begin with the next block of the sampler
    flows = flows_of(run, [0, first], count, seed=seed, weights=weights, retention=retention, device=device)
    fitting, fresh = flows
    fits = fit(fitting, fresh, numbers, fine_steps, stage)
    notes: dict[str, Any] = {"run": str(run.folder), "weights": weights, "hash": fitting.weights, "solver": "euler"}
    notes["retention"] = fitting.retention
    return fits, {**notes, "count": count, "fine_steps": fine_steps, "seed": seed}


def write_grids(path: Path, fits: Sequence[Fit], notes: dict[str, Any]) -> None:
    """Write the times of each N as YAML, with notes on the fit and the distances from the flow's ends."""
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
    """Read N -> times from a file of ``write_grids``, or one in its format.

    Raises:
        ConfigError: for a file that is missing, damaged, or of another format.
    """
    written = read_yaml(path).get("times")
    if not isinstance(written, dict) or not written:
        raise ConfigError(
            f"{path}: wanted time grids as `gft fit-grid` writes them, `times: {{4: [0, ..., 1]}}`, and `times` is "
            f"missing."
        )
    grids = {}
    for steps, times in written.items():
        if type(steps) is not int or steps < 1:
            raise ConfigError(f"{path}: wanted a number of steps as key in `times`, got {steps!r}.")
        grids[steps] = validate(list[float], times, f"{path}: times.{steps}")
    return grids
