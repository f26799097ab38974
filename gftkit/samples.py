"""Writing samples: .npz, .safetensors, a picture, or a folder of pictures."""

from collections.abc import Mapping
from pathlib import Path

import numpy as np
from torch import Tensor

from gftkit import pictures
from gftkit.errors import ConfigError, RunError
from gftkit.files import write_atomically, write_tensors

SUFFIXES = (".npz", ".safetensors", ".png", "")


def check_target(path: Path, event_shape: tuple[int, ...], force: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        ConfigError: for an unknown suffix, or a folder of pictures for events that are not images.
        RunError: where something stands there and ``force`` is not set.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out {path}: wanted .npz, .safetensors, .png or a folder, got '{path.suffix}'.")
    if path.suffix == "" and not pictures.is_image(event_shape):
        raise ConfigError(f"--out {path}: events of shape {event_shape} are not images. Use .npz or .safetensors.")
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise RunError(f"{path} exists. Choose another --out, or overwrite it with --force.")


def write_samples(path: Path, samples: Tensor, given: Mapping[str, Tensor], span: tuple[float, float] | None) -> None:
    """Write samples, (n, *event), as the suffix of ``path`` says; arrays are ``samples`` and the conditions."""
    arrays = {**given, "samples": samples}
    if path.suffix == ".safetensors":
        write_tensors(path, arrays, {})
    elif path.suffix == ".npz":
        held = {name: tensor.numpy() for name, tensor in arrays.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **held)  # type: ignore[arg-type]  # a keyword of newer versions only

        write_atomically(path, write)
    elif path.suffix == ".png":
        if pictures.is_image(samples.shape[1:]):
            scale = max(1, 32 // samples.shape[-1])
            pictures.write_image(path, pictures.grid(samples, span), scale)
        else:
            pictures.write_png(path, pictures.samples({"samples": samples}, span))
    else:
        for index in range(len(samples)):
            image = pictures.grid(samples[index : index + 1], span or (float(samples.min()), float(samples.max())))
            pictures.write_image(path / f"{index:06d}.png", image)
