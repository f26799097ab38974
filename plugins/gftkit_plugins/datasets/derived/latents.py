"""Latents of an autoencoder, scaled as the pipelines of diffusers scale them."""

import math
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from gftkit.data import classes_of, condition_shapes_of
from gftkit.kernel import Batch, ConfigError, DataError, Dataset
from gftkit.storage import read_json

CONFIG = "config.json"


class Latents:
    """Unscaled latents z of an autoencoder, in the values that the network was trained on.

    Each is (z - shift) scale: with ``scaling_factor`` and ``shift_factor`` of the autoencoder's configuration for scale
    and shift, and where that has ``latents_mean`` and ``latents_std``, by channel, with the mean for the shift and
    ``scaling_factor`` (or 1) over the deviation for the scale. Samples stay in these values: a pipeline undoes them
    before it decodes, z = x / scale + shift.

    Args:
        data: the unscaled latents, a finite set without a range; its own ``count`` and ``split`` come first.
        vae: the folder of the autoencoder in a pipeline, or its ``config.json``.

    Raises:
        ConfigError: for a configuration without any of these.
        DataError: for data with a range, and channels that aren't the configuration's.

    Example:
        >>> import gftkit, json, pathlib, tempfile, numpy
        >>> folder = pathlib.Path(tempfile.mkdtemp())
        >>> _ = (folder / "config.json").write_text(json.dumps({"scaling_factor": 2.0, "shift_factor": 1.0}))
        >>> numpy.savez(folder / "z.npz", x1=numpy.full((1, 4, 2, 2), 3.0, dtype="float32"))
        >>> raw = {"name": "arrays", "file": str(folder / "z.npz")}
        >>> latents = gftkit.load().create("dataset", "latents", data=raw, vae=folder)
        >>> float(latents.batch(torch.tensor([0])).x1.max())  # (3 - 1) 2
        4.0

    Reference: Esser et al. (2024), arXiv:2403.03206, whose autoencoder has a scale and a shift; Wan (2025),
    arXiv:2503.20314, whose has a mean and a deviation of each channel.
    """

    def __init__(self, data: Dataset, vae: Path) -> None:
        if not isinstance(data, Dataset):
            raise ValueError("data: wanted a finite set, and a synthetic one is infinite. Set its `count`.")
        if data.range is not None:
            raise DataError(
                f"data: wanted unscaled latents, got data with the range {data.range}, which are rescaled to [-1, 1]. "
                f"Use a data set without a range, such as arrays."
            )
        self.dataset, self.event_shape, self.range = data, tuple(data.event_shape), None
        self.scale, self.shift = _scale_and_shift(vae / CONFIG if vae.is_dir() else vae, self.event_shape)
        self.labels = getattr(data, "labels", None)
        self.classes = classes_of(data)
        self.condition_shapes = condition_shapes_of(data)
        self.blocks = getattr(data, "blocks", None)

    def __len__(self) -> int:
        return len(self.dataset)

    def batch(self, indices: Tensor) -> Batch:
        """The scaled latents at these indices, with their conditions as they are."""
        batch = self.dataset.batch(indices)
        if batch.x0 is not None:
            raise DataError("data: these latents come with partners x0, whose scale isn't known. Leave x0 out.")
        return replace(batch, x1=(batch.x1.float() - self.shift) * self.scale)


def _scale_and_shift(file: Path, event_shape: tuple[int, ...]) -> tuple[Tensor, Tensor]:
    """(scale, shift): numbers, or (channels, 1, ...)."""
    if not file.is_file():
        raise ConfigError(f"vae: {file} is missing. Give the folder of an autoencoder in a pipeline, such as vae/.")
    config = read_json(file)
    if not isinstance(config, Mapping):
        raise ConfigError(f"vae: {file}: wanted the configuration of an autoencoder, got a {type(config).__name__}.")
    factor = config.get("scaling_factor")
    mean, deviation = config.get("latents_mean"), config.get("latents_std")
    if mean is not None and deviation is not None:
        scale = _numbers(1.0 if factor is None else factor, file) / _numbers(deviation, file)
        shift = _numbers(mean, file)
    elif factor is not None:
        scale, shift = _numbers(factor, file), _numbers(config.get("shift_factor") or 0.0, file)
    else:
        raise ConfigError(
            f"vae: {file} has neither scaling_factor nor latents_mean and latents_std. Scale the latents yourself, as "
            f"the network's pipeline does, and leave out `latents`."
        )
    if not bool(torch.isfinite(scale).all() and (scale > 0).all()):
        raise ConfigError(f"vae: {file}: wanted scales above 0, got {scale.tolist()}.")
    channels = {len(values) for values in (scale, shift) if values.ndim}
    if channels and channels != {event_shape[0]}:
        raise DataError(
            f"vae: {file} has {max(channels)} channels, and the first axis of the latents, of shape {event_shape}, is "
            f"another. Latents that are packed into tokens must be scaled before they are packed."
        )
    shape = (-1, *[1] * (len(event_shape) - 1))
    return tuple(values.reshape(shape) if values.ndim else values for values in (scale, shift))  # type: ignore[return-value]


def _numbers(values: Any, file: Path) -> Tensor:
    """A number or a list of numbers.

    Raises:
        ConfigError: for anything else.
    """
    listed = values if isinstance(values, list) else [values]
    if not listed or not all(isinstance(value, (int, float)) and math.isfinite(value) for value in listed):
        raise ConfigError(f"vae: {file}: wanted numbers, got {values!r}.")
    return torch.tensor(values, dtype=torch.float32)
