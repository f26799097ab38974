"""Maps from events to vectors, for metrics."""

import gftkit
from gftkit_plugins.features.digits_classifier import DigitsClassifier
from gftkit_plugins.features.efficientnet import EfficientNetLite0
from gftkit_plugins.features.identity import Identity
from gftkit_plugins.features.module import ModuleFeature


@gftkit.hookimpl
def gftkit_features() -> dict[str, type]:
    """The built-in features."""
    return {
        "digits-classifier": DigitsClassifier,
        "efficientnet-lite0": EfficientNetLite0,
        "identity": Identity,
        "module": ModuleFeature,
    }
