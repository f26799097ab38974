"""Data sets: real images that ship inside Python packages, the user's own files, and laws to draw from."""

from collections.abc import Callable
from typing import Any

import gftkit
from gftkit_plugins.datasets.archives.huggingface import HuggingFace
from gftkit_plugins.datasets.archives.shards import Shards
from gftkit_plugins.datasets.arrays import Arrays
from gftkit_plugins.datasets.derived.fold import Fold
from gftkit_plugins.datasets.derived.latents import Latents
from gftkit_plugins.datasets.fields import RandomFields
from gftkit_plugins.datasets.generated_pairs import GeneratedPairs
from gftkit_plugins.datasets.images.image_folder import ImageFolder
from gftkit_plugins.datasets.images.packaged import digits, mnist5k
from gftkit_plugins.datasets.replay import Replay
from gftkit_plugins.datasets.signals import Signals
from gftkit_plugins.datasets.synthetic import Gaussian, GaussianMixture, TwoMoons
from gftkit_plugins.datasets.wilds.camelyon17 import camelyon17
from gftkit_plugins.datasets.wilds.fmow import fmow
from gftkit_plugins.datasets.wilds.rxrx1 import rxrx1


@gftkit.hookimpl
def gftkit_datasets() -> dict[str, Callable[..., Any]]:
    """The built-in data sets."""
    return {
        "arrays": Arrays,
        "camelyon17": camelyon17,
        "digits": digits,
        "fmow": fmow,
        "fold": Fold,
        "gaussian": Gaussian,
        "gaussian-mixture": GaussianMixture,
        "generated-pairs": GeneratedPairs,
        "huggingface": HuggingFace,
        "image-folder": ImageFolder,
        "latents": Latents,
        "mnist5k": mnist5k,
        "random-fields": RandomFields,
        "replay": Replay,
        "rxrx1": rxrx1,
        "shards": Shards,
        "signals": Signals,
        "two-moons": TwoMoons,
    }
