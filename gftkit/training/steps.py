"""One step of training: dataset -> coupling -> path -> objective (anchor, temperature) -> optimiser -> average."""

import math
from collections import deque
from collections.abc import Iterable, Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.data import conditions
from gftkit.data.prefetch import Batches
from gftkit.experiment.build import Experiment
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.networks.averages import Averages
from gftkit.runtime import devices
from gftkit.runtime.randomness import seed_global, stream
from gftkit.theory import flow
from gftkit.theory.objective import LOSSES, retention, shared_loss
from gftkit.theory.temperature import has_feedback, temperature_at
from gftkit.training.descent import Descent
from gftkit.training.forward import Anchor, Forward, recompute_activations
from gftkit.training.l2_sp import Start
from gftkit.training.optimizer import learning_rate, optimizer_of

AHEAD = 8
"""Steps whose anchor is evaluated at once, at most: as many batches are held meanwhile."""


@dataclass
class Given:
    """What a step is given: nothing of it depends on the weights that are trained.

    Attributes:
        step: its number.
        beta: temperature.
        anchor: the pretrained drift, None where it isn't needed.
        chosen: which of this process's pairs it is evaluated at; None for all.
        share: of the global batch that was chosen.
        t: times, (batch,).
        x: states, (batch, *event).
        target: b_t(x|z), (batch, *event).
        conditions: by name, (batch, ...) each.
        anchored: b_pre of those chosen, where it was evaluated ahead.
    """

    step: int
    beta: float
    anchor: Anchor | None
    chosen: Tensor | None
    share: float
    t: Tensor
    x: Tensor
    target: Tensor
    conditions: Mapping[str, Tensor]
    anchored: Tensor | None = None


