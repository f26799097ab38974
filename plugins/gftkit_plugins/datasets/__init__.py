"""Data sets: real images that ship inside Python packages, the user's own files, and laws to draw from."""

from collections.abc import Callable
from typing import Any

import gftkit
from gftkit_plugins.datasets.arrays import Arrays
from gftkit_plugins.datasets.camelyon17 import camelyon17
from gftkit_plugins.datasets.fmow import fmow
from gftkit_plugins.datasets.generated_pairs import GeneratedPairs
from gftkit_plugins.datasets.huggingface import HuggingFace
from gftkit_plugins.datasets.image_folder import ImageFolder
from gftkit_plugins.datasets.images import digits, mnist5k
from gftkit_plugins.datasets.replay import Replay
from gftkit_plugins.datasets.rxrx1 import rxrx1
from gftkit_plugins.datasets.shards import Shards
from gftkit_plugins.datasets.synthetic import Gaussian, GaussianMixture, TwoMoons


@gftkit.hookimpl
def gftkit_datasets() -> dict[str, Callable[..., Any]]:
    """The built-in data sets."""
    return {
        "arrays": Arrays,
        "camelyon17": camelyon17,
        "digits": digits,
        "fmow": fmow,
        "gaussian": Gaussian,
        "gaussian-mixture": GaussianMixture,
        "generated-pairs": GeneratedPairs,
        "huggingface": HuggingFace,
        "image-folder": ImageFolder,
        "mnist5k": mnist5k,
        "replay": Replay,
        "rxrx1": rxrx1,
        "shards": Shards,
        "two-moons": TwoMoons,
    }
