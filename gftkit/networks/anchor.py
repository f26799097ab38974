"""Anchors: the pretrained drift that Gradual Fine-Tuning holds on to, never trained, and known by its hash."""

import copy
import hashlib
import inspect
import json
from collections.abc import Mapping
from contextlib import AbstractContextManager
from typing import Any, Protocol, runtime_checkable

import torch
from torch import Tensor, nn

from gftkit.data.conditions import condition_names, condition_nulls
from gftkit.kernel.errors import ConfigError
from gftkit.networks.adapters import AdaptedDrift
from gftkit.storage.tensors import digest


@runtime_checkable
class Anchor(Protocol):
    """b_pre(t, x): a drift in evaluation mode that training doesn't move.

    It has a gradient by the state only, and only where that of x is recorded.

    Attributes:
        kind: "frozen", "adapters-off" or "external".
        hash: SHA-256 of what determines the function: weights, and how the network is made and called.
        conditions: the conditions that it uses; others are passed over.
        null: its own values for conditions that aren't given.
    """

    kind: str
    hash: str
    conditions: tuple[str, ...]
    null: Mapping[str, Any]

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """b_pre(t, x): (batch,), (batch, *event) -> (batch, *event)."""

    def to(self, device: torch.device | str) -> "Anchor":
        """The anchor, moved to a device."""

    def describe(self) -> dict[str, Any]:
        """Kind, hash and parameters held beside those of the trained network, as plain values."""


def drift_hash(weights: str, made_of: Mapping[str, Any] | None = None) -> str:
    """SHA-256 of a drift as a function: of its weights and of what else determines it.

    Args:
        weights: ``digest`` of its state dict.
        made_of: plain values that say how it is made and called, such as the spec with its convention.
    """
    spec = json.dumps(made_of or {}, sort_keys=True, separators=(",", ":"))
    return hashlib.sha256(f"{weights} {spec}".encode()).hexdigest()


def _gradient_by(x: Tensor) -> AbstractContextManager[Any]:
    """Record gradients only where x's are, as the divergence of a blend requires. In training they never are."""
    return torch.set_grad_enabled(torch.is_grad_enabled() and x.requires_grad)


class FrozenAnchor:
    """A frozen copy of the pretrained drift, which shares no weights with it.

    Args:
        drift: the pretrained drift, which is copied.
        made_of: see ``drift_hash``.
        weights: ``digest`` of its weights, where that is known already.
    """

    kind = "frozen"

    def __init__(self, drift: nn.Module, made_of: Mapping[str, Any] | None = None, weights: str | None = None) -> None:
        # A copy, because training changes the original in place.
        self.module = copy.deepcopy(drift).eval().requires_grad_(False)
        self.hash = drift_hash(weights or digest(self.module.state_dict()), made_of)
        self.conditions: tuple[str, ...] = condition_names(drift)
        self.null: Mapping[str, Any] = condition_nulls(drift)
        taken = inspect.signature(drift.forward).parameters
        # A drift without the attribute is unconditional, unless its own arguments say otherwise.
        self._undeclared = set() if hasattr(drift, "conditions") else set(taken)

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """b_pre(t, x): one forward pass.

        Raises:
            ConfigError: for a condition that the network's ``forward`` names and its ``conditions`` don't.
        """
        if conditions.keys() & self._undeclared:
            names = ", ".join(sorted(conditions.keys() & self._undeclared))
            raise ConfigError(
                f"the anchor: forward of {type(self.module).__name__} takes {names}, and its attribute `conditions` "
                f"doesn't name it, so it would be left out. Set `conditions`, a tuple of the names of all conditions."
            )
        with _gradient_by(x):
            return self.module(t, x, **{name: conditions[name] for name in self.conditions})

    def to(self, device: torch.device | str) -> "FrozenAnchor":
        """The anchor, moved to a device."""
        self.module.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """Kind, hash and parameters held."""
        parameters = sum(parameter.numel() for parameter in self.module.parameters())
        return {"kind": self.kind, "hash": self.hash, "parameters": parameters}


class ExternalAnchor(FrozenAnchor):
    """Another network than the one that training starts from: another run, or a weights file.

    Args:
        drift: the network with its weights, which is copied.
        made_of: see ``drift_hash``.
        weights: ``digest`` of its weights, where that is known already.
    """

    kind = "external"


class AdaptersOffAnchor:
    """The network that is trained, with its adapters switched off: it holds no parameters of its own.

    Args:
        adapted: the drift with its adapters.
        hashed: ``drift_hash`` of the drift before the adapters were put in.
    """

    kind = "adapters-off"

    def __init__(self, adapted: AdaptedDrift, hashed: str) -> None:
        self.hash = hashed
        self.conditions: tuple[str, ...] = condition_names(adapted.drift)
        self.null: Mapping[str, Any] = condition_nulls(adapted.drift)
        self._adapted = adapted

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """b_pre(t, x): one forward pass; the network's modes are put back."""
        with _gradient_by(x), self._adapted.off() as drift:
            return drift(t, x, **{name: conditions[name] for name in self.conditions})

    def to(self, device: torch.device | str) -> "AdaptersOffAnchor":
        """The anchor itself: it is where the trained network is."""
        self._adapted.drift.to(device)
        return self

    def describe(self) -> dict[str, Any]:
        """Kind, hash and parameters held, none."""
        return {"kind": self.kind, "hash": self.hash, "parameters": 0}


def short_hash(hashed: str) -> str:
    """The first twelve digits of a hash, for people."""
    return hashed[:12]
