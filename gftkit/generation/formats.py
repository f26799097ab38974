"""Writing samples: .npz, .safetensors, a picture, or a folder of pictures."""

import re
from collections.abc import Iterable, Mapping
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from gftkit.kernel.errors import ConfigError, RunError
from gftkit.recording import pictures
from gftkit.runtime.extras import require
from gftkit.storage.files import write_atomically
from gftkit.storage.tensors import write_tensors

SUFFIXES = (".npz", ".safetensors", ".png", "")


def check_target(path: Path, event_shape: tuple[int, ...], *, force: bool) -> None:
    """Refuse a target before any work is done.

    Raises:
        ConfigError: for an unknown suffix, or a folder of pictures for events that are not images.
        RunError: for a target that exists, without ``force``.
        MissingPackageError: where matplotlib is needed and isn't installed.
    """
    if path.suffix not in SUFFIXES:
        raise ConfigError(f"--out {path}: wanted .npz, .safetensors, .png or a folder, got '{path.suffix}'.")
    if path.suffix == "" and not pictures.is_image(event_shape):
        raise ConfigError(f"--out {path}: events of shape {event_shape} are not images. Use .npz or .safetensors.")
    taken = any(path.iterdir()) if path.is_dir() else path.exists()
    if taken and not force:
        raise RunError(f"{path} exists. Choose another --out, or overwrite it with --force.")
    if path.suffix == ".png" and not pictures.is_image(event_shape):
        require("report", f"--out {path}")


def write_samples(
    path: Path,
    parts: Iterable[Tensor],
    shape: tuple[int, ...],
    conditions: Mapping[str, Tensor],
    span: tuple[float, float],
) -> None:
    """Write samples in the format of the suffix of ``path``; arrays are ``samples`` and the conditions.

    A folder of pictures is written part by part; the other formats need all samples in memory.

    Args:
        path: the target.
        parts: the samples in order, (n, *event) each.
        shape: (count, *event).
        conditions: the conditions, (count, ...) each.
        span: black and white's values.
    """
    if path.suffix == "":
        _write_images(path, parts, span)
        return
    samples, done = torch.empty(shape), 0
    for part in parts:
        samples[done : done + len(part)] = part
        done += len(part)
    if path.suffix == ".safetensors":
        write_tensors(path, {**conditions, "samples": samples}, {})
    elif path.suffix == ".npz":
        arrays = {name: tensor.numpy() for name, tensor in {**conditions, "samples": samples}.items()}

        def write(temporary: Path) -> None:
            with temporary.open("wb") as file:
                np.savez(file, **arrays)  # type: ignore[arg-type]  # a keyword of newer versions only

        write_atomically(path, write)
    elif pictures.is_image(shape[1:]):
        pictures.write_image(path, pictures.image_grid(samples, span), max(1, 32 // shape[-1]))
    else:
        pictures.write_png(path, pictures.sample_picture({"samples": samples}, span))


def _write_images(folder: Path, parts: Iterable[Tensor], span: tuple[float, float]) -> None:
    index = 0
    for part in parts:
        for image in part:
            pictures.write_image(folder / f"{index:06d}.png", pictures.image_grid(image[None], span))
            index += 1
    for path in folder.glob("*.png"):
        if re.fullmatch(r"\d{6,}", path.stem) and int(path.stem) >= index:
            path.unlink()  # of an earlier call, which --force overwrites
