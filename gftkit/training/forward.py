"""The inputs of a step, and the networks evaluated on them: precision, memory format, recomputed activations."""

import functools
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gftkit.kernel.contracts import Drift
from gftkit.kernel.errors import ConfigError
from gftkit.networks.anchor import Anchor
from gftkit.networks.precision import autocast, to_float32
from gftkit.runs.schema import Train
from gftkit.theory.objective import Temperature


@dataclass
class StepInputs:
    """The inputs of a step. None depends on the trained weights, so they can be prepared steps ahead.

    Attributes:
        step: its number.
        temperature: of the step, (batch,) where it depends on flow time.
        anchor: the pretrained drift, None where it isn't needed.
        anchored_at: indices of this process's pairs at which the anchor is evaluated; None for all.
        share: of the global batch at which the anchor is evaluated.
        t: times, (batch,).
        x: states, (batch, *event).
        target: b_t(x|z), (batch, *event).
        conditions: by name, (batch, ...) each.
        anchor_conditions: those of the anchor, with its own null where they are left out.
        anchored: b_pre at ``anchored_at``, where it was evaluated ahead.
    """

    step: int
    temperature: Temperature
    anchor: Anchor | None
    anchored_at: Tensor | None
    share: float
    t: Tensor
    x: Tensor
    target: Tensor
    conditions: Mapping[str, Tensor]
    anchor_conditions: Mapping[str, Tensor]
    anchored: Tensor | None = None


class Forward:
    """Drift and anchor at the same states, by ``train``'s options. Outputs are float32 or wider.

    Args:
        train: the options.
        device: where the networks are.
        event_shape: shape of one sample.

    Raises:
        ConfigError: for ``channels_last`` of events that aren't images.
    """

    def __init__(self, train: Train, device: torch.device, event_shape: tuple[int, ...]) -> None:
        if train.channels_last and len(event_shape) != 3:
            raise ConfigError(
                f"train.channels_last: wanted images (channels, height, width), got events of shape {event_shape}. "
                f"Leave it out."
            )
        self._device, self._precision = device, train.precision
        self._format = torch.channels_last if train.channels_last else None
        self._both: Callable[..., tuple[Tensor, Tensor | None]] = torch.compile(_both) if train.compile else _both

    def place(self, network: nn.Module) -> nn.Module:
        """A network with its weights in the memory format of the states."""
        return network if self._format is None else network.to(memory_format=self._format)  # type: ignore[call-overload]

    def __call__(
        self,
        model: nn.Module,
        anchor: Drift | None,
        t: Tensor,
        x: Tensor,
        conditions: Mapping[str, Tensor],
        anchor_conditions: Mapping[str, Tensor],
        indices: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """b(t, x) and b_pre(t, x).

        Args:
            model: the drift.
            anchor: b_pre(t, x, **conditions), or None to leave it out.
            t: (batch,).
            x: (batch, *event).
            conditions: the conditions of the drift, (batch, ...) each.
            anchor_conditions: those of the anchor, likewise.
            indices: indices of the samples at which the anchor is evaluated, (m,) of int64; None for all.

        Returns:
            (batch, *event), and (m, *event) or None.
        """
        with autocast(self._precision, self._device):
            states = self._laid_out(x)
            drift, anchored = self._both(model, anchor, t, states, (conditions, anchor_conditions), indices)
        return to_float32(drift), None if anchored is None else to_float32(anchored)

    def anchor_values(self, anchor: Drift, t: Tensor, x: Tensor, conditions: Mapping[str, Tensor]) -> Tensor:
        """b_pre(t, x) alone: (batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        with autocast(self._precision, self._device):
            return to_float32(anchor(t, self._laid_out(x), **conditions)) if len(x) else x

    def _laid_out(self, x: Tensor) -> Tensor:
        return x if self._format is None else x.contiguous(memory_format=self._format)


def _both(
    model: nn.Module,
    anchor: Drift | None,
    t: Tensor,
    x: Tensor,
    conditions: tuple[Mapping[str, Tensor], Mapping[str, Tensor]],
    indices: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Both networks in one function, so that the compiler can fuse across them."""
    own, anchors = conditions
    if anchor is None:
        anchored = None
    elif indices is None:
        anchored = anchor(t, x, **anchors)
    elif len(indices) == 0:
        anchored = x[:0]
    else:
        anchored = anchor(t[indices], x[indices], **{name: values[indices] for name, values in anchors.items()})
    return model(t, x, **own), anchored


def recompute_activations(drift: nn.Module) -> None:
    """Let a network's blocks recompute their activations for the gradient instead of storing them.

    A network's own ``enable_gradient_checkpointing`` is used where it has one. Otherwise the blocks are the members of
    its ``nn.ModuleList`` and ``nn.Sequential`` that contain other modules.

    Raises:
        ConfigError: for a network without such blocks.

    Reference: Chen et al. (2016), Training Deep Nets with Sublinear Memory Cost, arXiv:1604.06174.
    """
    for module in drift.modules():
        own = getattr(module, "enable_gradient_checkpointing", None)
        if callable(own):
            own()
            return
    blocks = list(_blocks(drift))
    if not blocks:
        raise ConfigError(
            "train.gradient_checkpointing: this network has no blocks (members of an nn.ModuleList or nn.Sequential "
            "that contain other modules) to recompute. Leave it out; train.accumulate saves memory too."
        )
    for block in blocks:
        block.forward = functools.partial(_recomputed, block, block.forward)


def _blocks(module: nn.Module) -> Any:
    """The outermost blocks of a network."""
    for child in module.children():
        listed = isinstance(module, (nn.ModuleList, nn.Sequential))
        made_of_others = any(True for _ in child.children()) and not isinstance(child, (nn.ModuleList, nn.Sequential))
        if listed and made_of_others:
            yield child
        else:
            yield from _blocks(child)


def _recomputed(block: nn.Module, forward: Callable[..., Any], *args: Any, **options: Any) -> Any:
    if block.training and torch.is_grad_enabled():
        return checkpoint(forward, *args, use_reentrant=False, **options)
    return forward(*args, **options)
