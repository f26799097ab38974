"""One descent: scale, clip, the optimiser's step and the moving averages, and a watch for values that aren't finite."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from gftkit.networks.averages import Averages
from gftkit.networks.state import frozen_weights
from gftkit.runs.checkpoint import Checkpoint
from gftkit.runtime.sharding import full_tensor, gather_tensors
from gftkit.storage.tensors import State
from gftkit.training.l2_sp import StartingPoint
from gftkit.training.optimizer import load_optimizer_state, optimizer_state, set_learning_rate, set_mode

OVERFLOWS = 20
"""Steps in a row whose float16 gradients overflow before a run is stopped; by then their scale is below 1."""


class Descent:
    """The optimiser with clipping, loss scaling and averages. Only ``first_bad`` waits for the device.

    Args:
        optimizer: a torch.optim optimiser.
        parameters: the weights that it trains.
        averages: updated after every step.
        clip: the largest gradient norm, or None.
        half: whether activations are float16, so that losses are scaled up against underflow and a step whose gradient
            overflows is skipped (Micikevicius et al., 2017, arXiv:1710.03740, section 3.2).
        device: where the weights are.
        start: pulls the weights back to their first values, or None. Its pull is part of the gradient that is clipped.
    """

    def __init__(
        self,
        optimizer: torch.optim.Optimizer,
        parameters: Iterable[nn.Parameter],
        averages: Averages,
        *,
        clip: float | None,
        half: bool,
        device: torch.device,
        start: StartingPoint | None = None,
    ) -> None:
        self.optimizer, self.averages, self._start = optimizer, averages, start
        self._parameters = list(parameters)
        self._clip = float("inf") if clip is None else clip
        self.scaler = torch.amp.GradScaler(device.type, enabled=half)
        self._bad = torch.full((), -1, device=device)
        self._overflows = torch.zeros((), dtype=torch.int64, device=device)

    def begin(self, learning_rate: float) -> None:
        """Set the learning rate of a step, and drop the last gradient."""
        set_mode(self.optimizer, training=True)
        set_learning_rate(self.optimizer, learning_rate)
        self.optimizer.zero_grad(set_to_none=True)

    def backward(self, loss: Tensor) -> None:
        """Add the gradient of a loss."""
        self.scaler.scale(loss).backward()  # type: ignore[no-untyped-call]

    def step(self, number: int, loss: Tensor) -> Tensor:
        """Move the weights; returns the gradient's norm before clipping.

        Args:
            number: of the step, from 0 on.
            loss: of the step, to watch.
        """
        # Unscaled first: the pull and the largest norm are in units of the gradient itself.
        self.scaler.unscale_(self.optimizer)
        if self._start is not None:
            self._start.pull()
        norm = full_tensor(nn.utils.clip_grad_norm_(self._parameters, self._clip).detach())
        # `where` in place of `if`: a branch on a value of the device would wait for it in every step.
        finite = torch.isfinite(norm)
        if self.scaler.is_enabled():
            # The scaler skips a step that overflows and lowers its scale: only many in a row are an error.
            self._overflows = torch.where(finite, 0, self._overflows + 1)
            finite = self._overflows < OVERFLOWS
        self._bad = torch.where((self._bad < 0) & ~(torch.isfinite(loss) & finite), number, self._bad)
        self.scaler.step(self.optimizer)
        self.scaler.update()
        # Whatever looks at the weights between two steps, averages included, sees those to use.
        set_mode(self.optimizer, training=False)
        self.averages.update(number)
        return norm

    def release(self) -> None:
        """Forget gradients and moments: after the last step they would only take memory."""
        self.optimizer.zero_grad(set_to_none=True)
        self.optimizer.state.clear()

    def first_bad(self, accelerator: Any) -> int | None:
        """The first step whose loss or gradient was not finite, on any process; a collective call."""
        bad = [number for number in accelerator.gather(self._bad.reshape(1)).tolist() if number >= 0]
        return min(bad, default=None)

    def state(self) -> tuple[State, dict[str, Any]]:
        """The tensors and the numbers of the optimiser, for a checkpoint."""
        tensors, numbers = optimizer_state(self.optimizer)
        return tensors, {**numbers, "scaler": self.scaler.state_dict()}

    def restore(self, tensors: State, numbers: Mapping[str, Any]) -> None:
        """Restore what ``state`` returned."""
        load_optimizer_state(self.optimizer, tensors, numbers, self._parameters)
        if numbers.get("scaler"):
            self.scaler.load_state_dict(dict(numbers["scaler"]))


def checkpoint_contents(drift: nn.Module, descent: Descent, *, keep: bool = True) -> tuple[State, dict[str, Any]]:
    """The tensors and numbers of a checkpoint; a collective call, of which only processes that ``keep`` get tensors.

    Weights that aren't trained, under adapters those of the pretrained network, are left out.
    """
    state, numbers = descent.state()
    frozen = frozen_weights(drift)
    tensors = {f"drift.{name}": tensor for name, tensor in drift.state_dict().items() if name not in frozen}
    tensors |= {f"ema.{name}": tensor for name, tensor in descent.averages.tensors().items()}
    tensors |= {f"optimizer.{name}": tensor for name, tensor in state.items()}
    return gather_tensors(tensors, keep=keep), numbers


def restore_checkpoint(checkpoint: Checkpoint, drift: nn.Module, descent: Descent) -> None:
    """Restore the state of a checkpoint, bit for bit; a collective call.

    Raises:
        WeightsError: where it belongs to another drift.
    """
    checkpoint.fill(drift)
    descent.averages.restore(checkpoint.part("ema."), checkpoint.path)
    descent.restore(checkpoint.part("optimizer."), checkpoint.notes)
