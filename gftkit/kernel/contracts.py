"""Contracts: the members that a component of each kind needs. They are Protocols, so there is nothing to inherit.

Shapes: a batch of states is (batch, *event); t is (batch,) with values in [0, 1], 0 the source and 1 the data.
Members marked *optional* are looked up by gftkit and have the stated default.
"""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path as FilePath
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Generator, Tensor


@dataclass(frozen=True)
class Batch:
    """Samples of a data set.

    Attributes:
        x1: data, (batch, *event), floating point.
        label: class of each sample, (batch,) of int64 in [0, classes), or None.
        x0: a fixed partner of each sample, (batch, *event), or None where the source is drawn.
        conditions: what else is known of each sample, by name, (batch, *shape) each, floating point: a vector, a
            sequence of embeddings (batch, tokens, d), a mask of zeros and ones.
    """

    x1: Tensor
    label: Tensor | None = None
    x0: Tensor | None = None
    conditions: Mapping[str, Tensor] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.x1)

    def __getitem__(self, index: Any) -> "Batch":
        return self._each(lambda values: values[index])

    def to(self, device: torch.device | str) -> "Batch":
        """The same batch on another device; from page-locked memory without a wait."""
        return self._each(lambda values: values.to(device, non_blocking=values.is_pinned()))

    def pin_memory(self) -> "Batch":
        """The same batch in page-locked memory."""
        return self._each(lambda values: values.pin_memory())

    def tensors(self) -> dict[str, Tensor]:
        """Its tensors by name; None is left out."""
        named = {"x1": self.x1, "label": self.label, "x0": self.x0}
        conditions = {f"conditions.{name}": values for name, values in self.conditions.items()}
        return {**{name: values for name, values in named.items() if values is not None}, **conditions}

    def _each(self, change: Callable[[Tensor], Tensor]) -> "Batch":
        """The batch with every tensor changed alike."""
        label = None if self.label is None else change(self.label)
        x0 = None if self.x0 is None else change(self.x0)
        return Batch(change(self.x1), label, x0, {name: change(values) for name, values in self.conditions.items()})


@dataclass(frozen=True)
class Estimate:
    """A measured value and its standard error (0 for what is exact, nan where none can be given).

    Attributes:
        value: the estimate.
        stderr: its standard error.
        interval: (low, high) of 95 % confidence, for an estimate of which value ± 2 stderr would lie: near a bound, or
            of a skewed law. None where a normal one is meant.
    """

    value: float
    stderr: float
    interval: tuple[float, float] | None = None


@runtime_checkable
class Drift(Protocol):
    """A network for the drift b(t, x): an ``nn.Module`` with ``forward(t, x, **named conditions)``.

    (batch,), (batch, *event) -> (batch, *event). Optional: ``conditions``, the names of the conditions that it uses
    (default none), each a keyword of ``forward``: ``label``, (batch,) of int64, and the names in ``Batch.conditions``.
    ``null``, condition -> the value that stands for "not given", a number or a tensor that broadcasts to one sample's
    condition (say, ``{"label": classes}``): condition dropout and guidance put it in; a condition without one stays.
    ``jumps``, whether it is a flow map (default False): ``forward`` then takes ``end``, (batch,), too, and gives the
    average velocity from t to there; without an end it gives the drift. ``notes``, messages for the user before a run.
    A factory may take ``weights``, a file to start from: where the weights come from a run, gftkit gives None.
    """

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """The drift at time t in state x."""


