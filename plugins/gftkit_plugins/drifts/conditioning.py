"""What a drift is told beside the state: the time and, where it is conditional, the class."""

import math

import torch
from torch import Tensor, nn

FEATURES = 128
"""Width of the embedding: a sine and a cosine for each frequency."""

_OCTAVES = 6.0
"""Angular frequencies go from pi, for which cos(pi t) is monotone on [0, 1], up to pi 2^6."""


class Conditioning(nn.Module):
    """Sines and cosines of time, plus a learned vector for the class. (batch,), (batch,) -> (batch, FEATURES).

    Args:
        classes: number of classes, or None where the data have no labels.
        conditional: whether the class is used.

    Raises:
        ValueError: for a conditional drift without classes.

    Reference: Vaswani et al. (2017), section 3.5, arXiv:1706.03762 (the features).
    """

    frequencies: Tensor

    def __init__(self, classes: int | None, conditional: bool) -> None:
        super().__init__()
        if conditional and classes is None:
            raise ValueError(
                "conditional: true wants class labels, and the data have no labels. "
                "Use data with labels, or conditional: false."
            )
        octaves = torch.linspace(0, _OCTAVES, FEATURES // 2, dtype=torch.float64)
        frequencies = (math.pi * 2**octaves).to(torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.names: tuple[str, ...] = ("label",) if conditional else ()
        self.classes = classes
        self.embedding = nn.Embedding(classes, FEATURES) if conditional and classes is not None else None

    def forward(self, t: Tensor, label: Tensor | None) -> Tensor:
        """The embedding, in the dtype of the module.

        Raises:
            ValueError: for a label that is missing, not wanted, of the wrong shape or not below ``classes``.
        """
        angle = t[:, None].to(self.frequencies.dtype) * self.frequencies  # (batch, FEATURES / 2)
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        if self.embedding is None:
            if label is not None:
                raise ValueError(
                    "label: this drift isn't conditional. Leave it out, or make it with conditional: true."
                )
            return features
        if label is None:
            raise ValueError("label is missing: this drift is conditional. Give the class of each sample, (batch,).")
        if label.shape != t.shape or label.is_floating_point():
            raise ValueError(
                f"label: wanted integers of shape {tuple(t.shape)}, got {label.dtype} of shape {tuple(label.shape)}."
            )
        try:
            return features + self.embedding(label)
        except IndexError:
            raise ValueError(
                f"label: wanted classes from 0 to {self.classes} - 1, got up to {int(label.max())}."
            ) from None


def check_inputs(t: Tensor, x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Refuse a time or state of the wrong shape.

    Raises:
        ValueError: saying what was wanted and what came.
    """
    if x.ndim != 1 + len(event_shape) or x.shape[1:] != event_shape or t.shape != x.shape[:1]:
        wanted = ", ".join(["batch", *map(str, event_shape)])
        raise ValueError(
            f"wanted t of shape (batch,) and x of shape ({wanted}), got {tuple(t.shape)} and {tuple(x.shape)}."
        )
