"""A convolutional drift for images."""

import math
from typing import Annotated, TypeVar

import torch
from pydantic import Field
from torch import Tensor, nn
from torch.nn import functional

from gftkit_plugins.drifts.conditioning import FEATURES, Conditioning, check_inputs

Positive = Annotated[int, Field(gt=0)]
Layer = TypeVar("Layer", bound=nn.Module)


class Unet(nn.Module):
    """A U-Net of residual blocks for images (channels, height, width), about 8x8 to 64x64.

    Each level halves the resolution; each block is x + conv(silu(norm(conv(silu(norm(x))) + embedding))), with group
    normalisation; the way up is joined to the way down at every block. The last convolution of every block, of every
    attention and of the network starts at zero, so that a new drift is 0 everywhere.

    Args:
        event_shape: (channels, height, width).
        classes: number of classes in the data.
        condition_shapes: shapes of the data's named conditions.
        width: channels at full resolution, at least 4.
        multipliers: channels of each level, in units of ``width``; their number is the number of levels.
        blocks: residual blocks in a level, on the way down; one more on the way up.
        attention: how many levels have self-attention, from the lowest resolution up.
        head_channels: channels of an attention head, which divide those of every level with attention; null for one
            head.
        dropout: share of activations dropped in each block while training.
        conditional: whether the drift uses the class of a sample.
        conditions: which of the data's named conditions it uses: numbers, vectors, or sequences of embeddings, of
            which the mean over tokens counts. Bring their values to about [-1, 1].

    Raises:
        ValueError: for events that aren't images, a height or width that doesn't divide by 2^(levels - 1), channels
            that don't divide into heads, or ``conditional`` where the data have no labels, or conditions that they
            don't have; in use, for inputs of the wrong shape.

    Reference: Ronneberger et al. (2015), Fig. 1, arXiv:1505.04597; Ho et al. (2020), appendix B, arXiv:2006.11239.

    Example:
        >>> import gftkit, torch
        >>> drift = gftkit.load().create("drift", "unet", event_shape=[3, 16, 8], width=8)
        >>> drift(torch.rand(5), torch.randn(5, 3, 16, 8)).shape
        torch.Size([5, 3, 16, 8])
    """

    def __init__(  # noqa: PLR0913
        self,
        event_shape: tuple[int, ...],
        classes: int | None = None,
        condition_shapes: dict[str, tuple[int, ...]] | None = None,
        width: Annotated[int, Field(ge=4)] = 32,
        multipliers: Annotated[tuple[Positive, ...], Field(min_length=1)] = (1, 2, 2),
        blocks: Positive = 1,
        attention: Annotated[int, Field(ge=0)] = 1,
        head_channels: Positive | None = None,
        dropout: Annotated[float, Field(ge=0, lt=1)] = 0.0,
        *,
        conditional: bool = False,
        conditions: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        _check_event_shape(self.event_shape, len(multipliers))
        self.conditioning = Conditioning(classes, conditional=conditional, names=conditions, shapes=condition_shapes)
        self.conditions, self.null = self.conditioning.names, self.conditioning.null
        size = 4 * width
        self.embed = nn.Sequential(nn.Linear(FEATURES, size), nn.SiLU(), nn.Linear(size, size), nn.SiLU())

        def block(into: int, out: int, level: int) -> Block:
            return Block(
                into, out, size, dropout, attention=level >= len(multipliers) - attention, head_channels=head_channels
            )

        channels = [width * multiplier for multiplier in multipliers]
        lowest = len(channels) - 1
        self.first = nn.Conv2d(self.event_shape[0], width, 3, padding=1)
        self.down, self.up = nn.ModuleList(), nn.ModuleList()
        kept = [width]  # channels of every state that the way up is joined to
        now = width
        for level, out in enumerate(channels):
            for _ in range(blocks):
                self.down.append(block(now, out, level))
                now = out
                kept.append(now)
            if level < lowest:
                self.down.append(nn.Conv2d(now, now, 3, stride=2, padding=1))
                kept.append(now)
        self.middle = nn.ModuleList([block(now, now, lowest), Block(now, now, size, dropout, attention=False)])
        for level, out in reversed(list(enumerate(channels))):
            for _ in range(blocks + 1):
                self.up.append(block(now + kept.pop(), out, level))
                now = out
            if level > 0:
                self.up.append(Upsample(now))
        self.last = nn.Sequential(_norm(now), nn.SiLU(), _zero(nn.Conv2d(now, self.event_shape[0], 3, padding=1)))

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None, **conditions: Tensor) -> Tensor:
        """(batch,), (batch, *event), and (batch,) of int64 or (batch, *shape) for conditions -> (batch, *event)."""
        check_inputs(t, x, self.event_shape)
        embedding = self.embed(self.conditioning(t, label, conditions))  # (batch, 4 width)
        x = self.first(x)
        kept = [x]
        for layer in self.down:
            x = layer(x, embedding) if isinstance(layer, Block) else layer(x)
            kept.append(x)
        for layer in self.middle:
            x = layer(x, embedding)
        for layer in self.up:
            x = layer(torch.cat([x, kept.pop()], dim=1), embedding) if isinstance(layer, Block) else layer(x)
        out: Tensor = self.last(x)
        return out


