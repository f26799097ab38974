"""How a step evaluates its networks: precision, memory format, compiled or not, activations kept or computed again."""

import functools
from collections.abc import Callable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from torch.utils.checkpoint import checkpoint

from gftkit.kernel.errors import ConfigError
from gftkit.networks.precision import autocast, to_float32
from gftkit.runs.schema import Train

Anchor = Callable[..., Tensor]


class Forward:
    """Drift and anchor at the same states, by ``train``'s options. Outputs are float32 at least.

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
        anchor: Anchor | None,
        t: Tensor,
        x: Tensor,
        given: Mapping[str, Tensor],
        chosen: Tensor | None = None,
    ) -> tuple[Tensor, Tensor | None]:
        """b(t, x) and b_pre(t, x).

        Args:
            model: the drift.
            anchor: the anchor, or None to leave it out.
            t: (batch,).
            x: (batch, *event).
            given: the conditions, (batch, ...) each.
            chosen: the samples at which the anchor is evaluated, (chosen,) of int64; None for all.

        Returns:
            (batch, *event), and (chosen, *event) or None.
        """
        with autocast(self._precision, self._device):
            drift, anchored = self._both(model, anchor, t, self._laid_out(x), given, chosen)
        return to_float32(drift), None if anchored is None else to_float32(anchored)

    def ask(self, anchor: Anchor, t: Tensor, x: Tensor, given: Mapping[str, Tensor]) -> Tensor:
        """b_pre(t, x) alone: (batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        with autocast(self._precision, self._device):
            return to_float32(anchor(t, self._laid_out(x), **given)) if len(x) else x

    def _laid_out(self, x: Tensor) -> Tensor:
        return x if self._format is None else x.contiguous(memory_format=self._format)


def _both(
    model: nn.Module,
    anchor: Anchor | None,
    t: Tensor,
    x: Tensor,
    given: Mapping[str, Tensor],
    chosen: Tensor | None,
) -> tuple[Tensor, Tensor | None]:
    """Both networks in one function, for the compiler to see together."""
    if anchor is None:
        anchored = None
    elif chosen is None:
        anchored = anchor(t, x, **given)
    elif len(chosen) == 0:
        anchored = x[:0]
    else:
        anchored = anchor(t[chosen], x[chosen], **{name: values[chosen] for name, values in given.items()})
    return model(t, x, **given), anchored


def recompute_activations(drift: nn.Module) -> None:
    """Have a network's blocks keep no activations while training: they are computed again for the gradient.

    A network's own ``enable_gradient_checkpointing`` is used where it has one. Otherwise the blocks are the members of
    its ``nn.ModuleList`` and ``nn.Sequential`` that are made of other modules.

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
            "that are made of other modules) to compute again. Leave it out; train.accumulate saves memory too."
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
