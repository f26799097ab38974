"""Embeddings of a drift's time and, where it is conditional, of its class and named conditions."""

import math
from collections.abc import Mapping, Sequence

import torch
from torch import Tensor, nn

FEATURES = 128
"""Width of the embedding: a sine and a cosine for each frequency."""

_OCTAVES = 6.0
"""Angular frequencies go from pi, for which cos(pi t) is monotone on [0, 1], up to pi 2^6."""


class Conditioning(nn.Module):
    """Sines and cosines of time, plus a vector for the class and one for each named condition.

    (batch,), (batch,), (batch, *shape) each -> (batch, FEATURES). The class ``classes`` stands for "not given", and so
    does NaN in a named condition: both have a vector of their own, which condition dropout trains.

    Args:
        classes: number of classes, or None where the data have no labels.
        conditional: whether the class is used.
        names: the named conditions that are used.
        shapes: the shapes of those that the data have.

    Attributes:
        names: every condition that is used, ``label`` first.
        null: the value that stands for "not given", by condition.

    Raises:
        ValueError: for a conditional drift without classes, or a condition that the data don't have.

    Reference: Vaswani et al. (2017), section 3.5, arXiv:1706.03762 (the features); Ho, Salimans (2022), section 3.2,
    arXiv:2207.12598 (the null).
    """

    frequencies: Tensor

    def __init__(
        self,
        classes: int | None,
        *,
        conditional: bool,
        names: Sequence[str] = (),
        shapes: Mapping[str, tuple[int, ...]] | None = None,
    ) -> None:
        super().__init__()
        if conditional and classes is None:
            raise ValueError(
                "conditional: true requires class labels, and the data have none. Use data with labels, or "
                "conditional: false."
            )
        octaves = torch.linspace(0, _OCTAVES, FEATURES // 2, dtype=torch.float64)
        frequencies = (math.pi * 2**octaves).to(torch.get_default_dtype())
        self.register_buffer("frequencies", frequencies, persistent=False)
        self.embedding = nn.Embedding(classes + 1, FEATURES) if conditional and classes is not None else None
        self.named = nn.ModuleDict({name: Named(name, _shape(name, shapes or {})) for name in names})
        self.names: tuple[str, ...] = (*(("label",) if conditional else ()), *names)
        self.null = {name: classes if name == "label" else math.nan for name in self.names}

    def forward(self, t: Tensor, label: Tensor | None, conditions: Mapping[str, Tensor]) -> Tensor:
        """The embedding, in the dtype of the module.

        Raises:
            ValueError: for a condition that is missing, unknown or of the wrong shape, or a label above ``classes``.
        """
        angle = t[:, None].to(self.frequencies.dtype) * self.frequencies  # (batch, FEATURES / 2)
        features = torch.cat([angle.sin(), angle.cos()], dim=1)
        if self.embedding is not None:
            features = features + self._class(self.embedding, t, label)
        elif label is not None:
            raise ValueError(
                "label: this drift doesn't use labels. Leave it out, or make the drift with conditional: true."
            )
        if set(conditions) != set(self.named):
            raise ValueError(
                f"wanted the conditions {sorted(self.named)}, got {sorted(conditions)}. Give those that the drift "
                f"was made with, in `conditions`."
            )
        for name, embed in self.named.items():
            features = features + embed(conditions[name], len(t))
        return features

    def _class(self, embedding: nn.Embedding, t: Tensor, label: Tensor | None) -> Tensor:
        """(batch,) -> (batch, FEATURES)."""
        if label is None:
            raise ValueError("label is missing: this drift is conditional. Give the class of each sample, (batch,).")
        if label.shape != t.shape or label.is_floating_point():
            raise ValueError(
                f"label: wanted integers of shape {tuple(t.shape)}, got {label.dtype} of shape {tuple(label.shape)}."
            )
        try:
            vectors: Tensor = embedding(label)
        except IndexError:
            raise ValueError(
                f"label: wanted classes from 0 to {embedding.num_embeddings - 2}, or {embedding.num_embeddings - 1} "
                f"for none, got up to {int(label.max())}."
            ) from None
        return vectors


class Named(nn.Module):
    """The vector of a named condition: a network of two layers, for a sequence the mean over its tokens.

    A token of zeros is padding and doesn't count. A sample with NaN in it wasn't given the condition: it gets a learned
    vector instead, 0 at first.

    Args:
        name: the condition's.
        shape: of one sample's: () a number, (d,) a vector, (tokens, d) a sequence of embeddings.

    Raises:
        ValueError: for another shape.
    """

    def __init__(self, name: str, shape: tuple[int, ...]) -> None:
        super().__init__()
        if len(shape) > 2 or 0 in shape:
            raise ValueError(
                f"conditions: '{name}' has shape {shape}: wanted () for a number, (d,) for a vector or (tokens, d) "
                f"for a sequence. Flatten it, or use your own network."
            )
        self.name, self.shape = name, shape
        into = shape[-1] if shape else 1
        self.layers = nn.Sequential(nn.Linear(into, FEATURES), nn.SiLU(), nn.Linear(FEATURES, FEATURES))
        self.null = nn.Parameter(torch.zeros(FEATURES))

    def forward(self, values: Tensor, batch: int) -> Tensor:
        """(batch, *shape) -> (batch, FEATURES)."""
        if values.shape != (batch, *self.shape) or not values.is_floating_point():
            raise ValueError(
                f"{self.name}: wanted a floating type and shape {(batch, *self.shape)}, got {values.dtype} of shape "
                f"{tuple(values.shape)}."
            )
        absent = values.reshape(batch, -1).isnan().any(1)[:, None]  # (batch, 1)
        tokens = values.nan_to_num().to(self.null.dtype).reshape(batch, -1, self.shape[-1] if self.shape else 1)
        vectors = self.layers(tokens)  # (batch, tokens, FEATURES)
        if len(self.shape) == 2:
            counts = (tokens != 0).any(2, keepdim=True).to(vectors.dtype)  # (batch, tokens, 1)
            vectors = vectors * counts / counts.sum(1, keepdim=True).clamp(min=1)
        return torch.where(absent, self.null, vectors.sum(1))


def _shape(name: str, shapes: Mapping[str, tuple[int, ...]]) -> tuple[int, ...]:
    if name not in shapes:
        raise ValueError(
            f"conditions: the data have no '{name}' (they have: {', '.join(shapes) or 'none'}). Add it to the data's "
            f"`conditions`, or leave it out."
        )
    return tuple(shapes[name])


def check_inputs(t: Tensor, x: Tensor, event_shape: tuple[int, ...]) -> None:
    """Refuse a time or state of the wrong shape.

    Raises:
        ValueError: with the wanted shapes and those that came.
    """
    if x.ndim != 1 + len(event_shape) or x.shape[1:] != event_shape or t.shape != x.shape[:1]:
        wanted = ", ".join(["batch", *map(str, event_shape)])
        raise ValueError(
            f"wanted t of shape (batch,) and x of shape ({wanted}), got {tuple(t.shape)} and {tuple(x.shape)}."
        )
