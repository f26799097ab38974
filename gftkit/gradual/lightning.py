"""A callback of Lightning for Gradual Fine-Tuning."""

from collections.abc import Callable
from typing import Any

from torch import nn

from gftkit.gradual.gradual import Gradual
from gftkit.kernel.errors import ConfigError


def lightning_callback(
    gft: Gradual, network: Callable[[Any], nn.Module] = lambda module: module, prefix: str = "gft/"
) -> Any:
    """A callback that takes the anchor before training, keeps the state in checkpoints, and logs what is measured.

    The module's ``training_step`` calls ``gft.loss(self.global_step, ...)``.

    Args:
        gft: of the run.
        network: the network of a module that is trained; by default the module itself.
        prefix: before the names in the log.

    Returns:
        A ``Callback`` of the package lightning, for ``Trainer(callbacks=[...])``.

    Raises:
        ConfigError: where lightning isn't installed; in use, for a checkpoint of another anchor, schedule or number of
            steps.
    """
    try:
        from lightning.pytorch import Callback
    except ImportError as error:
        raise ConfigError(
            f"lightning_callback requires the package lightning ({error}). Install it: pip install 'gftkit[lightning]'."
        ) from None

    class GradualCallback(Callback):
        def setup(self, trainer: Any, pl_module: Any, stage: str) -> None:  # noqa: ARG002
            # Lightning restores the weights of a checkpoint, and wraps the module, only afterwards.
            if stage == "fit":
                gft.anchor_of(network(pl_module))

        def on_train_batch_end(self, trainer: Any, pl_module: Any, *_: Any) -> None:
            if trainer.global_step % trainer.log_every_n_steps == 0:
                pl_module.log_dict({f"{prefix}{name}": value for name, value in gft.measured().items()})

        def state_dict(self) -> dict[str, Any]:
            return gft.state_dict()

        def load_state_dict(self, state_dict: dict[str, Any]) -> None:
            gft.load_state_dict(state_dict)

    return GradualCallback()
