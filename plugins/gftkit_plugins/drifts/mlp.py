"""A fully connected drift, for events of any shape."""

import math
from typing import Annotated

from pydantic import Field
from torch import Tensor, nn

from gftkit_plugins.drifts.conditioning import FEATURES, Conditioning, check_inputs


class Mlp(nn.Module):
    """A fully connected network for events of any shape: small images, points, curves.

    b(t, x) = W h_depth with h_1 = silu(U x + V c) and h_k = silu(W_k h_(k-1)), biases aside; c are ``FEATURES`` sines
    and cosines of time, plus a learned vector for the class and for each named condition. The state is flattened.

    Args:
        event_shape: shape of one sample; any.
        classes: number of classes in the data.
        condition_shapes: shapes of the data's named conditions.
        width: units of a hidden layer.
        depth: number of hidden layers.
        conditional: whether the drift uses the class of a sample.
        conditions: which of the data's named conditions it uses: numbers, vectors, or sequences of embeddings, of
            which the mean over tokens counts. Bring their values to about [-1, 1].

    Raises:
        ValueError: for ``conditional`` where the data have no labels, or conditions that they don't have; in use, for
            inputs of the wrong shape.

    Example:
        >>> import gftkit, torch
        >>> drift = gftkit.load().create("drift", "mlp", event_shape=[1, 8, 8], width=32)
        >>> drift(torch.rand(5), torch.randn(5, 1, 8, 8)).shape
        torch.Size([5, 1, 8, 8])
    """

    def __init__(
        self,
        event_shape: tuple[int, ...],
        classes: int | None = None,
        condition_shapes: dict[str, tuple[int, ...]] | None = None,
        width: Annotated[int, Field(gt=0)] = 512,
        depth: Annotated[int, Field(gt=0)] = 3,
        *,
        conditional: bool = False,
        conditions: tuple[str, ...] = (),
    ) -> None:
        super().__init__()
        self.event_shape = tuple(event_shape)
        size = math.prod(self.event_shape)
        self.conditioning = Conditioning(classes, conditional=conditional, names=conditions, shapes=condition_shapes)
        self.conditions, self.null = self.conditioning.names, self.conditioning.null
        self.from_state = nn.Linear(size, width)
        self.from_condition = nn.Linear(FEATURES, width, bias=False)
        hidden = [layer for _ in range(depth - 1) for layer in (nn.SiLU(), nn.Linear(width, width))]
        self.body = nn.Sequential(*hidden, nn.SiLU(), nn.Linear(width, size))

    def forward(self, t: Tensor, x: Tensor, label: Tensor | None = None, **conditions: Tensor) -> Tensor:
        """(batch,), (batch, *event), and (batch,) of int64 or (batch, *shape) for conditions -> (batch, *event)."""
        check_inputs(t, x, self.event_shape)
        condition = self.from_condition(self.conditioning(t, label, conditions))  # (batch, width)
        out: Tensor = self.body(self.from_state(x.reshape(len(x), -1)) + condition)
        return out.reshape(x.shape)
