"""Any importable network as a feature."""

from pathlib import Path
from typing import Annotated, Any

import torch
from pydantic import Field
from torch import Tensor

from gftkit.kernel import ConfigError
from gftkit.networks import load_weights
from gftkit.storage import read_tensors
from gftkit_plugins.importing import build_network, import_target


class ModuleFeature:
    """A network of your own as a feature: (n, *event), as scaled in training, -> (n, d).

    It runs in evaluation mode on the CPU, and never learns. If it needs events scaled otherwise, scale them inside it.

    Args:
        target: ``package.module:Class``, or a function that gives a network. It is looked for in ``folder`` first.
        options: keyword arguments of ``target``.
        weights: a .safetensors file with exactly the network's weights; null for a network that brings its own.
        batch_size: events at a time.
        folder: where ``target`` is looked for, before the Python path; by default the config's folder.

    Raises:
        ConfigError: for a target that can't be imported, doesn't take ``options`` or gives no network, and for weights
            of another format.
        WeightsError: for weights that don't fit, or aren't finite.
        ValueError: in use, where it fails, or gives something else than (n, d).

    Example:
        >>> import gftkit, torch
        >>> spec = {"target": "torch.nn:Flatten"}
        >>> gftkit.load().create("feature", "module", **spec)(torch.zeros(5, 1, 8, 8)).shape
        torch.Size([5, 64])
    """

    def __init__(
        self,
        target: str,
        options: dict[str, Any] | None = None,
        weights: Path | None = None,
        batch_size: Annotated[int, Field(gt=0)] = 256,
        folder: Path = Path("."),
    ) -> None:
        factory = import_target(target, folder, "feature")
        # Building draws weights: the same each time, and without touching the run's own numbers.
        with torch.random.fork_rng(devices=[]):
            torch.default_generator.manual_seed(0)
            network = build_network(factory, options or {}, target, "feature")
        if weights is not None:
            if weights.suffix != ".safetensors":
                raise ConfigError(
                    f"feature.weights: wanted a .safetensors file, got {weights}. Write one with "
                    f"safetensors.torch.save_file(network.state_dict(), FILE)."
                )
            load_weights(network, read_tensors(weights)[0], weights, "feature")
        self._network = network.eval().requires_grad_(False)
        self._target, self._batch_size = target, batch_size

    @torch.no_grad()
    def __call__(self, x: Tensor) -> Tensor:
        """(n, *event) -> (n, d)."""
        try:
            vectors = [self._network(part) for part in torch.split(x.float(), self._batch_size)]
        except Exception as error:
            raise ValueError(
                f"feature '{self._target}' fails on events of shape {tuple(x.shape)}: {type(error).__name__}: {error}"
            ) from error
        for part in vectors:
            if not isinstance(part, Tensor) or part.ndim != 2:
                came = tuple(part.shape) if isinstance(part, Tensor) else type(part).__name__
                raise ValueError(f"feature '{self._target}': wanted vectors (n, d), got {came}. Flatten its output.")
        return torch.cat(vectors)
