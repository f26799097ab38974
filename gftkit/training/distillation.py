"""One step of a distillation: a flow map learns the flow of a teacher, at states on the path of its data."""

from typing import Any

import torch
from torch import Tensor

from gftkit.experiment.build import Experiment
from gftkit.kernel.errors import ConfigError
from gftkit.networks.flow_map import lagrangian_loss
from gftkit.networks.precision import autocast
from gftkit.runtime.devices import cuda_devices
from gftkit.runtime.randomness import stream
from gftkit.training.forward import StepInputs
from gftkit.training.steps import Steps, trained_weights


class Distillation(Steps):
    """The steps of a distillation: those of any run, with another loss and another law of times.

    Start and end are two uniform times in their order: of uniform law on 0 <= t <= s <= 1. States at t are those of the
    path.

    Args:
        experiment: everything the configuration names; its anchor is the teacher.
        accelerator: of the accelerate library.

    Raises:
        ConfigError: as ``Steps``, and for options that forward-mode derivatives don't support.
    """

    def __init__(self, experiment: Experiment, accelerator: Any) -> None:
        train = experiment.config.train
        for key in ("compile", "gradient_checkpointing"):
            if getattr(train, key):
                raise ConfigError(
                    f"train.{key}: a distillation differentiates in forward mode too, which this doesn't support. "
                    f"Leave it out."
                )
        if accelerator.num_processes > 1:
            raise ConfigError(
                f"a distillation runs in one process, got {accelerator.num_processes}. Start it without torchrun or "
                f"accelerate."
            )
        super().__init__(experiment, accelerator)
        self._check_derivatives()

    def _check_derivatives(self) -> None:
        """Refuse a network without derivatives in forward mode that can be differentiated again."""
        assert self.anchor is not None  # in a distillation, the teacher
        t, x, conditions = self._example()
        weights = trained_weights(self.drift)
        try:
            # Dropout may draw: forked, so that the run's own draws don't depend on this check.
            with torch.random.fork_rng(devices=cuda_devices(self.device)):
                loss = lagrangian_loss(self.model, self.anchor, t, t + 0.25, x, conditions).sum()
                torch.autograd.grad(loss, weights, allow_unused=True)
        except (NotImplementedError, RuntimeError) as error:
            raise ConfigError(
                f"drift: a distillation requires a network with derivatives in forward mode that can be differentiated "
                f"again, and this one has none: {str(error).splitlines()[0]} Fused attention and functions with a "
                f"custom backward pass are usual reasons: write them out."
            ) from error

    def times(self, count: int, generator: torch.Generator) -> Tensor:
        """The law of the start: the smaller of two uniform times."""
        return 1 - torch.rand(count, generator=generator, device=self.device).sqrt()

    def ends(self, step: int, t: Tensor) -> Tensor:
        """The law of the end: uniform between the start and 1."""
        generator = stream(self.config.seed, "end", step, device=self.device)
        return t + (1 - t) * torch.rand(len(t), generator=generator, device=self.device)

    def _losses(self, inputs: StepInputs, part: slice) -> Tensor:
        """The loss of each sample of a part of the batch."""
        assert self.anchor is not None  # in a distillation, the teacher
        end = self.ends(inputs.step, inputs.t)
        conditions = {name: values[part] for name, values in inputs.conditions.items()}
        with autocast(self.config.train.precision, self.device):
            return lagrangian_loss(self.model, self.anchor, inputs.t[part], end[part], inputs.x[part], conditions)
