"""The anchor: the pretrained drift that Gradual Fine-Tuning holds on to."""

import copy

import torch
from torch import Tensor, nn

from gftkit.files import digest


class FrozenAnchor:
    """A frozen copy of the pretrained drift: in evaluation mode, without gradients, sharing no weights.

    Args:
        drift: the pretrained drift, which is copied.

    Attributes:
        hash: SHA-256 of its weights, kept in every checkpoint.
        conditions: the conditions that it uses.
    """

    def __init__(self, drift: nn.Module) -> None:
        self.module = copy.deepcopy(drift).eval().requires_grad_(False)
        self.hash = digest(self.module.state_dict())
        self.conditions: tuple[str, ...] = getattr(drift, "conditions", ())

    @torch.no_grad()
    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """b_pre(t, x): one forward pass without gradient."""
        return self.module(t, x, **conditions)

    def to(self, device: torch.device | str) -> "FrozenAnchor":
        """The anchor, moved to a device."""
        self.module.to(device)
        return self
