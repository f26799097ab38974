"""Trajectories from source to data: length, straightness, kinetic energy."""

from collections.abc import Mapping

from torch import Generator, Tensor

from gftkit.geometry import energies, lengths, straightness
from gftkit.kernel import Estimate, EvaluationView
from gftkit.theory import mean_estimate
from gftkit_plugins.metrics.naming import SolverSteps, value_name


class PathLength:
    """Mean length of the polygon of a sample's states: E sum_k |x_(k+1) - x_k|, from source to data.

    |.| is the Euclidean norm of the whole event. At least E|x_1 - x_0|, with equality for straight flows. Of a
    stochastic flow the length has no limit: it grows like the square root of the number of steps, so compare equal
    numbers of steps only.

    Value: ``path_length``, or ``path_length_4_steps`` where ``steps`` is 4; standard error std/sqrt(n) over the first
    250 samples at most.

    Args:
        steps: solver steps; the evaluation's own number by default.

    Raises:
        ValueError: in use, for fewer than 2 samples.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> states = torch.tensor([[[0.0, 0.0]] * 2, [[3.0, 4.0]] * 2, [[3.0, 5.0]] * 2])  # (times, count, event)
        >>> evaluation = SimpleNamespace(trajectory=lambda steps: states)
        >>> gftkit.load().create("metric", "path-length").measure(evaluation, torch.Generator())["path_length"]
        Estimate(value=6.0, stderr=0.0, interval=None)
    """

    def __init__(self, steps: SolverSteps = None) -> None:
        self.steps = steps

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:  # noqa: ARG002
        """The mean length over the evaluation's first samples."""
        values = lengths(evaluation.trajectory(self.steps))
        return {value_name("path_length", self.steps): _over_samples(values, "path-length")}


class Straightness:
    """S = E int |(x_1 - x_0) - v_t|^2 dt along the flow: 0 where every sample goes straight at constant speed.

    Then, and only then, one Euler step is exact. v is that of the polygon through the states, so that S errs downwards
    as the square of the step. It equals the kinetic energy minus E|x_1 - x_0|^2.

    Value: ``straightness``, or ``straightness_4_steps`` where ``steps`` is 4; standard error std/sqrt(n) over the first
    250 samples at most.

    Args:
        steps: solver steps; the evaluation's own number by default. At least 2: one step is always straight.

    Raises:
        ValueError: in use, for fewer than 2 samples or steps, and for a flow that is sampled with noise.

    Reference: Liu, Gong, Liu (2022), section 2.2, arXiv:2209.03003.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> states = torch.tensor([[[0.0]] * 2, [[1.0]] * 2, [[4.0]] * 2])  # (times, count, event)
        >>> evaluation = SimpleNamespace(trajectory=lambda n: states, times=lambda n: (0, 0.5, 1), stochastic=False)
        >>> gftkit.load().create("metric", "straightness").measure(evaluation, torch.Generator())["straightness"]
        Estimate(value=4.0, stderr=0.0, interval=None)
    """

    def __init__(self, steps: SolverSteps = None) -> None:
        self.steps = steps

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:  # noqa: ARG002
        """The mean over the evaluation's first samples."""
        states, times = _of_ode(evaluation, self.steps, "straightness")
        if len(times) < 3:
            raise ValueError("straightness requires at least 2 steps: one step is always straight. Raise `steps`.")
        return {value_name("straightness", self.steps): _over_samples(straightness(states, times), "straightness")}


class KineticEnergy:
    """E int |v_t|^2 dt along the flow: at least W2(p_0, p_1)^2, with equality for the optimal transport only.

    v is that of the polygon through the states, so that the energy errs downwards as the square of the step.

    Value: ``kinetic_energy``, or ``kinetic_energy_4_steps`` where ``steps`` is 4; standard error std/sqrt(n) over the
    first 250 samples at most.

    Args:
        steps: solver steps; the evaluation's own number by default.

    Raises:
        ValueError: in use, for fewer than 2 samples, and for a flow that is sampled with noise.

    Reference: Benamou and Brenier (2000), Numerische Mathematik 84, 375-393; theory, T10.

    Example:
        >>> import gftkit, torch
        >>> from types import SimpleNamespace
        >>> states = torch.tensor([[[0.0]] * 2, [[1.0]] * 2, [[4.0]] * 2])  # (times, count, event)
        >>> evaluation = SimpleNamespace(trajectory=lambda n: states, times=lambda n: (0, 0.5, 1), stochastic=False)
        >>> gftkit.load().create("metric", "kinetic-energy").measure(evaluation, torch.Generator())["kinetic_energy"]
        Estimate(value=20.0, stderr=0.0, interval=None)
    """

    def __init__(self, steps: SolverSteps = None) -> None:
        self.steps = steps

    def measure(self, evaluation: EvaluationView, generator: Generator) -> Mapping[str, Estimate]:  # noqa: ARG002
        """The mean over the evaluation's first samples."""
        values = energies(*_of_ode(evaluation, self.steps, "kinetic-energy"))
        return {value_name("kinetic_energy", self.steps): _over_samples(values, "kinetic-energy")}


def _of_ode(evaluation: EvaluationView, steps: int | None, metric: str) -> tuple[Tensor, tuple[float, ...]]:
    """States and times of a flow without noise."""
    if evaluation.stochastic:
        raise ValueError(
            f"{metric} requires a flow without noise: with noise it grows with the number of steps. Use an ODE "
            f"solver, or leave the metric out."
        )
    return evaluation.trajectory(steps), evaluation.times(steps)


def _over_samples(values: Tensor, metric: str) -> Estimate:
    """The mean of (n,) and its standard error."""
    if len(values) < 2:
        raise ValueError(
            f"{metric} requires at least 2 samples for a standard error, got {len(values)}. Make more samples."
        )
    return mean_estimate(values)