class Block(nn.Module):
    """A residual block with the embedding added in its middle, then self-attention if wanted.

    Args:
        into: channels that come in.
        out: channels that go out.
        embedding: size of the embedding of time and conditions.
        dropout: share of activations dropped while training.
        attention: whether self-attention follows.
        head_channels: channels of an attention head; None for one head.
    """

    def __init__(
        self, into: int, out: int, embedding: int, dropout: float, *, attention: bool, head_channels: int | None = None
    ) -> None:
        super().__init__()
        self.before = nn.Sequential(_norm(into), nn.SiLU(), nn.Conv2d(into, out, 3, padding=1))
        self.from_embedding = nn.Linear(embedding, out)
        convolution = _zero(nn.Conv2d(out, out, 3, padding=1))
        self.after = nn.Sequential(_norm(out), nn.SiLU(), nn.Dropout(dropout), convolution)
        self.shortcut = nn.Conv2d(into, out, 1) if into != out else nn.Identity()
        self.attention = Attention(out, head_channels) if attention else nn.Identity()

    def forward(self, x: Tensor, embedding: Tensor) -> Tensor:
        """(batch, into, h, w), (batch, embedding) -> (batch, out, h, w)."""
        hidden = self.before(x) + self.from_embedding(embedding)[:, :, None, None]
        out: Tensor = self.attention(self.shortcut(x) + self.after(hidden))
        return out


class Attention(nn.Module):
    """Self-attention between the pixels of an image, added to its input.

    Written out, because the fused kernels have no forward-mode derivative, which divergences need.

    Args:
        channels: channels in and out.
        head_channels: channels of a head; None for one head.

    Raises:
        ValueError: for channels that don't divide into heads.

    Reference: Vaswani et al. (2017), Eq. 1 and section 3.2.2, arXiv:1706.03762.
    """

    def __init__(self, channels: int, head_channels: int | None = None) -> None:
        super().__init__()
        self.heads, rest = divmod(channels, head_channels or channels)
        if rest:
            raise ValueError(
                f"head_channels: {head_channels} doesn't divide the {channels} channels of a level with attention. "
                f"Choose a divisor, or another width."
            )
        self.norm = _norm(channels)
        self.to_qkv = nn.Conv1d(channels, 3 * channels, 1, bias=False)
        self.out = _zero(nn.Conv1d(channels, channels, 1))

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> the same."""
        qkv = self.to_qkv(self.norm(x).flatten(2)).unflatten(1, (3, self.heads, -1))
        query, key, value = qkv.unbind(1)  # (batch, heads, channels of a head, h w) each
        weights = torch.softmax(query.mT @ key / math.sqrt(query.shape[2]), dim=-1)  # (batch, heads, to, from)
        return x + self.out((value @ weights.mT).flatten(1, 2)).reshape(x.shape)


class Upsample(nn.Module):
    """Twice the resolution: nearest neighbour, then a convolution.

    Args:
        channels: channels in and out.
    """

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.convolution = nn.Conv2d(channels, channels, 3, padding=1)

    def forward(self, x: Tensor) -> Tensor:
        """(batch, channels, h, w) -> (batch, channels, 2h, 2w)."""
        out: Tensor = self.convolution(functional.interpolate(x, scale_factor=2.0, mode="nearest"))
        return out


def _norm(channels: int) -> nn.GroupNorm:
    """Group normalisation with at least 4 channels in a group: groups of one channel would erase the embedding."""
    groups = max(count for count in range(1, min(32, max(1, channels // 4)) + 1) if channels % count == 0)
    return nn.GroupNorm(groups, channels)


def _zero(layer: Layer) -> Layer:
    """The same layer with all its parameters 0."""
    for parameter in layer.parameters():
        nn.init.zeros_(parameter)
    return layer


def _check_event_shape(event_shape: tuple[int, ...], levels: int) -> None:
    factor = 2 ** (levels - 1)
    if len(event_shape) != 3:
        raise ValueError(f"unet takes images (channels, height, width), got events of shape {event_shape}. Use mlp.")
    if any(side % factor for side in event_shape[1:]):
        raise ValueError(
            f"unet with {levels} levels requires height and width divisible by {factor}, got {event_shape[1:]}. Use "
            f"fewer multipliers, or pad or resize the images."
        )
