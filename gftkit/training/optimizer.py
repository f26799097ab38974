"""The optimiser by name, and the learning rate over a run."""

import inspect
import math
from collections.abc import Callable, Iterable
from typing import Any

import torch
from torch import nn

from gftkit.kernel.errors import ConfigError, unknown
from gftkit.runs.schema import Train


def optimizer_of(train: Train, parameters: Iterable[nn.Parameter]) -> torch.optim.Optimizer:
    """A torch.optim optimiser by name, in any case, with options of its own.

    Raises:
        UnknownNameError: for a name that torch.optim doesn't have.
        ConfigError: for an option that this optimiser doesn't take.
    """
    spec: dict[str, Any] = {"name": train.optimizer} if isinstance(train.optimizer, str) else dict(train.optimizer)
    known: dict[str, Callable[..., torch.optim.Optimizer]] = {
        name.lower(): member
        for name, member in vars(torch.optim).items()
        if isinstance(member, type) and issubclass(member, torch.optim.Optimizer)
    }
    known = {name: member for name, member in known.items() if name not in ("optimizer", "lbfgs", "sparseadam")}
    name = str(spec.pop("name", "")).lower()
    if name not in known:
        raise unknown("optimiser at train.optimizer:", name, known)
    takes = inspect.signature(known[name]).parameters
    if "fused" in takes and not {"fused", "foreach"} & spec.keys():
        spec["fused"] = True  # one kernel for all parameters: on the CPU a tenth of the time
    try:
        return known[name](parameters, lr=train.learning_rate, **spec)
    except (TypeError, ValueError) as error:
        raise ConfigError(f"train.optimizer ({name}): {error}") from None


def learning_rate(train: Train, step: int) -> float:
    """The learning rate of a step: a linear warm-up, then constant, cosine or linear decay to 0.

    Example:
        >>> train = Train(steps=10, learning_rate=1.0, warmup=2, decay="linear")
        >>> [learning_rate(train, step) for step in (0, 1, 2, 6)]
        [0.5, 1.0, 1.0, 0.5]
    """
    if step < train.warmup:
        return train.learning_rate * (step + 1) / train.warmup
    share = (step - train.warmup) / max(1, train.steps - train.warmup)
    factor = {"constant": 1.0, "linear": 1 - share, "cosine": (1 + math.cos(math.pi * share)) / 2}[train.decay]
    return train.learning_rate * factor
