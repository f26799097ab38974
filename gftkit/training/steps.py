"""One step of training: dataset -> coupling -> path -> objective (anchor, temperature) -> optimiser -> average."""

import math
from collections import deque
from collections.abc import Iterable
from contextlib import AbstractContextManager, nullcontext
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.data import conditions
from gftkit.data.prefetch import Batches
from gftkit.experiment.build import Experiment
from gftkit.gradual.objective import GradualObjective
from gftkit.kernel.contracts import Profile
from gftkit.kernel.errors import ConfigError, DataError
from gftkit.networks.anchor import Anchor
from gftkit.networks.averages import Averages
from gftkit.runtime import devices
from gftkit.runtime.randomness import seed_global, stream
from gftkit.theory import flow
from gftkit.theory.objective import Temperature, retention
from gftkit.theory.temperature import TIMES, has_feedback, temperatures_of
from gftkit.theory.times import scaled_times
from gftkit.training.descent import Descent
from gftkit.training.forward import Forward, StepInputs, recompute_activations
from gftkit.training.l2_sp import StartingPoint
from gftkit.training.optimizer import learning_rate, optimizer_of

AHEAD = 8
"""Most steps whose anchor is evaluated at once; their batches stay in memory meanwhile."""


class Steps:
    """The steps of a run: the networks, the optimiser, and one step with them.

    Args:
        experiment: everything the configuration names.
        accelerator: of the accelerate library.

    Attributes:
        drift: the network that is trained.
        model: the same network as a step calls it: wrapped or sharded where there are several processes.
        ema: the network with the moving averages of its weights.
        anchor: the pretrained drift, None in pretraining.
        batches: the pairs by step: ``pairs``, or those that worker processes make ahead.

    Raises:
        ConfigError: for a batch that the processes can't share, or an option that this network doesn't support.
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
        # Times, noise, dropped conditions and the anchor's subset are drawn for the global batch, of which each process
        # takes its share: they don't depend on the number of processes.
        size = train.batch_size // accelerator.num_processes
        self.share = slice(accelerator.process_index * size, (accelerator.process_index + 1) * size)
        self.drift = experiment.networks.drift.to(self.device)
        if experiment.networks.adapted is None:
            self.drift.requires_grad_(True)
        self.anchor = None if experiment.networks.anchor is None else experiment.networks.anchor.to(self.device)
        name = (self.config.schedule or {}).get("name", "")
        self.objective = GradualObjective(experiment.matching.schedule, name, train.steps, self.config.objective.form)
        self.forward = Forward(train, self.device, experiment.facts.event_shape)
        for network in (self.drift, getattr(self.anchor, "module", None)):
            if network is not None:
                self.forward.place(network)
        if train.gradient_checkpointing:
            recompute_activations(self.drift)
        # Before the network is sharded: FSDP exchanges the optimiser's weights for their shards.
        optimizer = optimizer_of(train, trained_weights(self.drift))
        self.model = devices.prepare_network(accelerator, self.drift, optimizer, self._example)
        assert train.ema is not None  # filled in where the configuration was resolved
        # From here on the weights may be shards: averages and starting point copy those.
        # At an early end an exponential average would still contain much of the start.
        may_end = experiment.matching.stop is not None or has_feedback(experiment.matching.schedule)
        averages = Averages(self.drift, train.ema, trained=may_end)
        self.ema = averages.drift()
        half = train.precision == "float16"
        weights, strength = trained_weights(self.drift), self.config.objective.l2_sp
        start = StartingPoint(weights, strength) if strength > 0 else None
        self.descent = Descent(
            optimizer, weights, averages, clip=train.clip, half=half, device=self.device, start=start
        )
        self._noisy = flow.is_noisy(experiment.matching.path)
        self._t_end = flow.t_end(experiment.matching.path)
        self._upcoming: deque[StepInputs] = deque()

    def temperature(self, step: int) -> float:
        """The temperature at a step; 0 in pretraining."""
        return self.objective.temperature(step)

    def profile(self, step: int) -> Profile | None:
        """The retention at a step as a function of flow time; None where one temperature says it all."""
        return self.objective.profile(step)

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """Times of the objective's law, scaled onto [0, t_end]."""
        # t_end is below 1 on paths whose drift has no bound near t = 1, such as a bridge: no loss is taken there.
        u = torch.rand(count, generator=generator, device=self.device)
        return scaled_times(self.experiment.matching.time, self._t_end, u)

    def take(self, step: int) -> dict[str, Any]:
        """Take one optimiser step; the values that it returns stay on the device until they are read."""
        train = self.config.train
        rate = learning_rate(train, step)
        self.descent.begin(rate)
        if not self._upcoming or self._upcoming[0].step != step:  # such as after a resume
            self._upcoming = deque(self._prepare(step))
        inputs = self._upcoming.popleft()
        # Dropout draws from torch's global generator: seeded by (seed, step, process), it needs no state to resume.
        seed_global(stream(self.config.seed, "step", step, self.accelerator.process_index).initial_seed(), self.device)
        self.model.train()
        loss = torch.zeros((), device=self.device)
        size = len(inputs.t) // train.accumulate
        for first in range(0, len(inputs.t), size):
            with self._in_step(last=first + size == len(inputs.t)):
                mean = self._losses(inputs, slice(first, first + size)).mean() / inputs.x[0].numel() / train.accumulate
                self.descent.backward(mean)
            loss += mean.detach()
        norm = self.descent.step(step, loss)
        temperature = self.temperature(step)
        return {
            "loss": loss,
            "temperature": temperature,
            "retention": retention(temperature),
            **_retention_range(self.profile(step)),
            "anchor_share": _evaluated_share(inputs),
            "learning_rate": rate,
            "gradient_norm": norm,
        }

    def _prepare(self, step: int) -> list[StepInputs]:
        """The inputs of a step, and of the next ones if their anchors make one batch together.

        The anchor isn't trained, so it can be evaluated ahead, and a few samples take nearly the time of many. A group
        ends at a checkpoint: a resumed run then has the groups, and so the round-off, of the undisturbed one.
        """
        train = self.config.train
        every = train.checkpoint_every or train.steps
        end = min(step - step % every + every, train.steps, step + AHEAD)
        if has_feedback(self.experiment.matching.schedule):  # its temperature is known up to the next evaluation
            interval = self.config.evaluate.every or train.steps
            end = min(end, step - step % interval + interval)
        room = (self.share.stop - self.share.start) // train.accumulate
        group: list[StepInputs] = []
        for later in range(step, end):
            temperature = self._temperatures(later)
            anchor = self.anchor if isinstance(temperature, Tensor) or temperature != 0 else None
            subset, share = self._anchor_subset(later, temperature) if anchor is not None else (None, 1.0)
            # Compiled, drift and anchor are one function of one batch.
            alone = subset is None or train.compile
            room -= 0 if subset is None else len(subset)
            if not group or not (alone or room < 0):
                group.append(self._inputs(later, temperature, anchor, subset, share))
            if alone or room < 0:
                break
        if len(group) > 1:
            self._evaluate_anchor(group)
        return group

    def _inputs(
        self, step: int, temperature: Temperature, anchor: Anchor | None, anchored_at: Tensor | None, share: float
    ) -> StepInputs:
        """The inputs of a step: times, states, the conditional drift at them, and conditions."""
        experiment, train = self.experiment, self.config.train
        pairs = self.batches.at(step).to(self.device)
        assert pairs.x0 is not None
        t, generator = self._times_of(step)
        noise = None
        if self._noisy:
            shape = (train.batch_size, *pairs.x1.shape[1:])
            noise = torch.randn(shape, generator=generator, device=self.device)[self.share]
        x = flow.sample(experiment.matching.path, t, pairs.x0, pairs.x1, noise)
        target = flow.drift(experiment.matching.path, t, pairs.x0, pairs.x1, noise)
        named = conditions.conditions_of(self.drift, pairs)
        anchor_named = {name: named[name] for name in conditions.condition_names(anchor)}
        if train.condition_dropout > 0:
            generator = stream(self.config.seed, "condition-dropout", step, device=self.device)
            dropped = conditions.draw_dropped(train.batch_size, train.condition_dropout, generator)[self.share]
            named = conditions.without_conditions(self.drift, named, dropped)
            # Its own null: another number of classes has another one.
            anchor_named = conditions.without_conditions(anchor, anchor_named, dropped)
        return StepInputs(
            step=step,
            temperature=temperature,
            anchor=anchor,
            anchored_at=anchored_at,
            share=share,
            t=t,
            x=x,
            target=target,
            conditions=named,
            anchor_conditions=anchor_named,
        )

    def _times_of(self, step: int) -> tuple[Tensor, torch.Generator]:
        """The flow times of this process's pairs, (batch,), and the generator, from which their noise comes next."""
        generator = stream(self.config.seed, "time", step, device=self.device)
        return self.times(self.config.train.batch_size, generator)[self.share], generator

    def _temperatures(self, step: int) -> Temperature:
        """The temperature of a step's pairs: (batch,) where it depends on flow time."""
        profile = self.profile(step)
        return self.temperature(step) if profile is None else temperatures_of(profile, self._times_of(step)[0])

    def _evaluate_anchor(self, group: list[StepInputs]) -> None:
        """Evaluate the anchor of several steps at once."""
        subsets = [inputs.anchored_at for inputs in group if inputs.anchored_at is not None]

        def joined(values: Iterable[Tensor]) -> Tensor:
            return torch.cat([each[subset] for each, subset in zip(values, subsets, strict=True)])

        assert group[0].anchor is not None
        anchored = self.forward.anchor_values(
            group[0].anchor,
            joined(inputs.t for inputs in group),
            joined(inputs.x for inputs in group),
            {name: joined(inputs.anchor_conditions[name] for inputs in group) for name in group[0].anchor_conditions},
        )
        for inputs, part in zip(group, torch.split(anchored, [len(subset) for subset in subsets]), strict=True):
            inputs.anchored = part

    def _anchor_subset(self, step: int, temperature: Temperature) -> tuple[Tensor | None, float]:
        """Indices of this process's pairs at which the anchor is evaluated, and the share of the batch they are from.

        The share is drawn at random, and of the pairs in it those are left out whose retention is 0.
        """
        setting, n = self.config.objective.anchor_share, self.config.train.batch_size
        profile = self.profile(step)
        kept = None if profile is None else profile.retention(TIMES)
        if setting == "retention":
            share = abs(retention(self.temperature(step))) if kept is None else float(kept.abs().mean())
        else:
            share = float(setting)
        count = min(math.ceil(share * n * (1 - 1e-12)), n)  # a product that round-off lifts above k is k
        mine = None
        if count < n:
            # Drawn on the CPU: the number of this process's is known without waiting for the device.
            order = torch.randperm(n, generator=stream(self.config.seed, "anchor", step))[:count].sort().values
            mine = order[(order >= self.share.start) & (order < self.share.stop)] - self.share.start
        # Where no retention is 0 nothing is left out, and the device isn't waited for.
        if isinstance(temperature, Tensor) and kept is not None and bool((kept == 0).any()):
            used = (temperature != 0).cpu()
            mine = used.nonzero()[:, 0] if mine is None else mine[used[mine]]
        return mine, count / n

    def _losses(self, inputs: StepInputs, part: slice) -> Tensor:
        """The loss of each sample of a part of the batch."""
        weight = self.experiment.matching.weight
        subset, evaluated = inputs.anchored_at, inputs.anchored
        if subset is not None:
            inside = (subset >= part.start) & (subset < part.stop)
            subset = subset[inside] - part.start
            evaluated = None if evaluated is None else evaluated[inside]
        drift, anchored = self.forward(
            self.model,
            inputs.anchor if evaluated is None else None,
            inputs.t[part],
            inputs.x[part],
            {name: values[part] for name, values in inputs.conditions.items()},
            {name: values[part] for name, values in inputs.anchor_conditions.items()},
            subset,
        )
        anchored = evaluated if anchored is None else anchored
        weights = None if weight is None else weight(inputs.t[part])
        target, temperature = inputs.target[part], inputs.temperature
        if isinstance(temperature, Tensor):
            temperature = temperature[part]
        return self.objective.losses(drift, target, anchored, temperature, weights, indices=subset, share=inputs.share)

    def _in_step(self, *, last: bool) -> AbstractContextManager[Any]:
        """Let processes exchange gradients once a step, with its last part: earlier parts only add to them."""
        return nullcontext() if last else self.accelerator.no_sync(self.model)

    def _example(self) -> devices.Inputs:
        """Inputs for a trial call of the network."""
        facts = self.experiment.facts
        zeros = facts.zeros(conditions.condition_names(self.drift), 2)
        x = torch.zeros(2, *facts.event_shape, device=self.device)
        return (
            torch.full((2,), 0.5, device=self.device),
            x,
            {key: value.to(self.device) for key, value in zeros.items()},
        )

    def _check_share(self, processes: int) -> None:
        """Refuse a batch, or data, that the processes can't share."""
        train, size = self.config.train, self.experiment.matching.pairs.order.samples.size
        if train.batch_size % (processes * train.accumulate):
            raise ConfigError(
                f"train.batch_size: {train.batch_size} pairs can't be divided evenly between {processes} processes "
                f"with {train.accumulate} parts each (train.accumulate). Choose a multiple of "
                f"{processes * train.accumulate}."
            )
        if size is not None and size < processes:
            raise DataError(
                f"data: wanted at least one sample for each of {processes} processes, got {size}. Start at most "
                f"{size}, or add data."
            )


def _evaluated_share(inputs: StepInputs) -> float:
    """The share of a batch at which the anchor is evaluated; of this process's part where it depends on flow time."""
    if inputs.anchor is None:
        return 0.0
    if inputs.anchored_at is None or not isinstance(inputs.temperature, Tensor):
        return inputs.share
    return len(inputs.anchored_at) / len(inputs.t)


def _retention_range(profile: Profile | None) -> dict[str, float]:
    """The lowest and highest retention over flow time; nothing where it doesn't depend on it."""
    if profile is None:
        return {}
    values = profile.retention(TIMES)
    return {"retention_low": float(values.min()), "retention_high": float(values.max())}


def trained_weights(drift: nn.Module) -> list[nn.Parameter]:
    """The weights that a run trains: under adapters, theirs only."""
    return [weight for weight in drift.parameters() if weight.requires_grad]
