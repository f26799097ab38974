"""One network that jumps from any time to any later one."""

import math
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor, nn

from gftkit.data import condition_names, condition_nulls
from gftkit.kernel import Drift

FREQUENCIES = 3
"""Of the embedding of a jump's length: pi, 2 pi and 4 pi. Low ones, since the loss holds the derivative by the end."""
EMBEDS_TIME = "conditioning"
"""The module of the built-in networks that embeds time and conditions."""


class FlowMap(nn.Module):
    """A flow map X(t, s, x) = x + (s - t) u(t, s, x): a network u for the average velocity from t to s.

    At s = t it is a drift, u(t, t, x) = b(t, x), and without an end it is called as one. It wraps a network and adds to
    it an embedding of the length s - t, which starts at 0: a student that starts from a trained drift is this drift for
    every s, and X one Euler step. ``gft distill`` trains it, and the solver ``flow-map`` jumps by it.

    Args:
        drift: the network that is wrapped.
        event_shape: shape of one sample.
        condition_shapes: shapes of the data's named conditions.
        into: the module of the network to whose output, (batch, d), the embedding is added, its name with dots; null
            for the one that embeds the time in the built-in networks, and in others for the state that they are given.
        width: units of the embedding's hidden layer.

    Raises:
        ValueError: for a module that the network doesn't have, or whose output isn't (batch, d).

    Reference: Boffi, Albergo, Vanden-Eijnden (2024), Flow map matching, arXiv:2406.07507.

    Example:
        >>> import gftkit, torch
        >>> teacher = {"name": "mlp", "event_shape": [2]}
        >>> student = gftkit.load().create("drift", "flow-map", drift=teacher, event_shape=[2])
        >>> t, x = torch.rand(5), torch.randn(5, 2)
        >>> torch.equal(student(t, x, end=torch.ones(5)), student.drift(t, x))
        True
    """

    jumps = True

    def __init__(
        self,
        drift: Drift,
        event_shape: tuple[int, ...],
        condition_shapes: dict[str, tuple[int, ...]] | None = None,
        into: str | None = None,
        width: Annotated[int, Field(gt=0)] = 128,
    ) -> None:
        super().__init__()
        assert isinstance(drift, nn.Module)  # the contract of the kind
        self.drift = drift
        self.conditions, self.null = condition_names(drift), condition_nulls(drift)
        self.notes = tuple(getattr(drift, "notes", ()))
        modules = {name: module for name, module in drift.named_modules() if name}
        if into is not None and into not in modules:
            raise ValueError(f"into: this network has no module '{into}'. Modules: {', '.join(modules)}.")
        self.into = EMBEDS_TIME if into is None and EMBEDS_TIME in modules else into
        size = math.prod(event_shape)
        if self.into is not None:
            examples = {name: torch.zeros(2, *shape) for name, shape in (condition_shapes or {}).items()}
            examples["label"] = torch.zeros(2, dtype=torch.int64)
            size = _width(drift, self.into, event_shape, {name: examples[name] for name in self.conditions})
            modules[self.into].register_forward_hook(self._add_embedding)
        last = nn.Linear(width, size)
        for parameter in last.parameters():
            nn.init.zeros_(parameter)
        self.embed = nn.Sequential(nn.Linear(2 * FREQUENCIES + 1, width), nn.SiLU(), last)
        self._added: Tensor | None = None

    def forward(self, t: Tensor, x: Tensor, end: Tensor | None = None, **conditions: Tensor) -> Tensor:
        """(batch,), (batch, *event), the end (batch,) or None for t itself, (batch, ...) each -> (batch, *event)."""
        added = self.embed(_features(torch.zeros_like(t) if end is None else end - t))  # (batch, size)
        if self.into is None:
            return self.drift(t, x + added.reshape(x.shape).to(x.dtype), **conditions)
        # Through the module's hook, because the network's own forward has no argument for it.
        self._added = added
        try:
            return self.drift(t, x, **conditions)
        finally:
            self._added = None

    def _add_embedding(self, _module: nn.Module, _inputs: Any, output: Tensor) -> Tensor:
        """The hook of the module ``into``."""
        return output if self._added is None else output + self._added


def _features(length: Tensor) -> Tensor:
    """(batch,) -> (batch, 2 FREQUENCIES + 1): the length itself, sines and cosines."""
    octaves = torch.arange(FREQUENCIES, device=length.device, dtype=length.dtype)
    angle = math.pi * length[:, None] * 2**octaves
    return torch.cat([length[:, None], angle.sin(), angle.cos()], dim=1)


def _width(drift: nn.Module, into: str, event_shape: tuple[int, ...], conditions: dict[str, Tensor]) -> int:
    """The d of the output (batch, d) of a network's module, found by trying the network on zeros."""
    seen: list[Any] = []
    hook = drift.get_submodule(into).register_forward_hook(lambda *arguments: seen.append(arguments[-1]))
    try:
        with torch.no_grad():
            drift(torch.full((2,), 0.5), torch.zeros(2, *event_shape), **conditions)
    finally:
        hook.remove()
    output = seen[0] if seen else None
    if not isinstance(output, Tensor) or output.ndim != 2:
        came = "nothing" if output is None else f"shape {tuple(output.shape)}" if isinstance(output, Tensor) else output
        raise ValueError(
            f"into: wanted a module whose output is (batch, d), and the output of '{into}' is {came}. Choose another "
            f"module."
        )
    return output.shape[1]