class Steps:
    """The steps of a run: the networks, the optimiser, and what one step does with them.

    Args:
        experiment: everything the configuration names.
        accelerator: of the accelerate library.

    Attributes:
        drift: the network that is trained.
        model: the same as a step calls it: wrapped or sharded where there are several processes.
        ema: the network with the moving averages of its weights.
        anchor: the pretrained drift, None in pretraining.
        batches: gives a step's pairs; ``pairs``, or those made ahead.

    Raises:
        ConfigError: for a batch that the processes can't share, or an option that this network can't follow.
        DataError: for fewer samples than processes.
    """

    def __init__(self, experiment: Experiment, accelerator: Any) -> None:
        self.experiment, self.config = experiment, experiment.config
        self.accelerator, self.device = accelerator, accelerator.device
        train = self.config.train
        self._check_share(accelerator.num_processes)
        self.pairs = experiment.matching.pairs.shared(
            (accelerator.process_index, accelerator.num_processes), train.pairing
        )
        self.batches: Batches = self.pairs
        size = train.batch_size // accelerator.num_processes
        self.share = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        self.drift = experiment.networks.drift.to(self.device)
        if experiment.networks.adapted is None:
            self.drift.requires_grad_(True)
        self.anchor = None if experiment.networks.anchor is None else experiment.networks.anchor.to(self.device)
        self.forward = Forward(train, self.device, experiment.facts.event_shape)
        for network in (self.drift, getattr(self.anchor, "module", None)):
            if network is not None:
                self.forward.place(network)
        if train.gradient_checkpointing:
            recompute_activations(self.drift)
        optimizer = optimizer_of(train, trained_weights(self.drift))
        self.model = devices.prepare_network(accelerator, self.drift, optimizer, self._example)
        assert train.ema is not None  # filled in by reading.read
        may_end = experiment.matching.stop is not None or has_feedback(experiment.matching.schedule)
        averages = Averages(self.drift, train.ema, trained=may_end)
        self.ema = averages.drift()
        half = train.precision == "float16"
        weights, strength = trained_weights(self.drift), self.config.objective.l2_sp
        start = Start(weights, strength) if strength > 0 else None
        self.descent = Descent(optimizer, weights, averages, train.clip, half, self.device, start)
        self._noisy = flow.is_noisy(experiment.matching.path)
        self._t_end = flow.t_end(experiment.matching.path)
        self._given: deque[Given] = deque()

    def temperature(self, step: int) -> float:
        """beta at a step; 0 in pretraining."""
        schedule = self.experiment.matching.schedule
        if schedule is None:
            return 0.0
        return temperature_at(schedule, (self.config.schedule or {})["name"], step, self.config.train.steps)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """The law of t: uniform on [0, t_end]."""
        return self._t_end * torch.rand(count, generator=generator, device=self.device)

    def take(self, step: int) -> dict[str, Any]:
        """One optimiser step; what it returns stays on the device until somebody looks."""
        train = self.config.train
        rate = learning_rate(train, step)
        self.descent.begin(rate)
        if not self._given or self._given[0].step != step:
            self._given = deque(self._prepare(step))
        given = self._given.popleft()
        # Dropout draws from torch's global generator: seeded anew for each step and process.
        seed_global(stream(self.config.seed, "step", step, self.accelerator.process_index).initial_seed(), self.device)
        self.model.train()
        loss = torch.zeros((), device=self.device)
        size = len(given.t) // train.accumulate
        for first in range(0, len(given.t), size):
            with self._in_step(first + size == len(given.t)):
                mean = self._losses(given, slice(first, first + size)).mean() / given.x[0].numel() / train.accumulate
                self.descent.backward(mean)
            loss += mean.detach()
        norm = self.descent.step(step, loss)
        return {
            "loss": loss,
            "temperature": given.beta,
            "retention": retention(given.beta),
            "anchor_share": given.share if given.anchor is not None else 0.0,
            "learning_rate": rate,
            "gradient_norm": norm,
        }

    def _prepare(self, step: int) -> list[Given]:
        """What a step is given, and with it the next steps if their anchors make one batch together.

        The anchor doesn't learn, so it can be asked ahead, and a few samples take nearly the time of many. A group ends
        at a checkpoint: a resumed run then goes on with the groups of the undisturbed one.
        """
        train = self.config.train
        every = train.checkpoint_every or train.steps
        end = min(step - step % every + every, train.steps, step + AHEAD)
        if has_feedback(self.experiment.matching.schedule):  # its temperature is known up to the next evaluation
            heard = self.config.evaluate.every or train.steps
            end = min(end, step - step % heard + heard)
        room = (self.share.stop - self.share.start) // train.accumulate
        group: list[Given] = []
        for later in range(step, end):
            beta = self.temperature(later)
            anchor = self.anchor if beta > 0 else None
            chosen, share = self._chosen(later, beta) if anchor is not None else (None, 1.0)
            alone = chosen is None or train.compile
            room -= 0 if chosen is None else len(chosen)
            if not group or not (alone or room < 0):
                group.append(Given(later, beta, anchor, chosen, share, *self._states(later)))
            if alone or room < 0:
                break
        if len(group) > 1:
            self._ask_anchor(group)
        return group

    def _states(self, step: int) -> tuple[Tensor, Tensor, Tensor, dict[str, Tensor]]:
        """Times, states, the conditional drift at them, and conditions."""
        experiment, train = self.experiment, self.config.train
        pairs = self.batches.at(step).to(self.device)
        assert pairs.x0 is not None
        # Times and noise are those of the global batch, so that they don't depend on the number of processes.
        generator = stream(self.config.seed, "time", step, device=self.device)
        t = self.times(train.batch_size, generator)[self.share]
        noise = None
        if self._noisy:
            shape = (train.batch_size, *pairs.x1.shape[1:])
            noise = torch.randn(shape, generator=generator, device=self.device)[self.share]
        x = flow.sample(experiment.matching.path, t, pairs.x0, pairs.x1, noise)
        target = flow.drift(experiment.matching.path, t, pairs.x0, pairs.x1, noise)
        given = conditions.conditions_of(self.drift, pairs)
        if train.condition_dropout > 0:
            generator = stream(self.config.seed, "condition-dropout", step, device=self.device)
            dropped = conditions.draw_dropped(train.batch_size, train.condition_dropout, generator)
            given = conditions.without_conditions(self.drift, given, dropped[self.share])
        return t, x, target, given

    def _ask_anchor(self, group: list[Given]) -> None:
        """Evaluate the anchor of several steps at once."""

        picks = [one.chosen for one in group if one.chosen is not None]

        def chosen(values: Iterable[Tensor]) -> Tensor:
            return torch.cat([each[pick] for each, pick in zip(values, picks, strict=True)])

        assert group[0].anchor is not None
        anchored = self.forward.ask(
            group[0].anchor,
            chosen(one.t for one in group),
            chosen(one.x for one in group),
            {name: chosen(one.conditions[name] for one in group) for name in group[0].conditions},
        )
        for one, part in zip(group, torch.split(anchored, [len(pick) for pick in picks]), strict=True):
            one.anchored = part

    def _chosen(self, step: int, beta: float) -> tuple[Tensor | None, float]:
        """Which of this process's pairs the anchor is evaluated at, and their share of the global batch."""
        wanted = self.config.objective.anchor_share
        share = retention(beta) if wanted == "retention" else float(wanted)
        n = self.config.train.batch_size
        count = math.ceil(share * n * (1 - 1e-12))  # a product that round-off lifts above k is k
        if count == n:
            return None, 1.0
        # Drawn on the CPU: how many of them are this process's is known without waiting for the device.
        order = torch.randperm(n, generator=stream(self.config.seed, "anchor", step))[:count].sort().values
        mine = order[(order >= self.share.start) & (order < self.share.stop)] - self.share.start
        return mine, count / n

    def _losses(self, given: Given, part: slice) -> Tensor:
        """The loss of each sample of a part of the batch."""
        form, weight = self.config.objective.form, self.experiment.matching.weight
        here, known = given.chosen, given.anchored
        if here is not None:
            inside = (here >= part.start) & (here < part.stop)
            here, known = here[inside] - part.start, None if known is None else known[inside]
        drift, anchored = self.forward(
            self.model,
            given.anchor if known is None else None,
            given.t[part],
            given.x[part],
            {name: held[part] for name, held in given.conditions.items()},
            here,
        )
        anchored = known if anchored is None else anchored
        weights = None if weight is None else weight(given.t[part])
        if here is None or anchored is None:
            return LOSSES[form](drift, given.target[part], anchored, given.beta, weights)
        losses = shared_loss(
            drift, given.target[part], anchored, here.to(drift.device), given.share, given.beta, weights
        )
        return losses if form == "penalty" else losses / (1 + given.beta)

    def _in_step(self, last: bool) -> AbstractContextManager[Any]:
        """Gradients are exchanged between processes once a step, with its last part."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _example(self) -> devices.Inputs:
        """Inputs to try the network on."""
        facts = self.experiment.facts
        given = facts.zeros(conditions.condition_names(self.drift), 2)
        x = torch.zeros(2, *facts.event_shape, device=self.device)
        return torch.full((2,), 0.5, device=self.device), x, {key: held.to(self.device) for key, held in given.items()}

    def _check_share(self, processes: int) -> None:
        """Refuse a batch, or data, that the processes can't share."""
        train, size = self.config.train, self.experiment.matching.pairs.order.samples.size
        if train.batch_size % (processes * train.accumulate):
            raise ConfigError(
                f"train.batch_size: {train.batch_size} pairs can't be shared by {processes} processes in "
                f"{train.accumulate} parts (train.accumulate). Choose a multiple of {processes * train.accumulate}."
            )
        if size is not None and size < processes:
            raise DataError(f"data: {size} samples for {processes} processes. Start at most {size}, or give more data.")


def trained_weights(drift: nn.Module) -> list[nn.Parameter]:
    """The weights that a run trains."""
    return [weight for weight in drift.parameters() if weight.requires_grad]
