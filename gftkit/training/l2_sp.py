"""The weights that a fine-tune starts from, and the pull back to them: L2-SP."""

from collections.abc import Iterable

import torch
from torch import nn

from gftkit.runtime.sharding import local_part


class StartingPoint:
    """The gradient of (strength/2) |w - w_start|^2, added to that of the loss: L2-SP.

    The norm is over all trained weights. The loss of the data is flow matching's mean over a batch, divided by
    the number of values in an event.

    Args:
        parameters: the trained weights; copies of their values now are w_start.
        strength: alpha >= 0 of the paper.

    Reference: Li, Grandvalet, Davoine (2018), Explicit Inductive Bias for Transfer Learning with Convolutional
    Networks, Eq. 2 without its last term, arXiv:1802.01483.
    """

    def __init__(self, parameters: Iterable[nn.Parameter], strength: float) -> None:
        self.strength = strength
        self._parameters = list(parameters)
        # Under FSDP each process copies its own shards: the pull needs no communication.
        self._start = [local_part(weight.detach()).clone() for weight in self._parameters]

    @torch.no_grad()
    def pull(self) -> None:
        """Add strength (w - w_start) to the gradients; a weight without a gradient wasn't moved, and isn't pulled."""
        for weight, start in zip(self._parameters, self._start, strict=True):
            if weight.grad is not None:
                local_part(weight.grad).add_(local_part(weight.detach()) - start, alpha=self.strength)
