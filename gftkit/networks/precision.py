"""Half precision: layers evaluated in it, states kept in float32."""

from contextlib import AbstractContextManager, nullcontext
from typing import Any, Literal

import torch
from torch import Tensor

from gftkit.data.conditions import condition_names, condition_nulls
from gftkit.kernel.contracts import Drift
from gftkit.networks.flow_map import is_flow_map

Precision = Literal["float32", "bfloat16", "float16"]

DTYPES = {"bfloat16": torch.bfloat16, "float16": torch.float16}
PRECISIONS = ("float32", *DTYPES)


def autocast(precision: Precision, device: torch.device) -> AbstractContextManager[Any]:
    """A context in which layers that gain by it run in half precision; nothing changes in float32."""
    dtype = DTYPES.get(precision)
    return nullcontext() if dtype is None else torch.autocast(device.type, dtype)


class InPrecision:
    """A drift whose layers are evaluated in half precision, for states that stay float32. Its output is float32.

    Args:
        drift: the drift, with weights in float32.
        precision: "bfloat16" or "float16".
        device: where it is.
    """

    def __init__(self, drift: Drift, precision: Precision, device: torch.device | str) -> None:
        self._drift, self._precision, self._device = drift, precision, torch.device(device)
        self.conditions, self.null = condition_names(drift), condition_nulls(drift)
        self.jumps = is_flow_map(drift)

    def __call__(self, t: Tensor, x: Tensor, **conditions: Tensor) -> Tensor:
        """(batch,), (batch, *event), (batch, ...) each -> (batch, *event)."""
        # Only the network runs in half precision: small steps added to a state in half precision would be lost.
        with autocast(self._precision, self._device):
            return to_float32(self._drift(t, x, **conditions))


def in_precision(drift: Drift, precision: Precision, device: torch.device | str) -> Drift:
    """The drift evaluated in a precision; in float32 the very drift."""
    return drift if precision == "float32" else InPrecision(drift, precision, device)


def to_float32(x: Tensor) -> Tensor:
    """Half precision as float32; other types as they are."""
    return x.float() if x.dtype in DTYPES.values() else x
