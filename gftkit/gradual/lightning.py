"""A callback of Lightning for Gradual Fine-Tuning. It needs the package lightning, or pytorch_lightning."""

from collections.abc import Callable
from typing import Any

from torch import nn

from gftkit.gradual.gradual import Gradual
from gftkit.kernel.errors import ConfigError

try:
    from lightning.pytorch import Callback
except ImportError:
    try:
        from pytorch_lightning import Callback  # type: ignore[no-redef]
    except ImportError as error:
        raise ConfigError(
            f"gftkit.gradual.lightning requires the package lightning ({error}). Install it: pip install "
            f"'gftkit[lightning]'."
        ) from None


class GradualCallback(Callback):  # type: ignore[misc]
    """Takes the anchor before training, keeps the state in checkpoints, and logs what is measured.

    The module's ``training_step`` calls ``gft.loss(self.global_step, ...)``.

    Args:
        gft: of the run.
        network: the network of a module that is trained; by default the module itself.
        prefix: before the names in the log.

    Example:
        ``Trainer(callbacks=[GradualCallback(gft, lambda module: module.unet)])``
    """

    def __init__(
        self, gft: Gradual, network: Callable[[Any], nn.Module] = lambda module: module, prefix: str = "gft/"
    ) -> None:
        super().__init__()
        self._gft, self._network, self._prefix = gft, network, prefix

    def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
        """Take the anchor: Lightning restores the weights of a checkpoint, and wraps the module, only afterwards."""
        if stage == "fit":
            self._gft.anchor_of(self._network(pl_module))

    def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
        """Log what is measured, as often as the trainer logs."""
        if trainer.global_step % trainer.log_every_n_steps == 0:
            pl_module.log_dict({f"{self._prefix}{name}": value for name, value in self._gft.measured().items()})

    def state_dict(self) -> dict[str, Any]:
        """The state of the run, for a checkpoint."""
        return self._gft.state_dict()

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Continue a run; raises a ConfigError for another anchor, schedule or number of steps."""
        self._gft.load_state_dict(state_dict)
