"""Exponential moving averages of the weights: what a run samples with and hands on."""

from typing import Any

import torch
from torch import nn
from torch.func import functional_call

from gftkit.kernel.errors import WeightsError
from gftkit.runtime.sharding import local_part, shard_like
from gftkit.storage.tensors import State


class Averages:
    """The moving averages of a network's trainable weights: m <- decay m + (1 - decay) w after every step.

    Weights that don't train are not copied, so the averages of adapters are as small as the adapters.

    Args:
        drift: the network; what doesn't require a gradient now never will.
        decay: in [0, 1); 0 follows the weights.
        trained: average trained weights only, without those at the start: m <- m + (w - m)(1 - decay)/(1 - decay^n)
            after step n. For runs that may end while the start still weighs.

    Reference: Polyak and Juditsky (1992), SIAM J. Control Optim. 30(4); Song and Ermon (2020), arXiv:2006.09011,
    section 3.4 (the exponential form); Kingma and Ba (2015), arXiv:1412.6980, section 3 (without the start).
    """

    def __init__(self, drift: nn.Module, decay: float, *, trained: bool = False) -> None:
        self.decay, self.trained = decay, trained
        self._drift = drift
        weights = {name: weight for name, weight in drift.named_parameters() if weight.requires_grad}
        self._weights = list(weights.values())
        self._means = {name: weight.detach().clone() for name, weight in weights.items()}

    @torch.no_grad()
    def update(self, step: int) -> None:
        """Move the averages towards the weights as they are after a step, counted from 0."""
        share = 1 - self.decay
        if self.trained:
            share /= 1 - self.decay ** (step + 1)
        # The lists at once, a few kernels for all weights instead of one for each.
        means: Any = [local_part(mean) for mean in self._means.values()]
        torch._foreach_lerp_(means, [local_part(weight) for weight in self._weights], share)

    def tensors(self) -> State:
        """The averages by the name of their weight; the very tensors, not copies."""
        return dict(self._means)

    def restore(self, tensors: State, source: object) -> None:
        """Take the averages from a checkpoint.

        Raises:
            WeightsError: where one is missing.
        """
        missing = [name for name in self._means if name not in tensors]
        if missing:
            raise WeightsError(
                f"{source}: the moving average of {missing[0]} is missing. Resume from another checkpoint."
            )
        with torch.no_grad():
            for name, mean in self._means.items():
                mean.copy_(shard_like(tensors[name], mean))

    def drift(self) -> nn.Module:
        """The network with the averages in the place of its trained weights; it holds no second copy of the others."""
        return AveragedNetwork(self._drift, self._means)


class AveragedNetwork(nn.Module):
    """A network evaluated with other weights: its own stay as they are.

    Everything else, such as ``conditions`` or the training mode, is the network's.

    Args:
        drift: the network.
        weights: by name, those to put in the place of its own.
    """

    def __init__(self, drift: nn.Module, weights: State) -> None:
        super().__init__()
        self.__dict__["_held"] = (drift, weights)  # not a submodule: its weights aren't this module's
        self.training = drift.training
        self.requires_grad_(False)

    def __getattr__(self, name: str) -> Any:
        """Look up in the network what this module lacks."""
        return getattr(self.__dict__["_held"][0], name)

    def forward(self, *args: Any, **conditions: Any) -> Any:
        """The network's output with the other weights."""
        drift, weights = self._held
        return functional_call(drift, weights, args, conditions)

    def train(self, mode: bool = True) -> "AveragedNetwork":  # noqa: FBT001, FBT002
        """Switch the network's mode."""
        self._held[0].train(mode)
        self.training = mode
        return self

    def state_dict(self, *args: Any, **options: Any) -> Any:
        """The network's tensors, with the other weights in their places."""
        drift, weights = self._held
        return {**drift.state_dict(*args, **options), **weights}