@runtime_checkable
class Path(Protocol):
    """A conditional path x_t = sigma(t) x0 + alpha(t) x1 + gamma(t) eps with eps ~ N(0, I).

    Optional members, for which ``gftkit.theory.flow`` has defaults:

    - ``diffusion(t)``: g(t) >= 0 of dX = b dt + g dW, shape of t (default 0, a deterministic flow);
    - ``rates(t)``: the derivatives (sigma', alpha', gamma') (default: autograd of ``coefficients``);
    - ``drift(t, x0, x1, noise)``: only where velocity + (g^2/2) score cancels badly;
    - ``t_end``: the largest time that is trained on (default 1; below 1 where the drift is singular at t = 1);
    - ``final_step``: "euler-maruyama" (default) or "mean", how sampling goes from ``t_end`` to 1.
    """

    def coefficients(self, t: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(sigma, alpha, gamma) at t, each of t's shape."""


@runtime_checkable
class Profile(Protocol):
    """The retention as a function of flow time. Optional: ``fitted_on``, a run's ``weights`` and ``anchor``."""

    def retention(self, t: Tensor) -> Tensor:
        """The retention at t, finite numbers below 1 of t's shape, type and device; 0 where no anchor is needed."""


@runtime_checkable
class TimeLaw(Protocol):
    """The law of flow time by which a run draws it, on [0, 1]: gftkit scales it onto [0, ``t_end``] of the path."""

    def quantile(self, u: Tensor) -> Tensor:
        """The inverse distribution function: u in [0, 1) -> t in [0, 1], non-decreasing, of u's shape and type."""

    def density(self, t: Tensor) -> Tensor:
        """The density at t in (0, 1), of t's shape and type: finite, >= 0, with integral 1."""


@runtime_checkable
class Schedule(Protocol):
    """The temperature as a function of progress s in [0, 1], the share of training done.

    Optional: ``floor``, the lowest temperature it ever takes (default 0). ``profile(progress)``, a ``Profile`` where
    the retention depends on flow time, or None; ``temperature`` is then that of its mean over flow time. A schedule
    with feedback has the members of ``StoppingRule`` as well: it answers by what it has observed so far, changes at
    evaluations only, may end the run, and never rises above its temperature at the start.
    """

    def temperature(self, progress: float) -> float:
        """The temperature, a finite number above -1, at this progress; below 0 it goes beyond the target (T20)."""


@runtime_checkable
class StoppingRule(Protocol):
    """A rule that ends a run early. It reads the run's monitors and nothing else.

    ``needs``: names of the monitors that it listens to; gftkit adds those that the configuration doesn't name.
    ``done``: whether the run ends here. ``reason``: why, one sentence for people; empty before.
    """

    needs: Sequence[str]
    done: bool
    reason: str

    def observe(self, progress: float, measurements: Mapping[str, Mapping[str, Any]]) -> None:
        """Take up what the monitors measured at an evaluation, by monitor; the first is at progress 0.

        All processes receive the same. Don't draw random numbers here: a resumed run repeats itself.
        """

    def state_dict(self) -> Mapping[str, Any]:
        """All that it remembers, as plain values that JSON has: a checkpoint keeps them."""

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Take up what ``state_dict`` gave."""


@runtime_checkable
class Coupling(Protocol):
    """Pairs a source batch with a data batch. gftkit chooses the set that is paired.

    Optional: ``independent``, whether x0 stays independent of x1 (default False): what needs that is refused without.
    ``conditional``, whether ``pair`` takes one more keyword, ``conditions`` (default False): the named conditions that
    the drift is given, name -> (n, *shape), so that x0 stays nearly independent of them (theory, T10).
    """

    def pair(self, x0: Tensor, x1: Tensor, generator: Generator, label: Tensor | None = None) -> Tensor:
        """A permutation ``order`` of (n,): x0[order[i]] goes with x1[i]. x0 and x1 are (n, *event), on the CPU."""


@runtime_checkable
class TransportMap(Protocol):
    """A coupling in which x0 chooses x1: a map from the source to a finite set, fitted before the first step.

    gftkit keeps the set in memory, at most ``memory`` GB, and fits each label by itself where the drift takes labels.
    """

    memory: float

    def fit(
        self, x1: Tensor, source: Callable[[int, Generator], Tensor], generator: Generator, show: Callable[..., Any]
    ) -> Mapping[str, Tensor]:
        """The map to x1, (n, *event); users see its numbers, and ``show(draws, text)``. ``source`` is on the CPU."""

    def assign(self, x0: Tensor, x1: Tensor, fitted: Mapping[str, Tensor], generator: Generator) -> Tensor:
        """The index in x1 that each x0 goes to, int64, on x1's device. The generator is on the CPU."""


class Field(Protocol):
    """A drift as a solver sees it: conditions bound, time a number."""

    def __call__(self, t: float, x: Tensor) -> Tensor:
        """The drift at time t, of x's shape."""


class Jump(Protocol):
    """A flow map as a solver that jumps sees it."""

    def __call__(self, t: float, x: Tensor, end: float) -> Tensor:
        """The average velocity from t to ``end`` of what is x at t, of x's shape."""


class Diffusion(Protocol):
    """The noise scale g(t) as a solver sees it."""

    def __call__(self, t: float) -> float:
        """g(t) >= 0."""


@runtime_checkable
class Solver(Protocol):
    """One step of dX = b dt + g dW. gftkit owns the loop, the grid and the noise.

    ``ode_order``, ``strong_order``, ``weak_order``: declared orders, None where it doesn't solve that. A solver whose
    ``ode_order`` is None solves only SDEs; one whose ``strong_order`` and ``weak_order`` are None only ODEs.
    Optional: ``evaluations``, drift evaluations in a step (default 1); ``jumps``, whether it needs a flow map (default
    False): the field is then called as field(t, x, end), and the orders are those that it has of a velocity.
    """

    ode_order: float | None
    strong_order: float | None
    weak_order: float | None

    def step(self, drift: Field, diffusion: Diffusion, t: float, h: float, x: Tensor, dw: Tensor | None) -> Tensor:
        """The state at t + h; ``dw`` is the Brownian increment of variance h, None for an ODE."""


class BrownianPath(Protocol):
    """A Brownian path of the states' shape, as ``torchsde.BrownianInterval``; asked again, it answers the same."""

    def __call__(self, s: float, t: float, return_U: bool = False) -> Any:
        """Its increment W_t - W_s; with ``return_U`` a pair, with the integral of W_u - W_s over u in [s, t]."""


@runtime_checkable
class Integrator(Protocol):
    """A library's solver, which takes all steps itself; orders as in ``Solver``.

    Optional: ``adaptive``, whether it chooses its own steps (default False): then the grid's times are those that it
    must meet, the declared orders say nothing, and its error falls with its options ``rtol`` and ``atol``.
    """

    ode_order: float | None
    strong_order: float | None
    weak_order: float | None

    def brownian(self, x: Tensor, t_end: float, generator: Generator) -> BrownianPath:
        """A path on [0, t_end] of x's shape and type."""

    def integrate(
        self,
        drift: Field,
        diffusion: Diffusion | None,
        times: Sequence[float],
        x: Tensor,
        brownian: BrownianPath | None,
    ) -> Iterator[Tensor]:
        """The states at ``times``, x first, along any Brownian path. It and ``diffusion`` are None for an ODE."""


@runtime_checkable
class NoiseScale(Protocol):
    """The noise scale g(t) of the user's choice, to sample a velocity's flow by an SDE of the same marginals."""

    def __call__(self, t: Tensor) -> Tensor:
        """g(t) >= 0, of t's shape and type."""


@runtime_checkable
class TimeGrid(Protocol):
    """The times at which a sampler's steps begin and end.

    Optional: ``fitted_on``, what the times were fitted to, with the ``hash`` of its weights and the ``solver``'s name:
    something else that is sampled with them is warned about.
    """

    def times(self, steps: int) -> Sequence[float]:
        """``steps`` + 1 times, increasing from exactly 0 to exactly 1."""


@runtime_checkable
class Dataset(Protocol):
    """A finite set of samples.

    ``event_shape``: shape of one sample. ``range``: (low, high) of its values, which gftkit maps to [-1, 1] for
    training and back for samples, or None for data that are never rescaled.
    Optional: ``labels``, (len,) of int64; ``classes``, the number of classes (default: from ``labels``);
    ``condition_shapes``, name -> shape for one sample, of the ``conditions`` of every batch (default none); ``blocks``,
    the sizes of consecutive stretches of indices that are cheap to read together, such as the files of a set (default:
    none, and every sample costs the same). ``batch`` may be called in worker processes: a data set can be pickled, and
    opens its files where they are first read.
    """

    event_shape: tuple[int, ...]
    range: tuple[float, float] | None

    def __len__(self) -> int:
        """The number of samples."""

    def batch(self, indices: Tensor) -> Batch:
        """The samples at these indices, (batch,) of int64."""


@runtime_checkable
class Sampler(Protocol):
    """A synthetic data set: a law to draw from. ``event_shape``, ``range``, ``condition_shapes`` as in ``Dataset``.

    Optional: ``log_density(x)``, (batch, *event) -> (batch,), natural and normalised: a source that has it lets the
    densities of a flow be computed.
    """

    event_shape: tuple[int, ...]
    range: tuple[float, float] | None

    def draw(self, n: int, generator: Generator) -> Batch:
        """n fresh samples. The generator is on the CPU."""


@runtime_checkable
class Feature(Protocol):
    """A map from events to vectors, (n, *event) -> (n, d), for events scaled as in training."""

    def __call__(self, x: Tensor) -> Tensor:
        """The features of a batch."""


class EvaluationView(Protocol):
    """A metric's view of a model: ``gftkit.evaluation.Evaluation``. All on the CPU, scaled as in training.

    ``drift``, guided if the configuration says so; ``anchor``; ``path``; ``steps`` of the solver; ``reference`` data to
    compare with, ``held_out`` or not; ``training`` data; ``inherited``, which gives at most so many samples of the
    pretrained run's data; ``history``, lines of metrics.jsonl; ``count`` of samples; ``seed``.
    """

    drift: Drift
    anchor: Drift | None
    path: Path
    steps: int
    reference: Batch
    training: Batch | None
    held_out: bool
    inherited: Callable[[int], Batch] | None
    history: Sequence[Mapping[str, Any]]
    count: int
    seed: int

    @property
    def stochastic(self) -> bool:
        """True where sampling adds noise."""

    def samples(self, steps: int | None = None) -> Tensor:
        """(count, *event): generated samples, made once for each number of steps."""

    def trajectory(self, steps: int | None = None, count: int = 250) -> Tensor:
        """(times, count, *event): the states of the first ``count`` samples, from source to data."""

    def times(self, steps: int | None = None) -> tuple[float, ...]:
        """The times of ``trajectory``'s states, from 0 to 1."""

    def conditions(self, count: int) -> dict[str, Tensor]:
        """The conditions that the drift is given for its first ``count`` samples."""


class TrainingView(Protocol):
    """A monitor's view of a run: ``gftkit.training.TrainingState``. Nothing in it may be changed.

    The raw weights ``drift``, the averaged ones ``ema``; ``training`` and ``reference`` data, scaled.
    """

    step: int
    progress: float
    temperature: float
    drift: torch.nn.Module
    ema: torch.nn.Module
    path: Path
    coupling: Coupling
    training: Batch
    reference: Batch
    device: torch.device
    seed: int

    @property
    def anchor(self) -> Drift | None:
        """The pretrained drift; None in pretraining."""

    def draw(self, count: int, generator: Generator) -> Any:
        """Fresh pairs: ``t``, ``x``, ``target`` (the conditional drift), ``conditions`` and ``anchor_conditions``."""


@runtime_checkable
class Metric(Protocol):
    """A measurement of a model.

    Optional: ``check(scope)``: raises a ValueError where it can't measure a model in a ``gftkit.evaluation.Scope``,
    such as for too few samples. It is called before anything is trained or sampled, and is quick.
    """

    def measure(self, evaluation: "EvaluationView", generator: Generator) -> Mapping[str, Estimate]:
        """Named estimates; ``evaluation`` makes samples and trajectories when they are first asked for."""


@runtime_checkable
class Monitor(Protocol):
    """A measurement beside a training run. It has a generator of its own and never changes the run.

    Optional members:

    - ``sections(lines)``: what it shows in reports, a sequence of ``gftkit.recording.Section``; ``lines`` are its own
      lines of metrics.jsonl, one for each evaluation;
    - ``verdict(run)``: a ``gftkit.training.Verdict`` on a finished run, from its files.
    """

    def observe(self, state: "TrainingView") -> Mapping[str, Any]:
        """Named measurements at an evaluation step: numbers, or other plain values that JSON has."""

    def finish(self, folder: FilePath) -> None:
        """Called once at the end; may write files into the run folder."""
