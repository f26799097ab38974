"""A training run as its monitors see it."""

from collections.abc import Callable
from dataclasses import dataclass, replace

import torch
from torch import Generator, Tensor, nn

from gftkit.data import conditions
from gftkit.data.pairing import pair
from gftkit.data.samples import Samples, Source, permuted_indices
from gftkit.data.transport import Transport
from gftkit.evaluation.evaluation import Evaluation
from gftkit.kernel.contracts import Batch, Coupling, Drift, Path, Profile, TimeLaw, TransportMap
from gftkit.kernel.errors import ConfigError
from gftkit.networks.anchor import Anchor
from gftkit.runs.schema import Config
from gftkit.theory import flow
from gftkit.theory.objective import Temperature
from gftkit.theory.temperature import temperatures_of
from gftkit.theory.times import scaled_times


@dataclass(frozen=True)
class TrainingState:
    """A training run as its monitors see it at an evaluation. Nothing in it may be changed.

    Attributes:
        step: optimiser steps done.
        progress: share of the run done, in [0, 1].
        temperature: now; 0 in pretraining. Where it depends on flow time, that of the mean retention.
        drift: the raw weights, in evaluation mode.
        ema: the averaged weights.
        anchor: the pretrained drift, None in pretraining.
        path: the conditional path.
        training: at most ``evaluate.count`` samples of the training data, scaled.
        reference: held-out data, scaled; the training data where nothing is held out.
        evaluation: the raw weights under evaluation.
        source: draws x0.
        coupling: pairs x0 with data.
        device: where the drifts are.
        seed: of the run.
        dataset: the whole training data.
        config: of the run.
        time: the law of t in the objective.
        weight: w(t) of the objective, None for 1.
        profile: the retention as a function of flow time, None where it doesn't depend on it.
        transport: the fitted map, where the coupling is one.
    """

    step: int
    progress: float
    temperature: float
    drift: nn.Module
    ema: nn.Module
    anchor: Anchor | None
    path: Path
    training: Batch
    reference: Batch
    evaluation: Evaluation
    source: Source
    coupling: Coupling | TransportMap
    device: torch.device
    seed: int
    dataset: Samples
    config: Config
    time: TimeLaw
    weight: Callable[[Tensor], Tensor] | None = None
    profile: Profile | None = None
    transport: Transport | None = None

    def temperature_at(self, t: Tensor) -> Temperature:
        """The temperature at flow times, (batch,) -> (batch,), or one number where it doesn't depend on them."""
        return self.temperature if self.profile is None else temperatures_of(self.profile, t)

    @property
    def conditional(self) -> bool:
        """True where the drift takes conditions."""
        return bool(conditions.condition_names(self.drift))

    def draw(self, count: int, generator: Generator, held_out: bool = False, keep: int | None = None) -> "Draw":  # noqa: FBT001, FBT002
        """Draw fresh pairs, times and noise on training or held-out samples, on ``device``.

        Args:
            count: samples that are paired as one batch; they repeat where the data have fewer.
            generator: the monitor's own, on the CPU.
            held_out: take the reference data; otherwise the whole training data.
            keep: number of the pairs to return; all by default.

        Raises:
            ConfigError: for held-out samples under a transport map, which goes to the training data only.
        """
        return draw_states(
            self._pairs(count, generator, held_out=held_out)[:keep],
            drift=self.drift,
            path=self.path,
            law=self.time,
            generator=generator,
            device=self.device,
            dropout=self.config.train.condition_dropout,
            anchor=self.anchor,
        )

    def _pairs(self, count: int, generator: Generator, *, held_out: bool) -> Batch:
        """Fresh pairs, on the CPU."""
        if self.transport is not None:
            if held_out:
                raise ConfigError(
                    f"coupling '{self.config.coupling['name']}' maps the source to the training data, so there are no "
                    f"pairs of held-out samples. Remove the monitor that draws them, or use another coupling."
                )
            return self.transport.draw(count, generator).to("cpu")
        data = self.reference
        targets = (
            data[permuted_indices(count, len(data), generator)] if held_out else self.dataset.draw(count, generator)
        )
        assert not isinstance(self.coupling, TransportMap)
        return pair_targets(targets, drift=self.drift, source=self.source, coupling=self.coupling, generator=generator)


def pair_targets(targets: Batch, *, drift: Drift, source: Source, coupling: Coupling, generator: Generator) -> Batch:
    """Pair data with source samples as one batch, each label by itself where the drift takes labels.

    Args:
        targets: the data, scaled; those that come with pairs of their own keep them.
        drift: names the conditions.
        source: draws x0.
        coupling: pairs x0 with the data.
        generator: on the CPU.
    """
    if targets.x0 is not None:
        return targets
    x0 = source(len(targets), generator)
    named = conditions.conditions_of(drift, targets)
    within = named.pop(conditions.LABEL, None) is not None
    order = pair(coupling, x0, targets.x1, generator, targets.label, within_labels=within, conditions=named)
    return replace(targets, x0=x0[order])


def draw_states(
    pairs: Batch,
    *,
    drift: Drift,
    path: Path,
    law: TimeLaw,
    generator: Generator,
    device: torch.device | str = "cpu",
    dropout: float = 0.0,
    anchor: Drift | None = None,
) -> "Draw":
    """Draw times and noise for pairs: states on the path, in the order of the pairs.

    Args:
        pairs: with x0, on the CPU.
        drift: names the conditions.
        path: of the states.
        law: of their times, scaled onto [0, t_end] of the path.
        generator: on the CPU.
        device: of the states.
        dropout: share of the pairs whose conditions are left out.
        anchor: has a null of its own for them, where it isn't None.
    """
    x0 = pairs.x0
    assert x0 is not None
    t = scaled_times(law, flow.t_end(path), torch.rand(len(x0), generator=generator))
    noise = torch.randn(x0.shape, generator=generator) if flow.is_noisy(path) else None
    batch = pairs.to(device)
    named = conditions.conditions_of(drift, batch)
    anchored = {name: named[name] for name in conditions.condition_names(anchor)}
    if dropout > 0:
        dropped = conditions.draw_dropped(len(batch), dropout, generator)
        named = conditions.without_conditions(drift, named, dropped)
        anchored = conditions.without_conditions(anchor, anchored, dropped)
    return Draw(
        t.to(device),
        flow.sample(path, t, x0, pairs.x1, noise).to(device),
        flow.drift(path, t, x0, pairs.x1, noise).to(device),
        named,
        anchored,
    )


@dataclass(frozen=True)
class Draw:
    """States on the path: times (n,), states x_t and conditional drifts (n, *event), and the drift's conditions.

    Where conditions are left out, the anchor is given its own null for them: ``anchor_conditions``.
    """

    t: Tensor
    x: Tensor
    target: Tensor
    conditions: dict[str, Tensor]
    anchor_conditions: dict[str, Tensor]

    def for_anchor(self) -> "Draw":
        """The same states as the anchor is to be given them."""
        return replace(self, conditions=self.anchor_conditions)
