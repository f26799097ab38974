"""Measurements of a model, each with a standard error."""

import gftkit
from gftkit_plugins.metrics.classifier import ClassifierTwoSample
from gftkit_plugins.metrics.energy import Energy
from gftkit_plugins.metrics.forgetting import Forgetting
from gftkit_plugins.metrics.frechet import Frechet
from gftkit_plugins.metrics.kernel_distance import KernelDistance
from gftkit_plugins.metrics.memorisation import Memorisation
from gftkit_plugins.metrics.precision_recall import PrecisionRecall
from gftkit_plugins.metrics.sliced_wasserstein import SlicedWasserstein
from gftkit_plugins.metrics.trajectories import KineticEnergy, PathLength, Straightness
from gftkit_plugins.metrics.vendi import Vendi
from gftkit_plugins.metrics.wasserstein import Wasserstein


@gftkit.hookimpl
def gftkit_metrics() -> dict[str, type]:
    """The built-in metrics."""
    return {
        "classifier-two-sample": ClassifierTwoSample,
        "energy": Energy,
        "forgetting": Forgetting,
        "frechet": Frechet,
        "kernel-distance": KernelDistance,
        "kinetic-energy": KineticEnergy,
        "memorisation": Memorisation,
        "path-length": PathLength,
        "precision-recall": PrecisionRecall,
        "sliced-wasserstein": SlicedWasserstein,
        "straightness": Straightness,
        "vendi": Vendi,
        "wasserstein": Wasserstein,
    }
