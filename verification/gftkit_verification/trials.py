"""The shipped training loop on a problem whose answer is known: in memory, without a run folder."""

from pathlib import Path

import torch
from torch import Tensor, nn

from gftkit.anchor import FrozenAnchor
from gftkit.config import Config, Evaluate, Objective, Train
from gftkit.contracts import Batch, Coupling, Dataset, Sampler, Schedule
from gftkit.contracts import Path as ConditionalPath
from gftkit.data import Order, Samples, Source
from gftkit.experiment import Experiment
from gftkit.loop import Loop
from gftkit.objective import Form
from gftkit.pairing import Pairs
from gftkit.progress import Progress
from gftkit.registry import Registry
from gftkit.run import Facts, default_solver, solver_of
from gftkit.training import accelerator_of


class Constant:
    """One temperature for the whole run."""

    def __init__(self, value: float) -> None:
        self.value = value

    def temperature(self, progress: float) -> float:  # noqa: ARG002
        """The value."""
        return self.value


class LinearModel(nn.Module):
    """A drift that is linear in its parameters: W phi(t, x) with phi = (1, t, ..., t^degree, x, t x, ..., t^degree x).

    Args:
        d: dimension of the state.
        degree: of the polynomials in t.
        weight: (d, (degree + 1)(1 + d)), or None for zeros.
    """

    def __init__(self, d: int, degree: int = 1, weight: Tensor | None = None) -> None:
        super().__init__()
        self.degree = degree
        start = torch.zeros(d, (degree + 1) * (1 + d)) if weight is None else weight.clone()
        self.weight = nn.Parameter(start)

    def features(self, t: Tensor, x: Tensor) -> Tensor:
        """phi(t, x): (batch,), (batch, d) -> (batch, (degree + 1)(1 + d))."""
        powers = torch.stack([t**k for k in range(self.degree + 1)], 1)  # (batch, degree + 1)
        return torch.cat([powers, (powers[:, :, None] * x[:, None]).flatten(1)], 1)

    def forward(self, t: Tensor, x: Tensor) -> Tensor:
        """W phi(t, x)."""
        return self.features(t, x) @ self.weight.mT


def trial(
    registry: Registry,
    drift: nn.Module,
    data: Dataset | Sampler,
    source: Source,
    path: ConditionalPath,
    coupling: Coupling,
    schedule: Schedule | float,
    train: Train,
    seed: int,
    form: Form = "blended",
    device: torch.device | str = "cpu",
    pretrained: nn.Module | None = None,
) -> Loop:
    """The kernel's ``Loop`` for a fine-tune, ready for ``loop.step(k)`` with k = 0, ..., train.steps - 1.

    Args:
        registry: gives the components that nothing here asks for.
        drift: starts with the pretrained weights; it is trained in place.
        data: the target.
        source: draws x0.
        path: the conditional path.
        coupling: pairs them; not asked where the data bring x0.
        schedule: a schedule, or a constant temperature.
        train: steps, batch size, optimiser, learning rate; ``ema`` is filled in.
        seed: of everything random.
        form: of the objective.
        device: where the networks are.
        pretrained: the anchor's network; by default the drift as it is given.
    """
    samples = Samples(data, "data")
    spec = {"name": "claim"}
    size = train.pairing_batch or train.batch_size
    config = Config(
        kind="finetune",
        **dict.fromkeys(("drift", "data", "source", "path", "coupling", "schedule"), spec),
        train=train,
        evaluate=Evaluate(),
        monitors=[],
        seed=seed,
        pretrained=None,
        objective=Objective(form),
    )
    solver, steps = solver_of(default_solver(path), path, registry)
    nothing = Batch(torch.zeros(0, *samples.event_shape))
    experiment = Experiment(
        config=config,
        facts=Facts(samples.event_shape, None, None),
        drift=drift,
        anchor=FrozenAnchor(pretrained or drift),
        path=path,
        schedule=schedule if isinstance(schedule, Schedule) else Constant(schedule),
        pairs=Pairs(Order(samples, seed), source, coupling, train.batch_size, size, seed, within_labels=False),
        weight=None,
        source=source,
        solver=solver,
        steps=steps,
        metrics=[],
        monitors=[],
        training=nothing,
        reference=nothing,
        warnings=[],
    )
    accelerator = accelerator_of(torch.device(device).type)
    return Loop(experiment, registry, Path(), accelerator, Progress(train.steps, "finetune", True))
