"""A model under evaluation: samples, trajectories and reference data, each computed when first used."""

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch
from torch import Tensor

from gftkit.data import conditions
from gftkit.data.samples import Source
from gftkit.kernel.contracts import Batch, Drift, Path
from gftkit.runtime.randomness import stream
from gftkit.sampling.integrate import generate, grid_of
from gftkit.sampling.scheme import Scheme
from gftkit.theory import flow


class Evaluation:
    """A model as its metrics see it. Tensors are on the CPU and scaled as in training, unless said otherwise.

    The source samples and the solver's noise depend on ``seed`` only: two models, or one at two steps of its
    training, are compared by common random numbers.

    Args:
        drift: the trained drift, on ``device``, guided where ``evaluate.guidance`` says so.
        path: the path it was trained on.
        scheme: how it is sampled; its number of steps is used where a metric doesn't choose its own.
        source: draws source samples.
        reference: held-out data.
        count: how many samples to make.
        seed: of the source samples and the solver's noise.
        device: where the drift is evaluated.
        training: data it was trained on, or None.
        anchor: the pretrained drift, or None.
        history: lines of the run's metrics so far.
        batch_size: samples integrated at once.
        held_out: whether the model wasn't trained on the reference data.
        inherited: draws at most so many samples of the pretrained run's data; None without a pretrained run.
    """

    def __init__(  # noqa: PLR0913
        self,
        drift: Drift,
        path: Path,
        scheme: Scheme,
        *,
        source: Source,
        reference: Batch,
        count: int,
        seed: int,
        device: torch.device | str = "cpu",
        training: Batch | None = None,
        anchor: Drift | None = None,
        history: Sequence[Mapping[str, Any]] = (),
        batch_size: int = 500,
        held_out: bool = False,
        inherited: Callable[[int], Batch] | None = None,
    ) -> None:
        scheme.check(path)
        self._equation = scheme.equation(drift, path)
        self.drift, self.anchor = drift, anchor
        self.path, self.scheme, self.steps = path, scheme, scheme.steps
        self.reference, self.training = reference, training
        self.history = history
        self.held_out, self.inherited = held_out, inherited
        self.count, self.seed = count, seed
        self._source, self._device, self._batch_size = source, torch.device(device), batch_size
        self._samples: dict[int, Tensor] = {}

    def samples(self, steps: int | None = None) -> Tensor:
        """(count, *event): generated samples, computed once for each number of steps.

        Raises:
            DivergenceError: where a sample is not finite.
        """
        steps = steps or self.steps
        if steps not in self._samples:
            self._samples[steps] = self._integrate(steps, self.count, whole=False)
        return self._samples[steps]

    def trajectory(self, steps: int | None = None, count: int = 250) -> Tensor:
        """(times, count, *event): the states of the first ``count`` samples, from source to data."""
        return self._integrate(steps or self.steps, min(count, self.count), whole=True)

    def times(self, steps: int | None = None) -> tuple[float, ...]:
        """The times of ``trajectory``'s states, from 0 to 1."""
        grid = grid_of(self._equation[1], steps or self.steps, self.scheme.spacing)
        return grid.times if grid.closing is None else (*grid.times, 1.0)

    @property
    def stochastic(self) -> bool:
        """True where samples follow an SDE."""
        return flow.is_stochastic(self._equation[1])

    def conditions(self, count: int) -> dict[str, Tensor]:
        """The conditions of the first ``count`` samples: those of random reference data."""
        generator = stream(self.seed, "labels")
        indices = torch.randint(len(self.reference), (self.count,), generator=generator)[:count]
        return conditions.conditions_of(self.drift, self.reference[indices])

    def _integrate(self, steps: int, count: int, *, whole: bool) -> Tensor:
        """Samples or trajectories; noise and start don't depend on ``steps``."""
        return generate(
            *self._equation,
            solver=self.scheme.solver,
            steps=steps,
            # All are drawn, then cut, so that trajectories are those of the first samples.
            x0=self._source(self.count, stream(self.seed, "source"))[:count],
            noise=stream(self.seed, "solver", device=self._device),
            conditions=self.conditions(count),
            batch_size=self._batch_size,
            whole=whole,
            spacing=self.scheme.spacing,
        )
